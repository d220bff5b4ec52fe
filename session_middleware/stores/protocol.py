"""What a memory with turns does for the core, primitive by primitive, and what it says it can do.

Contracts only. ``SessionMemory`` is what everybody implements. ``TurnStore`` is what the core
works with: a memory that declares ``TURNS`` is one itself, any other memory is served by
``stores.flat``. No storage, no rules, no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import ClassVar, Final, Protocol

from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    JournalEntry,
    Lease,
    Loaded,
    RunItems,
    TurnEnd,
    TurnRecord,
)

# --- capabilities: what a memory says in ``capabilities`` ------------------------------------

TURNS: Final = "turns"
"""The memory is a ``TurnStore`` itself, with records, idempotency keys and discarding."""

WRITE_TURN: Final = "write_turn"
"""``write_turn`` stores items and the end of their turn in one transaction."""

READ_WITH_ACQUIRE: Final = "read_with_acquire"
"""``acquire`` may read the history that ``AcquireRequest.read`` asks for."""

STORE_WITH_ACQUIRE: Final = "store_with_acquire"
"""``acquire`` stores ``AcquireRequest.input``; ``write_turn`` must be able to withdraw it."""

LOOK_UP: Final = "look_up"
"""``look_up`` refuses work that was done before while another turn holds the session."""

JOURNAL: Final = "journal"
"""``journal`` keeps the calls of a turn, and ``acquire`` returns those of an earlier attempt."""

TICKETS: Final = "tickets"
"""Who asked first for a busy session gets it first, in any process: ``AcquireRequest.ticket``."""

END_RUN: Final = "end_run"
"""The runs of a turn wait for each other, so ``end_run`` must be told when one stores no more."""

MANIFEST: Final = "manifest"
"""A record keeps ``AcquireRequest.otel_trace_id`` from the acquiring on, and ``TurnEnd.manifest``;
``Acquired`` says what was taken over, and the manifest of the turn that is resumed."""

FIGURES: Final = "figures"
"""``figures`` tells what a dashboard shows of the storage."""

COMPACTION: Final = "compaction"
"""``load_turns`` with a window that is behind the newest compaction item gives its turn as well."""

MANAGE: Final = "manage"
"""The store is a ``stores.managed_store.ManagedStore``, and keeps ``TurnEnd.states``."""

TTL: Final = "ttl"
"""The store forgets sessions after ``ttl`` seconds without activity, if it was given any."""

SHORTCUTS: Final = frozenset({WRITE_TURN, READ_WITH_ACQUIRE, STORE_WITH_ACQUIRE})
"""The capabilities that pass by ``append_items``, ``load_turns`` and ``end_turn``."""


def lacks(capability: str) -> Exception:  # pyright takes what raises the other for abstract
    return NotImplementedError(f"this store does not declare the capability {capability!r}")


class TurnStore(Protocol):
    """Keeps the turns of a memory: one writer per session, fenced, with records.

    Every write names the lease it is made under. A write under a token that is no longer the
    session's raises TurnLost and writes nothing; a lease that merely expired is still good.
    The methods may be called from any thread and any event loop.

    A method that a capability names is called only on a store that declares the capability.
    """

    lease_seconds: float
    """Seconds for which a session stays held when its process dies."""

    capabilities: ClassVar[frozenset[str]]
    """The names, of those in this module, of what the store can do."""

    @property
    def identity(self) -> Hashable:
        """Equal for two memories that share one storage in this process."""
        ...

    async def acquire(self, request: AcquireRequest) -> Acquired:
        """Acquire the session, or raise why not, in one transaction; never wait.

        ``stores.rules`` says what is refused, continued, retried and taken over.

        A cancelled ``acquire`` leaves the session free: a lease that was granted meanwhile has
        ended before the cancellation goes on, a stored input is withdrawn, and a run that was to
        be resumed waits as before. The core relies on it.

        ``request.read`` is given to a store with READ_WITH_ACQUIRE, which may leave it to
        ``load_turns``. ``request.input`` is given to one with STORE_WITH_ACQUIRE; it is on the
        disk, at the latest, when the turn's next items are, or its end if that is durable.
        """
        ...

    async def look_up(self, request: AcquireRequest) -> None:
        """Raise what ``acquire`` would raise but for SessionBusy; change nothing. (LOOK_UP)"""
        raise lacks(LOOK_UP)

    async def wait_for_session(self, session_id: str, ticket: int, seconds: float) -> None:
        """Return when the ticket may be first at a free session, or after ``seconds``. (TICKETS)

        It may return early, too: only ``acquire`` says whether the session is to be had.
        """
        raise lacks(TICKETS)

    async def withdraw_ticket(self, session_id: str, ticket: int) -> None:
        """Wait no longer: let those behind the ticket move up. (TICKETS)"""
        raise lacks(TICKETS)

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
            newest: read only the newest turns, as that window would keep them; with COMPACTION
                also, in front of them, an older turn that holds the newest compaction item.
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

        ``input_digest`` is stored with the run when its first items are.
        """
        ...

    async def write_turn(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        """Do what ``append_items`` does with each of these, and ``end_turn``. (WRITE_TURN)

        All of it is one transaction. Items that come ``instead`` replace all items of their run,
        and may be none. The same items at the same place once more change nothing.

        It must not read the session by methods that wait for what the turn stores.
        """
        raise lacks(WRITE_TURN)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over what ``failed`` left in the same turn.

        The items up to the last tool output become the new run's; those after it go, and the
        failed run becomes ``replaced``. Returns how many items the new run starts with: 0 when
        there was no completed output, and the run begins anew.
        """
        ...

    async def end_run(self, lease: Lease, run: int) -> None:
        """Note that this run of the turn stores nothing more. (END_RUN)"""
        raise lacks(END_RUN)

    async def journal(
        self, lease: Lease, entries: Sequence[JournalEntry], *, durable: bool
    ) -> None:
        """Keep these entries of the turn's journal, in place of those with the same names.

        Args:
            durable: the entries must survive a power failure once the call returns. (JOURNAL)
        """
        raise lacks(JOURNAL)

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        """Write the turn's end and give the session up, in one transaction.

        A turn that would be completed is awaiting_approval, without an output text, as long as
        another of its parked runs is open.
        """
        ...

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none."""
        ...

    async def release(self, session_id: str) -> bool:
        """End the lease of the session, whoever holds it; that turn gets TurnLost.

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

    async def figures(self) -> dict[str, float]:
        """Tell figures of the storage, by name; it leaves out those it does not have. (FIGURES)

        - turn.parked: turns that wait for an approval; turn.parked.age: the moment since which
          the oldest of them waits, in seconds since 1970, left out where none waits.
        - memory.queue.length: writes that wait to be made in this process.
        - memory.write.groups, memory.write.members: groups of writes that this process committed,
          and the writes in them.
        - memory.file.size: bytes.
        """
        raise lacks(FIGURES)
