"""Acquiring a session: turns are numbered, and one at a time holds a session."""

from __future__ import annotations

import asyncio
import threading

from session_middleware.conformance.cases import given_turns
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import TurnTests, acquire, end, now, one_turn, refused
from session_middleware.errors import SessionBusy
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.records import (
    Acquired,
)


class AcquireTests(TurnTests):
    """Acquiring, busy sessions, threads and loops."""

    @given_turns
    async def test_turns_are_numbered_from_one(self, turns: TurnStore) -> None:
        """Turns get the numbers 1, 2, 3 in each session, in the order in which they began."""
        for expected in (1, 2, 3):
            acquired = await one_turn(turns, [user(f"{expected}"), assistant("a")])
            assert acquired.lease.turn == expected
            assert acquired.lease.session_id == "s"
            assert (acquired.resumed, acquired.carried, acquired.next_run) == (False, (), 1)
        assert (await one_turn(turns, [], "other")).lease.turn == 1

    @given_turns
    async def test_a_held_session_is_busy(self, turns: TurnStore) -> None:
        """SessionBusy names the turn that holds the session, and when it began."""
        await one_turn(turns, [user("1"), assistant("a")])
        before = now()
        held = await acquire(turns)
        busy = await refused(SessionBusy, acquire(turns))
        assert busy.turn == held.lease.turn
        assert busy.since is not None
        assert before <= busy.since <= now()
        if turns.lease_seconds != float("inf"):
            assert busy.until is not None
            assert busy.until > now()
            assert busy.retry_after is not None
            assert 0 < busy.retry_after <= turns.lease_seconds
        await one_turn(turns, [user("elsewhere")], "other")
        await end(turns, held)
        assert (await acquire(turns)).lease.turn == held.lease.turn + 1

    @given_turns
    async def test_of_many_that_acquire_one_wins(self, turns: TurnStore) -> None:
        """When many ask for a session at once, exactly one has it and the others are told."""
        outcomes = await asyncio.gather(
            *(acquire(turns) for _ in range(20)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, Acquired)]
        assert len(won) == 1
        assert sum(isinstance(outcome, SessionBusy) for outcome in outcomes) == 19
        await turns.append_items(won[0].lease, 1, 0, [user("1")])
        assert await turns.load_items("s") == [user("1")]

    @given_turns
    async def test_many_threads_and_loops(self, turns: TurnStore) -> None:
        """One memory serves threads that each run a loop of their own, at the same time."""
        failures: list[BaseException] = []

        async def converse(session_id: str) -> None:
            for number in range(5):
                await one_turn(turns, [user(f"{number}"), assistant(f"{number}")], session_id)

        def run(session_id: str) -> None:
            try:
                asyncio.run(converse(session_id))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(f"t{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        assert failures == []
        for number in range(6):
            expected = [make(f"{n}") for n in range(5) for make in (user, assistant)]
            assert await turns.load_items(f"t{number}") == expected
