"""Input that begins with the very history that the session holds: which of it is new.

Callers who kept the conversation themselves pass ``result.to_input_list()`` and the next message.
The session has the first part already, and must neither store nor show it twice. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from session_middleware._turns.redact import Redaction
from session_middleware.stores.records import Item

_SAID_BY_CALLERS = ("user", "system", "developer")


def may_repeat(given: Any) -> bool:
    """Whether new input may begin with a history: it is a list that holds more than messages."""
    return isinstance(given, list) and len(given) > 1 and next(_ends(given), 0) > 0


def repeated(
    given: Sequence[Any], newest: Sequence[Item], redact: Callable[[Item], Item | None] | None
) -> int:
    """How many items at the beginning of the input are the newest that the session holds.

    Args:
        given: the new input.
        newest: the newest items of the session, at least as many as the input has.
        redact: what was done to items before they were stored.
    """
    for end in _ends(given):
        if redact is None:
            if [*given[:end]] == [*newest[-end:]]:
                return end
            continue
        stored = Redaction(redact).apply([*given[:end]])
        return end if stored and stored == [*newest[-len(stored) :]] else 0
    return 0


def _ends(given: Sequence[Any]) -> Iterator[int]:
    """Where a history in it may end: behind an item that no caller says; the last one first."""
    for at in range(len(given), 0, -1):
        item = given[at - 1]
        if isinstance(item, dict) and item.get("role") not in _SAID_BY_CALLERS:
            yield at
