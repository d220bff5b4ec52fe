"""What managing conversations needs of a memory: records, and primitives beside ``TurnStore``.

Contracts only. A memory that declares ``MANAGE`` implements ``ManagedStore``; the methods that
people call are in ``stores.managing``, once for every memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from session_middleware.memory import restored
from session_middleware.stores.cursors import Cursor
from session_middleware.stores.protocol import MANAGE, lacks
from session_middleware.stores.records import (
    JournalEntry,
    Lease,
    PendingCall,
    RunState,
    TurnEnd,
    TurnRecord,
    TurnState,
)

if TYPE_CHECKING:
    from agents import RunState as ParkedState

Order: TypeAlias = Literal["updated", "created", "id"]

EXCERPT: Final = 200
"""Characters of a session's first question and last answer that ``SessionInfo`` has at most."""

LONGEST_SHOWN: Final = 65_536
"""Characters of an item beyond which no question or answer is looked for in it."""

LOOKED_AT: Final = 100
"""How many of a session's newest items are looked at for a list of sessions."""


# --- sessions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a memory knows of one session, without its items.

    Attributes:
        session_id: the session.
        created_at, updated_at: UTC. A date that another program wrote and nobody can read is
            told as the beginning of 1970.
        turns: how many turns it has, those without items included.
        items: how many items it has.
        bytes: the size of its items as JSON.
        title: what ``set_title`` set; None without.
        metadata: what ``set_metadata`` set.
        state: of its newest turn; None where it has no turn.
        first_question: the text of its first item, where that is a user's message, cut to 200
            characters.
        last_answer: the newest answer that a turn completed with, cut likewise.
        cursor: pass it as ``after=`` to read on behind this session.
    """

    session_id: str
    created_at: datetime
    updated_at: datetime
    turns: int = 0
    items: int = 0
    bytes: int = 0
    title: str | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    state: TurnState | None = None
    first_question: str | None = field(default=None, repr=False)
    last_answer: str | None = field(default=None, repr=False)
    cursor: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class NewestTurn:
    """What a list of sessions tells of a session beside ``SessionInfo``.

    Attributes:
        record: of its newest turn, with the calls and without the items.
        unreadable: how many of the session's newest LOOKED_AT items are no JSON objects; those of
            more than LONGEST_SHOWN characters need not be looked at.
    """

    record: TurnRecord
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """One page of sessions.

    Attributes:
        prefix: only sessions whose id begins with it, character for character.
        limit: at most this many.
        after: where the page before ended.
        order: "updated" and "created": the newest first, "id": ascending by code points.
        session_id: only this session.
        idle_since: only sessions whose last activity is not after it.
    """

    prefix: str | None = None
    limit: int = 100
    after: Cursor | None = None
    order: Order = "updated"
    session_id: str | None = None
    idle_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Labels:
    """A change of a session's title and metadata.

    Attributes:
        title: the new title; None removes it, and "" leaves it as it is.
        metadata: members to set; None as a value removes the member.
    """

    title: str | None = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


# --- pending turns -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PendingTurn:
    """A run that waits for approval.

    Attributes:
        session_id, turn: where it waits. Two runs of one turn may wait; each is told by itself.
        since: when it was parked, UTC.
        calls: the calls that wait, each with the decision that was noted for it.
        state: the parked state as the SDK's JSON; None where it was not to be kept.
        identity: the name under which the memory knows the parked run.
    """

    session_id: str
    turn: int
    since: datetime
    calls: tuple[PendingCall, ...] = ()
    state: str | None = field(default=None, repr=False)
    identity: str = field(default="", repr=False)

    async def restore(self, agent: Any, context: Any = None) -> ParkedState[Any, Any]:
        """Make the SDK's state of the run again, with every noted decision applied.

        Pass it as the input of ``Runner.run`` under the same session. A call without a decision
        still waits in it.

        Args:
            agent: the agent that the run began with.
            context: the context object for the run; None: as the state has it.

        Raises:
            UnknownState: the memory was told not to keep the state (``keep_state=False``).
            MemoryUnavailable: somebody else changed what is stored of it.
        """
        state: ParkedState[Any, Any] = await restored(self, agent, context)
        return state


@dataclass(frozen=True, slots=True)
class PendingQuery:
    """Which parked runs to read, the one that waits longest first.

    Attributes:
        session_id: only of this session.
        prefix: only of sessions whose id begins with it.
        limit: at most this many; None: all.
    """

    session_id: str | None = None
    prefix: str | None = None
    limit: int | None = None


# --- copies ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunCopy:
    """All that is stored of one run of a turn.

    Attributes:
        texts: its items as JSON, in their order.
    """

    run: int
    state: RunState
    input_digest: str | None = None
    texts: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ParkedCopy:
    """A parked run under one of its identities.

    Attributes:
        alias_of: the identity under which it was parked first; None: this is it.
        open: it may still be resumed.
        since: when it was parked, UTC.
        state: the SDK's JSON, where it is kept.
    """

    identity: str
    alias_of: str | None = None
    open: bool = True
    since: datetime | None = None
    calls: tuple[PendingCall, ...] = ()
    state: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TurnCopy:
    """All that is stored of one turn: another memory that has it cannot be told from this one.

    Attributes:
        record: without its items and calls, which are in ``runs`` and ``journal``.
    """

    record: TurnRecord
    input_digest: str | None = None
    runs: tuple[RunCopy, ...] = ()
    journal: tuple[JournalEntry, ...] = ()
    parked: tuple[ParkedCopy, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The items of the turn as JSON, in their order."""
        return [text for run in self.runs for text in run.texts]


