"""Items on their way into the memory: what the user's ``redact`` leaves of them.

A tool call and its output are one thing to a model's provider, so both are kept or neither is.
"""

from __future__ import annotations

from collections.abc import Callable

from session_middleware.errors import InvalidItem
from session_middleware.memory import Item

WITHHELD = "[redacted]"


class Redaction:
    """Applies ``redact`` to the batches of one run."""

    def __init__(self, redact: Callable[[Item], Item | None] | None) -> None:
        self._redact = redact
        self._dropped: set[str] = set()
        self._stored: set[str] = set()

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
        for position, item in enumerate(items):
            kept = redact(dict(item))
            if kept is not None and not isinstance(kept, dict):
                raise InvalidItem(position, f"redact gave a {type(kept).__name__} for it")
            redacted.append((_pair(item), item, kept))
        for pair, item, kept in redacted:
            if kept is None and pair is not None and not _stored_half(pair, item, self._stored):
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
        return result


def _pair(item: Item) -> str | None:
    """What a call and its output have in common."""
    call_id = item.get("call_id") or item.get("approval_request_id")
    if call_id is None and item.get("type") == "mcp_approval_request":
        call_id = item.get("id")
    return call_id if isinstance(call_id, str) else None


def _stored_half(pair: str, item: Item, stored: set[str]) -> bool:
    return pair in stored and str(item.get("type", "")).endswith("_output")
