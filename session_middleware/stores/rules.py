"""The rules of acquiring a session: what is refused, continued, retried and taken over.

Pure: no storage, no clock. A store that decides in Python gathers ``Facts`` in its transaction,
asks ``decide`` and carries the decision out. A server that decides by itself in one round trip
follows the same table and reports the name of an ``Outcome`` with the facts of its refusal;
``refusal`` makes the same error of both. The words of every refusal stand here and nowhere else.

The table, read from the top; the first line that fits decides:

| the request            | what the storage knows                         | outcome           |
|------------------------|------------------------------------------------|-------------------|
| resumes a parked run   | parked here, its turn is running under a lease | RESUMING          |
|                        | parked here, not settled                       | CONTINUE or BUSY  |
|                        | parked here, settled                           | RESUMED           |
|                        | its session was cleared, deleted or saved over | DELETED           |
|                        | parked in another session only                 | OTHER_SESSION     |
|                        | not parked, and the request does not adopt it  | UNKNOWN           |
| has an idempotency key | a turn with the key, both digests known, unequal | OTHER_INPUT     |
|                        | that turn is running under a lease             | IN_PROGRESS       |
|                        | that turn is completed                         | DONE              |
|                        | a run of that turn waits for approval          | AWAITING_APPROVAL |
|                        | that turn ended otherwise                      | RETRY or BUSY     |
| anything else          |                                                | BEGIN or BUSY     |

BUSY: a lease that has not expired holds the session, or others who wait for it asked before. An
expired lease is taken over, and its turn becomes ``abandoned`` unless it is the retried one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from statistics import median
from typing import Any

from session_middleware.errors import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    SessionMemoryError,
    TurnInProgress,
    TurnLost,
    UnknownState,
    WrongSession,
)
from session_middleware.stores.records import AcquireRequest, Item, Lease, TurnState


class Outcome(StrEnum):
    """What acquiring a session comes to. Servers report these strings."""

    BEGIN = "begin"
    """A new turn begins."""
    CONTINUE = "continue"
    """The parked turn that the request resumes goes on."""
    RETRY = "retry"
    """A new turn begins and takes over the runs and items of the earlier turn with its key."""
    BUSY = "busy"
    """Another turn holds the session."""
    IN_PROGRESS = "in_progress"
    """The turn with the same key is running."""
    DONE = "done"
    """The turn with the same key is completed."""
    AWAITING_APPROVAL = "awaiting_approval"
    """The turn with the same key waits for approval."""
    RESUMED = "resumed"
    """The parked run was resumed before."""
    RESUMING = "resuming"
    """Another resume of the parked run is going on."""
    DELETED = "deleted"
    """The session was cleared, deleted or saved over since the run was parked."""
    UNKNOWN = "unknown"
    """This memory has not parked the run."""
    OTHER_INPUT = "other_input"
    """The turn with the same key had another input."""
    OTHER_SESSION = "other_session"
    """The run was parked in another session."""

    @property
    def grants(self) -> bool:
        """Whether the session is acquired."""
        return self in (Outcome.BEGIN, Outcome.CONTINUE, Outcome.RETRY)

    @property
    def is_duplicate(self) -> bool:
        """Whether the refusal carries the items of the turn that did the work."""
        return self in (Outcome.DONE, Outcome.AWAITING_APPROVAL, Outcome.RESUMED)


# --- facts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldLease:
    """The lease that was granted last and not given up, by the clock of the storage."""

    turn: int
    expired: bool = False


@dataclass(frozen=True, slots=True)
class ParkedRun:
    """The run that the request resumes.

    Attributes:
        turn: the turn it was parked in; None: this session has not parked it.
        open: no resume of it has completed or parked again.
        deleted: its session was cleared, deleted or saved over since.
    """

    turn: int | None = None
    open: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class KeyedTurn:
    """The newest turn of the session with the request's key that is not replaced.

    Attributes:
        waits: a run of it waits for approval, maybe again, after a resume that failed.
    """

    turn: int
    state: TurnState
    input_digest: str | None = None
    waits: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Facts:
    """What a storage knows of a request. None: there is no such thing.

    Attributes:
        line: others wait for the session, and asked before this request's ticket.
    """

    lease: HeldLease | None = None
    parked: ParkedRun | None = None
    same_key: KeyedTurn | None = None
    line: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done.

    Attributes:
        turn: the turn that is continued or retried, or that stands in the way.
        abandons: the turn whose expired lease is taken over, and which becomes abandoned.
    """

    outcome: Outcome
    turn: int | None = None
    abandons: int | None = None


def decide(request: AcquireRequest, facts: Facts) -> Decision:
    """Decide by the table of this module."""
    decision = _resume(request, facts) if request.resume is not None else None
    if decision is None and request.idempotency_key is not None and facts.same_key is not None:
        decision = _repeat(request, facts.same_key, facts.lease)
    decision = decision or Decision(Outcome.BEGIN)
    lease = facts.lease
    if not decision.outcome.grants:
        return decision
    if lease is not None and not lease.expired:
        return Decision(Outcome.BUSY, lease.turn)
    if facts.line:
        return Decision(Outcome.BUSY)
    if lease is None:
        return decision
    retried = decision.turn if decision.outcome is Outcome.RETRY else None
    abandons = None if lease.turn == retried else lease.turn
    return Decision(decision.outcome, decision.turn, abandons)


def _resume(request: AcquireRequest, facts: Facts) -> Decision | None:
    parked = facts.parked
    if parked is None:
        return None if request.adopt else Decision(Outcome.UNKNOWN)
    if parked.turn is None:
        return Decision(Outcome.DELETED if parked.deleted else Outcome.OTHER_SESSION)
    if not parked.open:
        return Decision(Outcome.RESUMED, parked.turn)
    going_on = _is_running(parked.turn, facts.lease)
    return Decision(Outcome.RESUMING if going_on else Outcome.CONTINUE, parked.turn)


