"""The same idempotency key is the same work: done once, told to whoever comes again."""

from __future__ import annotations

import asyncio
from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import TurnTests, acquire, end, now, one_turn, refused
from session_middleware.errors import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    TurnInProgress,
    WrongSession,
)
from session_middleware.stores.protocol import LOOK_UP, TURNS
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    CarriedRun,
    ReadRequest,
    TurnState,
)


class KeyTests(TurnTests):
    """Idempotency keys."""

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_that_was_done_is_a_duplicate(self, memory: Any) -> None:
        """Completed or awaiting approval: DuplicateTurn, with the turn and what it stored."""
        states: tuple[TurnState, ...] = ("completed", "awaiting_approval")
        for state in states:
            acquired = await acquire(memory, state, idempotency_key="k", input_digest="d")
            await memory.append_items(acquired.lease, 1, 0, [user("1"), assistant("2")])
            await end(memory, acquired, state)
            await one_turn(memory, [user("between")], state)
            duplicate = await refused(
                DuplicateTurn, acquire(memory, state, idempotency_key="k", input_digest="d")
            )
            assert duplicate.turn == acquired.lease.turn
            assert duplicate.items == [user("1"), assistant("2")]
            assert (await memory.turns(state))[-1].idempotency_key == "k"

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_that_is_running_is_in_progress(self, memory: Any) -> None:
        """While the turn with the key runs, the same key is TurnInProgress at once."""
        held = await acquire(memory, idempotency_key="k")
        error = await refused(TurnInProgress, acquire(memory, idempotency_key="k"))
        assert error.turn == held.lease.turn
        assert error.since is not None
        await refused(SessionBusy, acquire(memory, idempotency_key="another"))
        await refused(SessionBusy, acquire(memory))
        await end(memory, held)

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_comes_with_one_input(self, memory: Any) -> None:
        """The same key with another input is a conflict; an unknown input never is."""
        acquired = await acquire(memory, idempotency_key="k", input_digest="d")
        await refused(
            IdempotencyConflict, acquire(memory, idempotency_key="k", input_digest="other")
        )
        await refused(TurnInProgress, acquire(memory, idempotency_key="k"))
        await end(memory, acquired)
        await refused(
            IdempotencyConflict, acquire(memory, idempotency_key="k", input_digest="other")
        )
        await refused(DuplicateTurn, acquire(memory, idempotency_key="k"))

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_is_the_sessions_own(self, memory: Any) -> None:
        """The same key in another session is another turn."""
        await end(memory, await acquire(memory, "a", idempotency_key="k"))
        assert (await acquire(memory, "b", idempotency_key="k")).lease.turn == 1

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_that_failed_is_retried(self, memory: Any) -> None:
        """Its runs move to the new turn; the old one keeps its record, as replaced and empty."""
        states: tuple[TurnState, ...] = ("failed", "cancelled")
        for state in states:
            await one_turn(memory, [user("old"), assistant("old")], state)
            first = await acquire(memory, state, idempotency_key="k", input_digest="d")
            done = [user("1"), call("f"), output("f")]
            await memory.append_items(first.lease, 1, 0, done, input_digest="run-1")
            await memory.append_items(first.lease, 2, 0, [user("2")])
            await end(memory, first, state, runs={1: "completed", 2: "failed"})
            await memory.append_to_session(state, [user("between"), assistant("b")])
            again = await acquire(memory, state, idempotency_key="k", input_digest="d")
            assert again.lease.turn == first.lease.turn + 2
            assert again.resumed is False
            assert again.next_run == 3
            assert again.carried == (
                CarriedRun(1, "run-1", 3, has_outputs=True),
                CarriedRun(2, None, 1, has_outputs=False),
            )
            items = await memory.load_items(state, turn=again.lease.turn)
            assert items == [*done, user("2")]
            assert await memory.retry_run(again.lease, 1, 3) == 3
            assert await memory.retry_run(again.lease, 2, 4) == 0
            await memory.append_items(again.lease, 3, 3, [assistant("1")])
            await end(memory, again, runs={3: "completed"})
            records = {record.turn: record for record in await memory.turns(state)}
            replaced, newest = records[first.lease.turn], records[again.lease.turn]
            assert (replaced.state, replaced.item_count, replaced.items) == ("replaced", 0, [])
            assert (replaced.idempotency_key, newest.idempotency_key) == ("k", "k")
            assert (newest.state, newest.items) == ("completed", [*done, assistant("1")])
            assert (await memory.load_session(state))[-4:] == [*done, assistant("1")]
            assert (await memory.load_session(state))[2:4] == [user("between"), assistant("b")]
            duplicate = await refused(DuplicateTurn, acquire(memory, state, idempotency_key="k"))
            assert duplicate.turn == again.lease.turn

    @given_a_memory
    @needs(TURNS)
    async def test_only_runs_that_hold_something_are_carried(self, memory: Any) -> None:
        """A run that another one took over is not carried, and no run's number is used twice."""
        first = await acquire(memory, idempotency_key="k")
        await memory.append_items(first.lease, 1, 0, [user("1")], input_digest="d")
        await memory.retry_run(first.lease, 1, 2)
        await memory.append_items(first.lease, 2, 0, [user("1")], input_digest="d")
        await memory.append_items(first.lease, 7, 0, [user("7")])
        await end(memory, first, "failed", runs={2: "failed", 7: "cancelled"})
        again = await acquire(memory, idempotency_key="k")
        assert [(carried.run, carried.item_count) for carried in again.carried] == [(2, 1), (7, 1)]
        assert again.next_run == 8
        await end(memory, again)

    @given_a_memory
    @needs(TURNS)
    async def test_a_resume_of_a_retried_turn_is_a_duplicate(self, memory: Any) -> None:
        """A state that was settled stays so when its turn failed and its key came again."""
        parked = await acquire(memory, idempotency_key="k")
        await end(memory, parked, "awaiting_approval", park=("p",))
        await end(memory, await acquire(memory, resume="p"), "failed", settles=("p",))
        again = await acquire(memory, idempotency_key="k")
        await memory.append_items(again.lease, again.next_run, 0, [user("1")])
        await end(memory, again)
        duplicate = await refused(DuplicateTurn, acquire(memory, resume="p"))
        assert (duplicate.turn, duplicate.items) == (again.lease.turn, [user("1")])

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_whose_approval_was_given_back_waits(self, memory: Any) -> None:
        """A resume failed, so a run of the turn waits again: the key is no reason to begin anew."""
        parked = await acquire(memory, idempotency_key="k")
        await end(memory, parked, "awaiting_approval", park=("p",))
        await end(memory, await acquire(memory, resume="p"), "failed")
        await refused(DuplicateTurn, acquire(memory, idempotency_key="k"))
        assert (await acquire(memory, resume="p")).resumed is True

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_whose_turn_was_released_is_retried(self, memory: Any) -> None:
        """An abandoned turn is no outcome: the next one with its key carries what it left."""
        first = await acquire(memory, idempotency_key="k")
        await memory.append_items(first.lease, 1, 0, [user("1")], input_digest="d")
        await memory.release("s")
        again = await acquire(memory, idempotency_key="k")
        assert again.carried == (CarriedRun(1, "d", 1, has_outputs=False),)
        await self.assert_lost(memory, first.lease)
        await end(memory, again)

    @given_a_memory
    @needs(TURNS)
    async def test_a_refused_retry_changes_nothing(self, memory: Any) -> None:
        """While another turn holds the session, a failed turn is not yet replaced."""
        first = await acquire(memory, idempotency_key="k")
        await memory.append_items(first.lease, 1, 0, [user("1")])
        await end(memory, first, "failed")
        held = await acquire(memory)
        await refused(SessionBusy, acquire(memory, idempotency_key="k"))
        assert (await memory.turns("s"))[1].state == "failed"
        await end(memory, held)
        assert len((await acquire(memory, idempotency_key="k")).carried) == 1

    @given_a_memory
    @needs(TURNS, LOOK_UP)
    async def test_what_was_done_can_be_looked_up(self, memory: Any) -> None:
        """A memory that can be asked says it while another turn holds the session."""
        look_up = memory.look_up
        await end(memory, await acquire(memory, idempotency_key="k", input_digest="d"))
        await end(memory, await acquire(memory, idempotency_key="bad"), "failed")
        await end(memory, await acquire(memory), "awaiting_approval", park=("p",))
        await end(memory, await acquire(memory, resume="p"), settles=("p",))
        held = await acquire(memory, idempotency_key="now")
        asked = now()
        for error, request in (
            (DuplicateTurn, AcquireRequest("s", asked, idempotency_key="k")),
            (DuplicateTurn, AcquireRequest("s", asked, resume="p")),
            (
                IdempotencyConflict,
                AcquireRequest("s", asked, idempotency_key="k", input_digest="x"),
            ),
            (TurnInProgress, AcquireRequest("s", asked, idempotency_key="now")),
            (WrongSession, AcquireRequest("other", asked, resume="p")),
        ):
            await refused(error, look_up(request))
        for request in (
            AcquireRequest("s", asked, idempotency_key="bad"),
            AcquireRequest("s", asked, idempotency_key="new"),
            AcquireRequest("nobody", asked, idempotency_key="k"),
        ):
            await look_up(request)
        await end(memory, held)

    @given_a_memory
    @needs(TURNS)
    async def test_of_many_with_one_key_one_runs(self, memory: Any) -> None:
        """When the same key comes many times at once, one has the turn, the others are told."""
        outcomes = await asyncio.gather(
            *(acquire(memory, idempotency_key="k") for _ in range(12)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Acquired) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, TurnInProgress) for outcome in outcomes) == 11

    @given_a_memory
    @needs(TURNS)
    async def test_what_is_read_with_the_acquire_has_no_moved_items(self, memory: Any) -> None:
        """A retry takes over items; a history read before that would still lack them."""
        acquired = await acquire(memory, idempotency_key="k")
        await memory.append_items(acquired.lease, 1, 0, [user("1"), call("1"), output("1")])
        await end(memory, acquired, "failed", runs={1: "failed"})
        again = await acquire(memory, idempotency_key="k", read=ReadRequest())
        if again.loaded is not None:
            assert again.loaded == await memory.load_turns("s")
        await end(memory, again)
