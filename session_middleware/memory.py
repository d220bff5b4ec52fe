"""What a session memory is: the interface, the records, and what only some memories can do.

Contracts only. Nothing here stores, runs, logs or traces, and nothing here imports a store.

``SessionMemory`` is what everybody implements. What a memory can do beyond it is
``SupportsTurns``, asked with ``isinstance``; the stores of this package have it, a memory that
has only the six methods is served by ``stores.flat`` within one process.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol, Self, runtime_checkable

from session_middleware._records import (
    CarriedRun,
    Item,
    Items,
    Lease,
    Loaded,
    Reading,
    RunItems,
    RunState,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnRecord,
    TurnState,
)
from session_middleware.errors import InvalidSessionId
from session_middleware.history import LastItems, LastTurns

__all__ = [
    "CarriedRun",
    "HeldTurn",
    "Item",
    "Items",
    "Lease",
    "Loaded",
    "Reading",
    "RunItems",
    "RunState",
    "SessionMemory",
    "SupportsLookUp",
    "SupportsRunEnds",
    "SupportsTurnWrites",
    "SupportsTurns",
    "TakeTurn",
    "Taken",
    "TurnEnd",
    "TurnRecord",
    "TurnState",
    "check_session_id",
    "held_turn",
    "holding",
    "set_release_listener",
    "set_view_factory",
    "tell_released",
]

MAX_SESSION_ID = 512


def check_session_id(session_id: object) -> str:
    """Return the id if it can name a session.

    Raises:
        InvalidSessionId: it is no string, blank, longer than 512 characters, or has control
            characters or lone surrogates.
    """
    if not isinstance(session_id, str):
        raise InvalidSessionId(
            f"a session id is a string, not {type(session_id).__name__}: "
            'pass one, such as session_id="user-42"'
        )
    if not session_id.strip():
        raise InvalidSessionId('a session id must not be blank: pass one, such as "user-42"')
    if len(session_id) > MAX_SESSION_ID:
        raise InvalidSessionId(
            f"a session id has at most {MAX_SESSION_ID} characters, this one has "
            f"{len(session_id)}: use a digest of it"
        )
    if session_id.isprintable():  # has neither, and most ids are
        return session_id
    for index, character in enumerate(session_id):
        category = unicodedata.category(character)
        if category in ("Cc", "Cs"):
            kind = "a control character" if category == "Cc" else "a lone surrogate"
            raise InvalidSessionId(
                f"the session id has {kind} (U+{ord(character):04X}) at position {index}: remove it"
            )
    return session_id


# --- the turn in force here ----------------------------------------------------------------


class HeldTurn(Protocol):
    """The turn that this context holds, as a memory's own methods need it."""

    @property
    def memory_identity(self) -> Hashable: ...
    @property
    def lease(self) -> Lease | None: ...
    def next_run(self) -> int:
        """Reserve the next run number of the turn."""
        ...

    async def settle(self) -> None:
        """Store what its runs have handed over, so that whoever looks will see it."""
        ...


_held: ContextVar[HeldTurn | None] = ContextVar("session_middleware.held", default=None)


def held_turn(identity: Hashable, session_id: str) -> HeldTurn | None:
    """The turn this context holds on that session of that memory, or None."""
    held = _held.get()
    if held is None or held.memory_identity != identity:
        return None
    lease = held.lease
    return held if lease is not None and lease.session_id == session_id else None


@contextmanager
def holding(turn: HeldTurn | None) -> Iterator[None]:
    """Make ``turn`` the one that a memory's own methods act within."""
    token = _held.set(turn)
    try:
        yield
    finally:
        with suppress(ValueError):  # closed in another context, by the collector of garbage
            _held.reset(token)


_release_listener: Callable[[Hashable, str], None] | None = None


def set_release_listener(listener: Callable[[Hashable, str], None]) -> None:
    """Have ``listener(identity, session_id)`` told of sessions taken away; called by the core."""
    global _release_listener
    _release_listener = listener


def tell_released(identity: Hashable, session_id: str) -> None:
    """Say that whoever held the session has lost it, so that nobody here waits for its end."""
    if _release_listener is not None:
        _release_listener(identity, session_id)


# --- the interface -------------------------------------------------------------------------

_make_view: Callable[[SessionMemory, str], Any] | None = None


def set_view_factory(factory: Callable[[SessionMemory, str], Any]) -> None:
    """Tell ``SessionMemory.session`` how views are made; called once, by the entry layer."""
    global _make_view
    _make_view = factory


