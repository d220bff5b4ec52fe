"""What a provider refuses in a request: the rules of the Responses and the Chat Completions API.

Pure functions on the items of one request; ``Refused`` says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Refused", "check_chat", "check_responses"]


class Refused(Exception):
    """The history of the request is one that a provider answers with status 400."""


def check_responses(items: Sequence[dict[str, Any]]) -> None:
    """Check the ``input`` of a request to the Responses API.

    Raises:
        Refused: an item has no type, an output has no call before it, a call has no output, or a
            reasoning item is followed by a user's message.
    """
    open_calls: dict[str, None] = {}
    previous_reasoning = False
    for position, item in enumerate(items):
        kind = item.get("type", "message" if "role" in item else None)
        if kind is None:
            raise Refused(f"input[{position}] has neither a type nor a role.")
        if kind == "function_call":
            open_calls[item["call_id"]] = None
        elif kind == "function_call_output":
            if item["call_id"] not in open_calls:
                raise Refused(
                    f"No tool call found for function call output with call_id {item['call_id']}."
                )
            del open_calls[item["call_id"]]
        elif kind == "message" and item["role"] == "user" and previous_reasoning:
            raise Refused("A reasoning item was provided without its required following item.")
        previous_reasoning = kind == "reasoning"
    for call_id in open_calls:
        raise Refused(f"No tool output found for function call {call_id}.")


def check_chat(messages: Sequence[dict[str, Any]]) -> None:
    """Check the ``messages`` of a request to the Chat Completions API.

    Raises:
        Refused: a tool's message does not follow its call, or a call has no tool's message.
    """
    waiting: set[str] = set()
    for position, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise Refused(f"messages[{position}]: 'tool' must follow its 'tool_calls'.")
            waiting.discard(message["tool_call_id"])
            continue
        if waiting:
            raise Refused(f"messages[{position}]: 'tool_calls' without their tool messages.")
        waiting = {made["id"] for made in message.get("tool_calls") or ()}
    if waiting:
        raise Refused("The last 'tool_calls' have no tool messages.")
