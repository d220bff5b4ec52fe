"""What acquiring a session refuses, continues, retries and takes over, case by case."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import get_args

import pytest

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
from session_middleware.stores.records import AcquireRequest, Lease, TurnState
from session_middleware.stores.rules import (
    Decision,
    Facts,
    HeldLease,
    KeyedTurn,
    Obstacle,
    Outcome,
    ParkedRun,
    decide,
    lost,
    refusal,
)

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)

HELD, EXPIRED = HeldLease(5), HeldLease(5, expired=True)
OPEN, CLOSED, ELSEWHERE = ParkedRun(2, open=True), ParkedRun(2), ParkedRun()
RUNNING, DELETED = ParkedRun(5, open=True), ParkedRun(deleted=True)


def request(
    *,
    key: str | None = None,
    resume: str | None = None,
    digest: str | None = None,
    adopt: bool = False,
):
    return AcquireRequest(
        "s", NOW, idempotency_key=key, resume=resume, input_digest=digest, adopt=adopt
    )


PLAIN = request()
RESUMES = request(resume="p")
ADOPTS = request(resume="p", adopt=True)
KEYED = request(key="k", digest="d")


def earlier(state: TurnState, digest: str | None = "d", turn: int = 3) -> KeyedTurn:
    return KeyedTurn(turn, state, digest)


B, C, R = Outcome.BEGIN, Outcome.CONTINUE, Outcome.RETRY

TABLE = [
    # a new turn
    (PLAIN, Facts(), Decision(B)),
    (PLAIN, Facts(HELD), Decision(Outcome.BUSY, 5)),
    (PLAIN, Facts(EXPIRED), Decision(B, abandons=5)),
    # others asked before
    (PLAIN, Facts(line=True), Decision(Outcome.BUSY)),
    (PLAIN, Facts(EXPIRED, line=True), Decision(Outcome.BUSY)),
    (PLAIN, Facts(HELD, line=True), Decision(Outcome.BUSY, 5)),
    (RESUMES, Facts(None, OPEN, line=True), Decision(Outcome.BUSY)),
    (RESUMES, Facts(None, CLOSED, line=True), Decision(Outcome.RESUMED, 2)),
    (KEYED, Facts(None, None, earlier("failed"), line=True), Decision(Outcome.BUSY)),
    (KEYED, Facts(None, None, earlier("completed"), line=True), Decision(Outcome.DONE, 3)),
    # what the request does not name does not count
    (PLAIN, Facts(None, OPEN, earlier("completed")), Decision(B)),
    # a resume
    (RESUMES, Facts(), Decision(Outcome.UNKNOWN)),
    (ADOPTS, Facts(), Decision(B)),
    (ADOPTS, Facts(HELD), Decision(Outcome.BUSY, 5)),
    (RESUMES, Facts(HELD, RUNNING), Decision(Outcome.RESUMING, 5)),
    (RESUMES, Facts(EXPIRED, RUNNING), Decision(C, 5, abandons=5)),
    (RESUMES, Facts(None, DELETED), Decision(Outcome.DELETED)),
    (ADOPTS, Facts(None, DELETED), Decision(Outcome.DELETED)),
    (RESUMES, Facts(None, OPEN), Decision(C, 2)),
    (RESUMES, Facts(HELD, OPEN), Decision(Outcome.BUSY, 5)),
    (RESUMES, Facts(EXPIRED, OPEN), Decision(C, 2, abandons=5)),
    (RESUMES, Facts(None, CLOSED), Decision(Outcome.RESUMED, 2)),
    (RESUMES, Facts(HELD, CLOSED), Decision(Outcome.RESUMED, 2)),
    (RESUMES, Facts(None, ELSEWHERE), Decision(Outcome.OTHER_SESSION)),
    (RESUMES, Facts(HELD, ELSEWHERE), Decision(Outcome.OTHER_SESSION)),
    # a key
    (KEYED, Facts(), Decision(B)),
    (KEYED, Facts(HELD), Decision(Outcome.BUSY, 5)),
    (KEYED, Facts(None, None, earlier("completed")), Decision(Outcome.DONE, 3)),
    (KEYED, Facts(HELD, None, earlier("completed")), Decision(Outcome.DONE, 3)),
    (
        KEYED,
        Facts(None, None, earlier("awaiting_approval")),
        Decision(Outcome.AWAITING_APPROVAL, 3),
    ),
    (
        KEYED,
        Facts(None, None, KeyedTurn(3, "failed", "d", waits=True)),
        Decision(Outcome.AWAITING_APPROVAL, 3),
    ),
    (KEYED, Facts(HELD, None, earlier("running", turn=5)), Decision(Outcome.IN_PROGRESS, 5)),
    (KEYED, Facts(EXPIRED, None, earlier("running", turn=5)), Decision(R, 5)),
    (KEYED, Facts(None, None, earlier("failed")), Decision(R, 3)),
    (KEYED, Facts(None, None, earlier("cancelled")), Decision(R, 3)),
    (KEYED, Facts(None, None, earlier("abandoned")), Decision(R, 3)),
    (KEYED, Facts(HELD, None, earlier("failed")), Decision(Outcome.BUSY, 5)),
    (KEYED, Facts(EXPIRED, None, earlier("failed")), Decision(R, 3, abandons=5)),
    # another input is refused first, whatever became of the turn; an unknown one is not another
    (KEYED, Facts(None, None, earlier("failed", "x")), Decision(Outcome.OTHER_INPUT, 3)),
    (KEYED, Facts(HELD, None, earlier("running", "x", 5)), Decision(Outcome.OTHER_INPUT, 5)),
    (KEYED, Facts(None, None, earlier("completed", None)), Decision(Outcome.DONE, 3)),
    (request(key="k"), Facts(None, None, earlier("completed")), Decision(Outcome.DONE, 3)),
    # a resume that names a key as well goes by the parked run, unless there is none
    (request(key="k", resume="p"), Facts(None, OPEN, earlier("completed")), Decision(C, 2)),
    (
        request(key="k", resume="p", adopt=True),
        Facts(None, None, earlier("completed")),
        Decision(Outcome.DONE, 3),
    ),
]


@pytest.mark.parametrize(("asked", "facts", "decision"), TABLE)
def test_the_table(asked: AcquireRequest, facts: Facts, decision: Decision) -> None:
    """Each line of the rules, and what comes before what."""
    assert decide(asked, facts) == decision


def test_the_table_has_every_outcome() -> None:
    """No outcome is left without a case."""
    assert {decision.outcome for *_, decision in TABLE} == set(Outcome)


def test_no_combination_of_facts_acquires_a_held_session() -> None:
    """And an expired lease always names the turn that is abandoned, unless that is retried."""
    requests = [PLAIN, RESUMES, ADOPTS, KEYED, request(key="k", resume="p", digest="x")]
    parked = [None, OPEN, CLOSED, ELSEWHERE, RUNNING, DELETED]
    keyed = [None] + [
        KeyedTurn(turn, state, digest)
        for turn, state, digest in product((3, 5), get_args(TurnState), (None, "d"))
    ]
    for asked, lease, park, same in product(requests, (None, HELD, EXPIRED), parked, keyed):
        decision = decide(asked, Facts(lease, park, same))
        if lease is HELD:
            assert not decision.outcome.grants
        if lease is EXPIRED and decision.outcome.grants:
            retried = decision.turn if decision.outcome is R else None
            assert decision.abandons == (None if retried == 5 else 5)
        if lease is None or not decision.outcome.grants:
            assert decision.abandons is None


REFUSALS = [
    (Outcome.BUSY, SessionBusy, "session 's' is busy: turn 3 holds it since 12:30:00 UTC"),
    (Outcome.IN_PROGRESS, TurnInProgress, "turn 3 of session 's' .* is running"),
    (Outcome.DONE, DuplicateTurn, "turn 3 of session 's' .* is completed"),
    (Outcome.AWAITING_APPROVAL, DuplicateTurn, "turn 3 of session 's' .* waits for approval"),
    (Outcome.RESUMED, DuplicateTurn, "turn 3 of session 's' was resumed"),
    (Outcome.OTHER_INPUT, IdempotencyConflict, "turn 3 of session 's' .* another input"),
    (Outcome.OTHER_SESSION, WrongSession, "parked in another session"),
    (Outcome.RESUMING, TurnInProgress, "turn 3 of session 's' is being resumed"),
    (Outcome.DELETED, TurnLost, "session 's' was cleared, deleted or saved over"),
    (Outcome.UNKNOWN, UnknownState, "unknown_state='adopt'"),
]


@pytest.mark.parametrize(("outcome", "error", "words"), REFUSALS)
def test_a_refusal_is_its_error(
    outcome: Outcome, error: type[SessionMemoryError], words: str
) -> None:
    """A server's word for an outcome, with the facts it reports, is the same error as ours."""
    item = {"role": "user", "content": "hidden words"}
    facts = Obstacle("s", 3, since=NOW, until=NOW, retry_after=2.5, items=[item])
    raised = refusal(Outcome(outcome.value), facts)
    assert type(raised) is error
    with pytest.raises(error, match=words):
        raise raised
    assert "hidden words" not in str(raised)
    assert "release" not in str(raised)
    if isinstance(raised, DuplicateTurn):
        assert (raised.turn, raised.items) == (3, [item])
    if isinstance(raised, (SessionBusy, TurnInProgress)):
        assert (raised.turn, raised.since, raised.until) == (3, NOW, NOW)
        assert raised.retry_after == 2.5


def test_every_outcome_is_granted_or_refused() -> None:
    """An outcome that grants the session has no error."""
    assert {outcome for outcome in Outcome if not outcome.grants} == {r[0] for r in REFUSALS}
    for outcome in (Outcome.BEGIN, Outcome.CONTINUE, Outcome.RETRY):
        with pytest.raises(ValueError, match="grants"):
            refusal(outcome, Obstacle("s"))


def test_a_turn_without_a_number_yet_is_told_as_starting() -> None:
    """A turn that waits for the storage has no number."""
    raised = refusal(Outcome.BUSY, Obstacle("s"))
    assert str(raised) == "session 's' is busy: a turn that is starting holds it; try again later"


def test_a_lost_turn_says_what_to_do() -> None:
    """The error of the fence names the turn and the session."""
    with pytest.raises(TurnLost, match=r"turn 3 no longer holds session 's'.*start a new turn"):
        raise lost(Lease("s", 3, 1))