class SessionMemory(ABC):
    """Where conversations are kept, by session id. Subclass it to bring your own storage.

    The six abstract methods are all a memory needs. A history is a list of items in the order
    of the conversation; an unknown session has an empty one.
    """

    @abstractmethod
    async def load_session(self, session_id: str) -> Items:
        """Return the whole history, oldest item first; an empty list for an unknown session."""

    @abstractmethod
    async def save_session(self, session_id: str, conversation_history: Items) -> None:
        """Replace the history by this one."""

    @abstractmethod
    async def append_to_session(self, session_id: str, new_items: Items) -> None:
        """Add items at the end of the history."""

    @abstractmethod
    async def clear_session(self, session_id: str) -> None:
        """Forget the session; no error where there is none."""

    @abstractmethod
    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions."""

    @abstractmethod
    async def session_exists(self, session_id: str) -> bool:
        """Return whether there is a session of this id."""

    async def cleanup(self) -> None:  # noqa: B027 - optional on purpose: most memories have nothing to free
        """Free what the memory holds. Does nothing unless a memory says otherwise."""

    def session(self, session_id: str) -> Any:
        """Return a view of one session in the SDK's own ``Session`` protocol.

        Passed as ``session=`` to a Runner method it makes that run a full turn; its methods can
        also be called directly.

        Raises:
            InvalidSessionId: the id cannot name a session.
        """
        if _make_view is None:  # pragma: no cover - the package itself sets it on import
            raise RuntimeError("import session_middleware before making a session view")
        return _make_view(self, check_session_id(session_id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.cleanup()


@runtime_checkable
class SupportsRunEnds(Protocol):
    """A memory that lets the runs of a turn wait for each other, and so must hear of their end."""

    async def end_run(self, lease: Lease, run: int) -> None:
        """That run of the turn stores nothing more."""
        ...


@runtime_checkable
class SupportsLookUp(Protocol):
    """A memory that can say that work was done before while another turn holds the session."""

    async def look_up(self, request: TakeTurn) -> None:
        """Raise what points 1 and 2 of ``SupportsTurns.take_turn`` would; take nothing."""
        ...


@runtime_checkable
class SupportsTurnWrites(Protocol):
    """A memory that stores items and the end of their turn in one transaction.

    What a run hands over may then wait until the model is called or the turn ends.
    """

    async def write_turn(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        """Do what ``append_items`` does with each of these, and ``end_turn``: all or nothing.

        Items that come ``instead`` take the place of all that their run has, and may be none.

        It must not ask for the session's items by methods that wait for what the turn stores.
        """
        ...


@runtime_checkable
class SupportsTurns(Protocol):
    """A memory that keeps turns: one writer, fenced, with records.

    Every write names the lease it is made under. A write under a token that is no longer the
    session's raises TurnLost and writes nothing; a lease that merely expired is still good.
    The methods may be called from any thread and any event loop.
    """

    @property
    def identity(self) -> Hashable:
        """Equal for two memories that share one storage in this process."""
        ...

    @property
    def lease_seconds(self) -> float:
        """For how long a taken session stays taken when its process dies."""
        ...

    async def take_turn(self, request: TakeTurn) -> Taken:
        """Take the session, or say why not, in one transaction; never wait.

        In this order:

        1. ``resume`` names a parked run. Parked in another session: WrongSession. Parked here and
           still open: the lease continues that turn. Resumed before: DuplicateTurn. Unknown: a
           new turn, as without it.
        2. ``idempotency_key`` names a turn of this session that is not replaced. Both digests
           known and different: IdempotencyConflict. Running under a lease that has not expired:
           TurnInProgress. Completed or awaiting approval: DuplicateTurn. Anything else is
           retried: its runs and items move to the new turn as ``carried`` and it becomes
           ``replaced``.
        3. Another lease that has not expired: SessionBusy. An expired one is taken over, and its
           turn becomes ``abandoned``.
        4. A new token, a turn of the next number, in state running.

        ``request.read`` is given to a class that sets ``reads_with_taking``, and may be answered
        or left to ``load_turns``. ``request.input`` is given to one that sets
        ``stores_with_taking``; it is on the disk, at the latest, when the turn's next items are, or
        its end if that is durable.
        """
        ...

    async def load_turns(
        self,
        session_id: str,
        *,
        newest: LastTurns | LastItems | None = None,
        hide: tuple[int, Collection[int]] | None = None,
        texts: bool = False,
    ) -> Loaded:
        """Read the history in whole turns, oldest first.

        Args:
            newest: read only the newest turns, as that window would keep them.
            hide: (turn, runs) leaves these runs of this turn out.
            texts: keep each item's stored text in ``Turn.texts``.
        """
        ...

    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]:
        """Read raw items: the newest ``limit`` of the session, or of one turn, oldest first.

        ``None`` or a negative limit reads all, 0 none.
        """
        ...

    async def append_items(
        self,
        lease: Lease,
        run: int,
        position: int,
        items: Sequence[Item],
        *,
        input_digest: str | None = None,
    ) -> None:
        """Store items as (session, turn, run, position ...); all of them or none.

        ``input_digest`` is kept with the run when its first items are stored.
        """
        ...

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over what ``failed`` left in the same turn.

        The items up to the last tool output become the new run's; those after it go, and the
        failed run becomes ``replaced``. Returns how many items the new run starts with: 0 when
        there was no completed output, and the run begins anew.
        """
        ...

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        """Write the turn's end and let the session go, in one transaction.

        A turn that would be completed is awaiting_approval, without an output text, as long as
        another of its parked runs is open.
        """
        ...

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none."""
        ...

    async def release(self, session_id: str) -> bool:
        """Take the session away from whoever holds it; that turn gets TurnLost.

        Returns whether anybody held it.
        """
        ...

    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items.

        Args:
            limit: at most this many.
            before: only turns with a smaller number; pass the last one seen to page on.
        """
        ...
