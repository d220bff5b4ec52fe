"""What the local model says and does next: pure functions of the conversation it is handed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from session_middleware.testing.wire import text_of

__all__ = ["ToolCall", "answer", "messages_of", "next_call", "outputs_of"]

_NAME = re.compile(r"\b(?i:my name is|i'm|i am)\s+([A-Z][\w-]*)")
_ASKS_NAME = re.compile(r"what(?:'s| is) my name", re.IGNORECASE)
_ASKS_CITY = re.compile(r"what city is the golden gate bridge in", re.IGNORECASE)
_ASKS_STATE = re.compile(r"what state is it in", re.IGNORECASE)
_ASKS_BACK = re.compile(r"what did i tell you", re.IGNORECASE)
_HANDOFF = "transfer_to_"

Item = Mapping[str, Any]


class ToolCall(NamedTuple):
    """A call to make: of a tool, or of a handoff."""

    name: str
    arguments: dict[str, Any]


def answer(messages: Sequence[tuple[str, str]]) -> str:
    """Answer the last message of a conversation.

    Args:
        messages: (role, text) pairs, oldest first; the last one is the user's.
    """
    *earlier, (_, question) = messages
    said = [text for role, text in earlier if role == "user"]
    if _ASKS_NAME.search(question):
        names = [found[1] for text in said if (found := _NAME.search(text))]
        return f"Your name is {names[-1]}." if names else "You have not told me your name."
    if _ASKS_CITY.search(question):
        return "San Francisco"
    if _ASKS_STATE.search(question):
        knows = any("San Francisco" in text for _, text in earlier)
        return "California" if knows else "I do not know what you mean by it."
    if _ASKS_BACK.search(question):
        return f"You told me: {said[0]}" if said else "You have told me nothing yet."
    if name := _NAME.search(question):
        return f"Nice to meet you, {name[1]}."
    return f"I have heard {len(said) + 1} message{'s' if said else ''} from you."


def messages_of(items: Sequence[Item]) -> list[tuple[str, str]]:
    """The (role, text) of every message among Responses input items."""
    return [(item["role"], text_of(item.get("content"))) for item in items if _is_message(item)]


def next_call(
    items: Sequence[Item],
    tools: Mapping[str, Mapping[str, Any]],
    handoffs: Mapping[str, str],
) -> ToolCall | None:
    """The call that the user's last message asks for and that was not made since; else None.

    A message asks for a tool, or for another agent, by its name.

    Args:
        items: the model's input.
        tools: the JSON schema of each tool's arguments, by the tool's name.
        handoffs: the name of the agent behind each handoff, by the handoff's tool name.
    """
    asked, since = _last_question(items)
    made = {item["name"] for item in since if item.get("type") == "function_call"}
    for name, schema in tools.items():
        if name not in made and _mentions(asked, name):
            return ToolCall(name, _arguments(asked, schema))
    if outputs_of(items):
        return None
    for name, agent in handoffs.items():
        if name not in made and _mentions(asked, agent):
            return ToolCall(name, {})
    return None


def outputs_of(items: Sequence[Item]) -> list[str]:
    """The outputs of the tools since the user's last message, without those of handoffs."""
    _, since = _last_question(items)
    names = {item["call_id"]: item["name"] for item in since if item.get("type") == "function_call"}
    return [
        text_of(item["output"])
        for item in since
        if item.get("type") == "function_call_output"
        and not names.get(item["call_id"], "").startswith(_HANDOFF)
    ]


def _is_message(item: Item) -> bool:
    return bool(item.get("type", "message") == "message")


def _last_question(items: Sequence[Item]) -> tuple[str, Sequence[Item]]:
    """The text of the user's last message, and the items behind it."""
    for at in range(len(items) - 1, -1, -1):
        if _is_message(items[at]) and items[at]["role"] == "user":
            return text_of(items[at].get("content")), items[at + 1 :]
    return "", items


def _mentions(text: str, name: str) -> bool:
    words = re.escape(name.replace("_", " "))
    return re.search(rf"\b{words}\b", text.replace("_", " "), re.IGNORECASE) is not None


def _arguments(asked: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments from the message: its numbers in their order, its quoted text or all of it."""
    numbers = iter(re.findall(r"\d+", asked))
    quoted = re.search(r'"([^"]*)"', asked)
    made: dict[Any, Callable[[], Any]] = {
        "integer": lambda: int(next(numbers, "0")),
        "number": lambda: float(next(numbers, "0")),
        "boolean": lambda: True,
        "string": lambda: quoted[1] if quoted else asked,
    }
    properties = schema.get("properties", {})
    return {name: made.get(one.get("type"), lambda: None)() for name, one in properties.items()}
