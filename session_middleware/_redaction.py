"""Items on their way into the memory: what the user's ``redact`` leaves of them.

A tool call and its output are one thing to a model's provider, so both are kept or neither is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from session_middleware.errors import InvalidItem
from session_middleware.memory import Item

WITHHELD = "[redacted]"


class Redaction:
    """Applies ``redact`` to the batches of one run.

    Args:
        redact: item -> item, or None to leave it out.
        resumed: the run goes on with calls whose first half an earlier run has stored, or not.
    """

    def __init__(
        self, redact: Callable[[Item], Item | None] | None, *, resumed: bool = False
    ) -> None:
        self._redact = redact
        self._dropped: set[str] = set()
        self._stored: set[str] = set()
        self.asks_for_stored = redact is not None and resumed
        self._resumed = resumed
        self._answer: str | None = None

    def knows_stored(self, items: Iterable[Item]) -> None:
        """These items of the turn are stored already."""
        self._stored.update(pair for item in items if (pair := _pair(item)) is not None)
        self.asks_for_stored = False

    def apply(self, items: list[Item]) -> list[Item]:
        """The items to store.

        A call whose output is left out in the same batch is left out with it, and an output
        whose call was left out likewise. Where the call is stored already (it waited for
        approval), its output stays with its content withheld.
        """
        redact = self._redact
        if redact is None:
            return items
        redacted: list[tuple[str | None, Item, Item | None]] = []
        here = set()
        for position, item in enumerate(items):
            kept = redact(copy.deepcopy(item))  # what the model sees must not change with it
            if kept is not None and not isinstance(kept, dict):
                raise InvalidItem(position, f"redact gave a {type(kept).__name__} for it")
            pair = _pair(item)
            redacted.append((pair, item, kept))
            if pair is not None and not _is_output(item):
                here.add(pair)
        for pair, item, kept in redacted:
            if pair is None or (pair in self._stored and _is_output(item)):
                continue
            without_call = self._resumed and _is_output(item) and pair not in here
            if kept is None or without_call:
                self._dropped.add(pair)
        result: list[Item] = []
        for pair, item, kept in redacted:
            if pair is not None and pair in self._dropped:
                continue
            if kept is None:
                if pair is None:
                    continue
                kept = {**item, "output": WITHHELD}
            if pair is not None:
                self._stored.add(pair)
            result.append(kept)
        self._answer = next(filter(None, map(_answer, reversed(result))), None)
        return result

    def output_text(self, output: str | None) -> str | None:
        """What the turn's record may keep of the output: no more than what was stored of it."""
        return output if self._redact is None else self._answer


def _pair(item: Item) -> str | None:
    """What a call and its output have in common."""
    call_id = item.get("call_id") or item.get("approval_request_id")
    if call_id is None and item.get("type") == "mcp_approval_request":
        call_id = item.get("id")
    return call_id if isinstance(call_id, str) else None


def _answer(item: Item) -> str | None:
    """The text of an assistant's message."""
    content = item.get("content")
    if item.get("role") != "assistant" or not content:
        return None
    if isinstance(content, str):
        return content
    return "".join(
        part["text"]
        for part in content
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _is_output(item: Item) -> bool:
    return str(item.get("type", "")).endswith("_output")
