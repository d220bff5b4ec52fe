"""The records that a memory, the core and the user hand each other: leases, takings, ends, turns.

Data only, handed on by ``memory``; what is done with them is said there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias

from session_middleware.history import LastItems, LastTurns, Turn

Item: TypeAlias = dict[str, Any]
"""One Responses input item: a JSON object, exactly as the SDK hands it over."""

Items: TypeAlias = list[Any]
"""Items at the surface: plain dicts, or what the SDK calls TResponseInputItem; both type-check."""

TurnState: TypeAlias = Literal[
    "running", "completed", "failed", "cancelled", "awaiting_approval", "abandoned", "replaced"
]
RunState: TypeAlias = Literal[
    "running", "completed", "failed", "cancelled", "awaiting_approval", "replaced"
]


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What a memory remembers of one turn.

    Attributes:
        turn: its number in the session, from 1, in the order in which turns began.
        state: running, completed, failed, cancelled, awaiting_approval, abandoned (its lease was
            taken over) or replaced (retried by a later turn that took over what it had stored).
        started_at, ended_at: UTC, to the microsecond.
        agent: the name of the agent that spoke last.
        error_type: the class name of what ended it, where it failed; of a turn that completed,
            of what kept its items from being stored, where that was to be forgotten.
        item_count: items stored under this turn.
        runs: Runner runs made in it, and writes of its own through the memory's methods.
        usage: tokens and requests, as far as the SDK reported them.
        output_text: the final output as text, where the turn completed.
        history_digest: which history the model saw, where that was recorded.
        items: the turn's items, in order.
    """

    session_id: str
    turn: int
    state: TurnState
    started_at: datetime
    ended_at: datetime | None = None
    agent: str | None = None
    error_type: str | None = None
    item_count: int = 0
    runs: int = 0
    idempotency_key: str | None = None
    sdk_trace_ids: tuple[str, ...] = ()
    otel_trace_id: str | None = None
    usage: dict[str, int] | None = None
    output_text: str | None = None
    history_digest: str | None = None
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a session: good until another token is taken, or the session goes."""

    session_id: str
    turn: int
    token: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What ``load_turns`` is to read: see there."""

    newest: LastTurns | LastItems | None = None
    texts: bool = False


@dataclass(frozen=True, slots=True)
class RunItems:
    """Items of a run on their way into the memory.

    Attributes:
        position: the place of the first of them in the run, from 0.
        texts: each item as JSON, as ``stores.encode_items`` writes it.
        input_digest: kept with the run when its first items are stored.
        instead: they come in place of all that the run has.
    """

    run: int
    position: int
    texts: list[str]
    input_digest: str | None = None
    instead: bool = False

    def withdrawn(self) -> RunItems:
        """What takes these back, as all that the run has."""
        return replace(self, texts=[], instead=True)

    @property
    def withdraws(self) -> bool:
        """Whether they only take something back."""
        return self.instead and not self.texts


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """What a turn says when it takes its session.

    Attributes:
        input_digest: ``history.digest`` of the new input, where it is known before the run.
        resume: the identity under which a run was parked for approval, when this one resumes it.
        read: what of the history is to be read at once, if the memory can and it is not much.
        input: the new input, to be stored at once as that of the turn's first run, if the memory
            can and the turn is a new one that retries no other.
    """

    session_id: str
    started_at: datetime
    idempotency_key: str | None = None
    input_digest: str | None = None
    resume: str | None = None
    read: Reading | None = None
    input: RunItems | None = None


@dataclass(frozen=True, slots=True)
class CarriedRun:
    """A run that an earlier attempt of this turn left behind; its items lie in the new turn."""

    run: int
    input_digest: str | None
    item_count: int
    has_outputs: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A session that was taken.

    Attributes:
        resumed: the lease continues a parked turn.
        carried: runs of an earlier attempt with the same idempotency key.
        next_run: the number for the turn's next run; every run before it is used.
        loaded: what the request asked to read; None where that is still to be loaded. The
            request's own input is not part of it.
        stored: whether the request's input was stored.
    """

    lease: Lease
    next_run: int = 1
    resumed: bool = False
    carried: tuple[CarriedRun, ...] = ()
    loaded: Loaded | None = None
    stored: bool = False

    def undone(self, request: TakeTurn, at: datetime) -> tuple[list[RunItems], TurnEnd]:
        """What gives the session back as it was, where nobody will make the turn any more.

        A turn that was resumed waits as before; an input that was stored goes again.
        """
        if self.resumed and request.resume is not None:
            return [], TurnEnd("awaiting_approval", at, park=(request.resume,))
        stored = [request.input] if self.stored and request.input is not None else []
        return [given.withdrawn() for given in stored], TurnEnd("cancelled", at)


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended.

    Attributes:
        runs: the state of every run of this attempt, by number.
        discard: remove the items of the turn.
        park: the identities of the runs that wait for approval (state awaiting_approval).
        durable: the record must survive a power failure once the call returns.
    """

    state: TurnState
    ended_at: datetime
    runs: dict[int, RunState] = field(default_factory=dict)
    discard: bool = False
    park: tuple[str, ...] = ()
    durable: bool = False
    agent: str | None = None
    error_type: str | None = None
    sdk_trace_ids: tuple[str, ...] = ()
    otel_trace_id: str | None = None
    usage: dict[str, int] | None = None
    output_text: str | None = None
    history_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A history as it was read.

    Attributes:
        turns: oldest first; turns without items are left out.
        complete: nothing older was left unread.
        corrupt: entries that could not be decoded; they are kept in the storage.
    """

    turns: list[Turn]
    complete: bool = True
    corrupt: int = 0