# --- primitives --------------------------------------------------------------------------------


class ManagedStore(Protocol):
    """The primitives of a store that declares ``MANAGE``. None of them waits for a turn."""

    async def list_page(self, query: SessionQuery) -> list[SessionInfo]:
        """Read one page of the sessions in which something is stored, in one query."""
        raise lacks(MANAGE)

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """Read the newest turn of each of these sessions, in one query; None where there is none.

        What is read is bounded by LOOKED_AT and LONGEST_SHOWN, however long a session is.
        """
        raise lacks(MANAGE)

    async def label(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata in one transaction; False where there is no such session.

        Neither is part of the history: no lease is needed, and ``updated_at`` stays.
        """
        raise lacks(MANAGE)

    async def read_copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """Read the next turns with a number above ``after``, oldest first, in one transaction."""
        raise lacks(MANAGE)

    async def write_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's and end the lease, in one transaction.

        The turn of the lease goes; dates, title and metadata become those of ``info``. The
        fence counter of the memory is at least ``fence`` afterwards, so that every lease from
        now on has a higher one. It survives a power failure.
        """
        raise lacks(MANAGE)

    async def newest_fence(self) -> int:
        """The fence of the newest lease of the memory."""
        raise lacks(MANAGE)

    async def remove_turns(self, lease: Lease, turns: Sequence[int], end: TurnEnd) -> None:
        """Remove every word of these turns and end the lease's own turn, in one transaction.

        Their items go, their output texts, the texts of their journals, and what is parked in
        them, which can never be resumed again; a turn that waited becomes cancelled. Their
        records stay, with their idempotency keys: the same request is not done again.
        """
        raise lacks(MANAGE)

    async def delete_sessions(
        self, session_ids: Sequence[str], *, idle_since: datetime | None = None
    ) -> int:
        """Remove these sessions, whoever holds them, and what is parked in them; return how many.

        Args:
            idle_since: only sessions whose last activity is not after it and that nobody holds.
        """
        raise lacks(MANAGE)

    async def find_trace(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id, OpenTelemetry's or the SDK's; the newest."""
        raise lacks(MANAGE)

    async def parked_runs(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait for approval and that no resume is at work on."""
        raise lacks(MANAGE)

    async def note_decision(
        self, session_id: str, turn: int, call_id: str, *, approved: bool, message: str | None
    ) -> None:
        """Keep the decision on a call with the parked run, flushed.

        Raises:
            DuplicateTurn: a decision is there already; it stands.
            UnknownState: no such call waits there.
        """
        raise lacks(MANAGE)