def told_state(turn: int, state: TurnState, lease: HeldLease | None) -> TurnState:
    """The state that a record tells: a turn that runs under no lease has died with its process.

    As long as no other turn takes the session over it may still renew its lease and go on.
    """
    return "abandoned" if state == "running" and not _is_running(turn, lease) else state


def _is_running(turn: int, lease: HeldLease | None) -> bool:
    return lease is not None and not lease.expired and lease.turn == turn


def _repeat(request: AcquireRequest, earlier: KeyedTurn, lease: HeldLease | None) -> Decision:
    if len({request.input_digest, earlier.input_digest} - {None}) == 2:
        return Decision(Outcome.OTHER_INPUT, earlier.turn)
    if earlier.state == "running" and _is_running(earlier.turn, lease):
        return Decision(Outcome.IN_PROGRESS, earlier.turn)
    if earlier.state == "completed":
        return Decision(Outcome.DONE, earlier.turn)
    if earlier.state == "awaiting_approval" or earlier.waits:
        return Decision(Outcome.AWAITING_APPROVAL, earlier.turn)
    return Decision(Outcome.RETRY, earlier.turn)


# --- refusals --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Obstacle:
    """The turn that stands in the way of a request, as far as the refusal tells of it.

    Attributes:
        turn: its number; None: it has not got one yet, or is in another session.
        since: when it began (UTC).
        until: when its lease ends unless it is renewed (UTC).
        retry_after: seconds after which another try makes sense.
        items: its items, for a duplicate.
    """

    session_id: str
    turn: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    retry_after: float | None = None
    items: Sequence[Item] = ()

    @property
    def name(self) -> str:
        return "a turn that is starting" if self.turn is None else f"turn {self.turn}"

    def __str__(self) -> str:
        return f"{self.name} of session {self.session_id!r}"


def refusal(outcome: Outcome, obstacle: Obstacle) -> SessionMemoryError:
    """The error for an outcome that does not grant the session."""
    if outcome.grants:
        raise ValueError(f"{outcome} grants the session")
    if outcome is Outcome.BUSY:
        return busy(obstacle)
    words = _WORDS[outcome].format(turn=obstacle, session=repr(obstacle.session_id))
    if outcome in (Outcome.IN_PROGRESS, Outcome.RESUMING):
        return TurnInProgress(words, **_times(obstacle))
    if outcome.is_duplicate:
        return DuplicateTurn(words, turn=obstacle.turn or 0, items=obstacle.items)
    return _ERRORS[outcome](words)


_WORDS = {
    Outcome.IN_PROGRESS: "{turn} with the same idempotency key is running: wait for its outcome",
    Outcome.RESUMING: "{turn} is being resumed from this state: wait for its outcome",
    Outcome.DONE: "{turn} had the same idempotency key and is completed: use what it stored",
    Outcome.AWAITING_APPROVAL: (
        "{turn} had the same idempotency key and waits for approval: resume its run when it is "
        "approved or rejected"
    ),
    Outcome.RESUMED: "{turn} was resumed from this state before: use what that turn stored",
    Outcome.OTHER_INPUT: (
        "{turn} had the same idempotency key and another input: use a new key for a new input"
    ),
    Outcome.DELETED: (
        "session {session} was cleared, deleted or saved over since this run was parked, so the "
        "run is gone with it: ask the user again"
    ),
    Outcome.UNKNOWN: (
        "this memory has not parked the run that is resumed: resume the state that its own run "
        "gave, or pass unknown_state='adopt' for a run that was parked elsewhere"
    ),
    Outcome.OTHER_SESSION: (
        "this run was parked in another session: resume it with the session_id it was started with"
    ),
}

_ERRORS: dict[Outcome, type[SessionMemoryError]] = {
    Outcome.OTHER_INPUT: IdempotencyConflict,
    Outcome.DELETED: TurnLost,
    Outcome.UNKNOWN: UnknownState,
    Outcome.OTHER_SESSION: WrongSession,
}


def _times(obstacle: Obstacle) -> dict[str, Any]:
    times = {name: getattr(obstacle, name) for name in ("turn", "since", "until", "retry_after")}
    if obstacle.retry_after is not None:
        times["retry_after"] = _within_bounds(obstacle.retry_after)
    return times


def retry_after(recent: Sequence[float], elapsed: float | None, waiting: int = 0) -> float:
    """Seconds after which a refused call is worth making again: 0.5 to 10.

    Args:
        recent: seconds that recent turns of the session took.
        elapsed: seconds for which the turn in the way has been running, if that is known. With
            no recent turns, it is taken to last as long again.
        waiting: how many other turns wait for the session already.
    """
    running = elapsed or 0.0
    typical = median(recent) if recent else 2 * running or 1.0
    return _within_bounds(max(typical - running, 0.0) + waiting * typical)


def _within_bounds(seconds: float) -> float:
    return min(max(seconds, 0.5), 10.0)


def busy(obstacle: Obstacle, advice: str = "try again later") -> SessionBusy:
    """The error for a session that another turn holds."""
    since = "" if obstacle.since is None else f" since {obstacle.since:%H:%M:%S} UTC"
    return SessionBusy(
        f"session {obstacle.session_id!r} is busy: {obstacle.name} holds it{since}; {advice}",
        **_times(obstacle),
    )


def lost(lease: Lease) -> TurnLost:
    """The error of a write under a token that is no longer the session's."""
    return TurnLost(
        f"turn {lease.turn} no longer holds session {lease.session_id!r}: another turn took it "
        "over, or it was cleared, saved over or released. Nothing was written: start a new turn"
    )
