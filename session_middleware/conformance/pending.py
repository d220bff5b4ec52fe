"""A run that waits is told of, decided on, and gone when its session is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from session_middleware.conformance.cases import given_turns, needs
from session_middleware.conformance.conversations import (
    WAITS,
    ids,
    parked,
)
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import TurnTests, acquire, end, refused
from session_middleware.errors import (
    DuplicateTurn,
    TurnLost,
    UnknownState,
)
from session_middleware.stores.protocol import MANAGE
from session_middleware.stores.records import KeptState


class PendingTests(TurnTests):
    """Runs that wait for approval."""

    @given_turns
    @needs(MANAGE)
    async def test_a_parked_run_is_pending_until_it_is_settled(self, turns: Any) -> None:
        """With the calls that wait and the state to resume it; not while a resume is at work."""
        acquired = await parked(turns)
        (waiting,) = await turns.pending()
        assert (waiting.session_id, waiting.turn) == ("s", acquired.lease.turn)
        assert (waiting.calls, waiting.state) == ((WAITS,), '{"state": "of the run"}')
        assert abs(waiting.since - datetime.now(UTC)) < timedelta(minutes=1)
        resumed = await acquire(turns, resume="p")
        assert await turns.pending() == []
        await end(turns, resumed, "failed")
        assert [again.calls for again in await turns.pending()] == [(WAITS,)]
        resumed = await acquire(turns, resume="p")
        await end(turns, resumed, settles=("p",))
        assert await turns.pending() == []

    @given_turns
    @needs(MANAGE)
    async def test_a_run_may_wait_again_under_a_name_that_a_failed_resume_gave(
        self, turns: Any
    ) -> None:
        """It is pending under that name, and resumed under it alone."""
        await parked(turns)
        failed = await acquire(turns, resume="p")
        await end(turns, failed, "failed", aliases=(("q", "p"),))
        resumed = await acquire(turns, resume="q")
        state = KeptState("q", (WAITS,), "{}")
        outcome: dict[str, Any] = {"settles": ("q",), "park": ("q",), "states": (state,)}
        await end(turns, resumed, "awaiting_approval", **outcome)
        (waiting,) = await turns.pending()
        assert (waiting.identity, waiting.calls, waiting.state) == ("q", (WAITS,), "{}")
        await refused(DuplicateTurn, acquire(turns, resume="p"))
        resumed = await acquire(turns, resume="q")
        await end(turns, resumed, settles=("q",))
        assert await turns.pending() == []

    @given_turns
    @needs(MANAGE)
    async def test_pending_runs_are_told_by_session(self, turns: Any) -> None:
        """The one that waits longest first; of one session, or of all with a prefix."""
        for session_id in ("a:1", "b:1", "a:2"):
            await parked(turns, session_id, f"p{session_id}")
            await asyncio.sleep(0.003)
        assert ids(await turns.pending()) == ["a:1", "b:1", "a:2"]
        assert ids(await turns.pending(prefix="a:")) == ["a:1", "a:2"]
        assert ids(await turns.pending("b:1")) == ["b:1"]
        assert await turns.pending("b:1", prefix="a:") == []

    @given_turns
    @needs(MANAGE)
    async def test_the_first_decision_stands(self, turns: Any) -> None:
        """It is kept with the run; a second one is refused, and so is one on another call."""
        await parked(turns)
        await turns.decide("s", 1, "call_f", approve=False, message="not today")
        (waiting,) = await turns.pending("s")
        assert (waiting.calls[0].approved, waiting.calls[0].message) == (False, "not today")
        for approve in (True, False):
            error = await refused(DuplicateTurn, turns.decide("s", 1, "call_f", approve=approve))
            assert error.turn == 1
        for place in (("s", 1, "call_g"), ("s", 2, "call_f"), ("other", 1, "call_f")):
            await refused(UnknownState, turns.decide(*place))
        (waiting,) = await turns.pending("s")
        assert waiting.calls[0].message == "not today"

    @given_turns
    @needs(MANAGE)
    async def test_of_racing_decisions_one_stands(self, turns: Any) -> None:
        """All others are refused."""
        await parked(turns)
        decisions = [turns.decide("s", 1, "call_f", approve=even) for even in (True, False) * 4]
        outcomes = await asyncio.gather(*decisions, return_exceptions=True)
        assert [outcome for outcome in outcomes if outcome is None] == [None]
        assert all(outcome is None or isinstance(outcome, DuplicateTurn) for outcome in outcomes)

    @given_turns
    @needs(MANAGE)
    async def test_a_removed_approval_cannot_be_decided(self, turns: Any) -> None:
        """Clearing, saving over, deleting and undoing remove it with its state."""
        for number, name in enumerate(("clear_session", "save_session", "delete", "undo")):
            session_id = f"s{number}"
            await parked(turns, session_id, f"p{number}")
            rest = ([user("new")],) if name == "save_session" else ()
            await getattr(turns, name)(session_id, *rest)
            assert await turns.pending() == []
            await refused(UnknownState, turns.decide(session_id, 1, "call_f"))
            await refused(TurnLost, acquire(turns, session_id, resume=f"p{number}"))
