"""Every error this package raises, in one tree.

This module holds classes and their messages only. A message says what happened and what to do
next; it never contains an item's content, and a URL appears in it without its password.

    SessionMemoryError
    ├── SessionIdRequired           memory is on and the call names no session
    ├── InvalidSessionId            the id is blank, too long, or cannot be stored
    ├── InvalidItem                 an item cannot be stored; its position is named
    ├── InvalidOption (TypeError)   an option is unknown, or contradicts another
    ├── InvalidMemoryUrl (ValueError)
    ├── ConflictingMemory           two owners of one history, or a memory that lacks it
    ├── WrongSession                a parked run was resumed under another session's id
    ├── UnknownState                a run was resumed that this memory has not parked
    ├── OutcomeUnknown              a tool began and nobody saw its end; the calls are named
    ├── SessionBusy                 another turn holds the session
    ├── TurnInProgress              the same idempotency key is being worked on at this moment
    ├── TurnLost                    the session was taken over, cleared or released
    ├── DuplicateTurn               the turn was done already; it carries its number and items
    ├── IdempotencyConflict         the same idempotency key came with another input
    ├── MemoryUnavailable           the storage failed or did not answer; its error is the cause
    ├── MemoryClosed                the memory was used after cleanup()
    ├── UnsupportedSchema           the storage was written by a newer version, or is not ours
    ├── NotADatabase                the file is no SQLite database
    └── MissingExtra (ImportError)  an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from session_middleware.stores.records import TurnRecord

__all__ = [
    "ConflictingMemory",
    "DuplicateTurn",
    "IdempotencyConflict",
    "InvalidItem",
    "InvalidMemoryUrl",
    "InvalidOption",
    "InvalidSessionId",
    "MemoryClosed",
    "MemoryUnavailable",
    "MissingExtra",
    "NotADatabase",
    "OutcomeUnknown",
    "SessionBusy",
    "SessionIdRequired",
    "SessionMemoryError",
    "TurnInProgress",
    "TurnLost",
    "UnknownState",
    "UnsupportedSchema",
    "WrongSession",
]


class SessionMemoryError(Exception):
    """The root of the tree: catch it to catch everything this package raises."""


class SessionIdRequired(SessionMemoryError):
    """Memory is on, and neither the call, the decorator nor a scope names the session."""


class InvalidSessionId(SessionMemoryError):
    """A session id that cannot be stored: not a string, blank, too long, or unprintable."""


class InvalidItem(SessionMemoryError):
    """An item that cannot be stored. Nothing of its batch was.

    Attributes:
        position: the item's index in the list that was given, from 0.
    """

    def __init__(self, position: int, fault: str) -> None:
        super().__init__(f"item {position} cannot be stored: {fault}. Nothing was stored.")
        self.position = position


class InvalidOption(SessionMemoryError, TypeError):
    """An option that is unknown, has a wrong value, or contradicts another."""


class InvalidMemoryUrl(SessionMemoryError, ValueError):
    """A memory URL nobody can open. The message names the forms that are possible."""


class ConflictingMemory(SessionMemoryError):
    """Two owners for one history, or a memory asked for what it cannot do."""


class WrongSession(SessionMemoryError):
    """A run that was parked in one session was resumed under another session's id."""


class UnknownState(SessionMemoryError):
    """A run was resumed that this memory has not parked, so that nobody knows what it did."""


class OutcomeUnknown(SessionMemoryError):
    """Tools began for this request and nobody saw their end, so nothing was run again.

    Raised with ``on_unknown="raise"``. Find out whether the effects happened. Then make the same
    request with ``on_unknown="tell"``, so that the model hears of it, or with ``rerun=`` and the
    names of the tools that may run again.

    Attributes:
        calls: the calls, each with its ``name``, ``call_id``, ``key`` and times.
    """

    def __init__(self, calls: Sequence[Any]) -> None:
        names = ", ".join(sorted({call.name for call in calls}))
        super().__init__(
            f"the outcome of {len(calls)} tool call(s) is unknown ({names}): find out whether "
            "their effects happened, then pass on_unknown='tell', or rerun=[...] with the tools "
            "that may run again"
        )
        self.calls = tuple(calls)


class _OtherTurn(SessionMemoryError):
    """Another turn is in the way."""

    def __init__(
        self,
        message: str,
        *,
        turn: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.turn = turn
        self.since = since
        self.until = until
        self.retry_after = retry_after


class SessionBusy(_OtherTurn):
    """Another turn holds the session.

    Attributes:
        turn: the holder's turn number, where it is known.
        since: when that turn began (UTC).
        until: when its lease ends unless it is renewed (UTC).
        retry_after: seconds after which another try makes sense, 0.5 to 10, from how long recent
            turns of the session took.
    """


class TurnInProgress(_OtherTurn):
    """A turn with this idempotency key is running now. Attributes as for SessionBusy."""


class TurnLost(SessionMemoryError):
    """The turn no longer owns its session, so nothing was written.

    Another turn took the session over, or the session was cleared, saved over or released.
    Start a new turn; what this turn had stored before is as the one who took over found it.
    """


class DuplicateTurn(SessionMemoryError):
    """The same work was done before: the same idempotency key, or the same parked state.

    Attributes:
        turn: the number of the turn that did it.
        items: the items of that turn, in order.
        record: the record of that turn, to answer from: its state, output_text and items. None
            where the memory has no records, or could not be asked for it.
    """

    def __init__(
        self,
        message: str,
        *,
        turn: int,
        items: Sequence[dict[str, Any]] = (),
        record: TurnRecord | None = None,
    ) -> None:
        super().__init__(message)
        self.turn = turn
        self.items = list(items)
        self.record = record


class IdempotencyConflict(SessionMemoryError):
    """An idempotency key came back with another input. Use a new key for a new input."""


class MemoryUnavailable(SessionMemoryError):
    """The storage failed or did not answer in time. The driver's error is the ``__cause__``."""


class MemoryClosed(SessionMemoryError):
    """The memory was used after ``cleanup()``. Make a new one, or call cleanup later."""


class UnsupportedSchema(SessionMemoryError):
    """The storage belongs to a newer version of this package, or to another program."""


class NotADatabase(SessionMemoryError):
    """The file is not an SQLite database. It was left as it is."""


class MissingExtra(SessionMemoryError, ImportError):
    """An optional dependency is missing. The message names the pip command that installs it."""
