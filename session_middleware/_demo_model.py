"""A model that runs here and answers only from the conversation it is handed.

It serves the demo and the examples: an answer that needs an earlier turn is right only when that
turn is in the model's input. It keeps nothing between calls, reads no file and opens no
connection, and it is no part of the public surface.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from agents import ModelResponse
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message
from openai.types.responses import ResponseTextDeltaEvent

__all__ = ["LocalModel", "answer"]

_NAME = re.compile(r"\b(?i:my name is|i'm|i am)\s+([A-Z][\w-]*)")
_ASKS_NAME = re.compile(r"what(?:'s| is) my name", re.IGNORECASE)
_ASKS_CITY = re.compile(r"what city is the golden gate bridge in", re.IGNORECASE)
_ASKS_STATE = re.compile(r"what state is it in", re.IGNORECASE)
_ASKS_BACK = re.compile(r"what did i tell you", re.IGNORECASE)


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


class LocalModel(Model):
    """A model for the Agents SDK around ``answer``; it streams word by word."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        """Answer in one piece."""
        return await _one_answer(input).get_response(system_instructions, input, *args, **kwargs)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Answer as the provider's own stream of events."""
        events = _one_answer(input).stream_response(system_instructions, input, *args, **kwargs)
        async for event in events:
            if isinstance(event, ResponseTextDeltaEvent):
                for word in re.findall(r"\S+\s*", event.delta):
                    yield event.model_copy(update={"delta": word})
            else:
                yield event


def _one_answer(given: str | list[Any]) -> ScriptedModel:
    messages = [("user", given)] if isinstance(given, str) else _messages(given)
    # An id of its own, since the SDK takes items with the same id for the same item.
    said = assistant_message(answer(messages), item_id=f"msg_{secrets.token_hex(8)}")
    return ScriptedModel([[said]])


def _messages(items: list[Any]) -> list[tuple[str, str]]:
    """The (role, text) of every message among Responses input items."""
    found: list[tuple[str, str]] = []
    for item in items:
        if item.get("type", "message") != "message":
            continue
        content = item.get("content", "")
        text = (
            content
            if isinstance(content, str)
            else "".join(part.get("text", "") for part in content)
        )
        found.append((item["role"], text))
    return found
