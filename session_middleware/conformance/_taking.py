"""Turns take their session, one at a time, are fenced, and leave a record."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

from session_middleware.conformance._items import (
    assistant,
    user,
)
from session_middleware.conformance._turns import (
    TurnFactory,
    end,
    given_turns,
    now,
    one_turn,
    refused,
    take,
)
from session_middleware.errors import SessionBusy
from session_middleware.memory import (
    Lease,
    RunState,
    SupportsTurns,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnState,
)


class TakingConformance(TurnFactory):
    """Who holds a session, what is remembered of turns, and what a lost one can do: nothing."""

    @given_turns
    async def test_turns_are_numbered_from_one(self, turns: SupportsTurns) -> None:
        """Turns get the numbers 1, 2, 3 in each session, in the order in which they began."""
        for expected in (1, 2, 3):
            taken = await one_turn(turns, [user(f"{expected}"), assistant("a")])
            assert taken.lease.turn == expected
            assert taken.lease.session_id == "s"
            assert (taken.resumed, taken.carried, taken.next_run) == (False, (), 1)
        assert (await one_turn(turns, [], "other")).lease.turn == 1

    @given_turns
    async def test_a_held_session_is_busy(self, turns: SupportsTurns) -> None:
        """Whoever asks for a held session is told which turn holds it and since when."""
        await one_turn(turns, [user("1"), assistant("a")])
        before = now()
        held = await take(turns)
        busy = await refused(SessionBusy, take(turns))
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
        assert (await take(turns)).lease.turn == held.lease.turn + 1

    @given_turns
    async def test_of_many_takers_one_wins(self, turns: SupportsTurns) -> None:
        """When many ask for a session at once, exactly one has it and the others are told."""
        outcomes = await asyncio.gather(*(take(turns) for _ in range(20)), return_exceptions=True)
        won = [outcome for outcome in outcomes if isinstance(outcome, Taken)]
        assert len(won) == 1
        assert sum(isinstance(outcome, SessionBusy) for outcome in outcomes) == 19
        await turns.append_items(won[0].lease, 1, 0, [user("1")])
        assert await turns.load_items("s") == [user("1")]

    @given_turns
    async def test_many_threads_and_loops(self, turns: SupportsTurns) -> None:
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

    @given_turns
    async def test_the_record_of_a_running_turn(self, turns: SupportsTurns) -> None:
        """A turn has a record from the moment it takes its session."""
        started = now()
        taken = await turns.take_turn(TakeTurn("s", started))
        await turns.append_items(taken.lease, 1, 0, [user("1")])
        (record,) = await turns.turns("s")
        assert (record.session_id, record.turn, record.state) == ("s", 1, "running")
        assert (record.started_at, record.ended_at) == (started, None)
        assert (record.item_count, record.items) == (1, [user("1")])
        await end(turns, taken)

    @given_turns
    async def test_the_record_keeps_every_field(self, turns: SupportsTurns) -> None:
        """What is said at a turn's end is in its record, to the microsecond."""
        started = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
        ended = datetime(2026, 2, 3, 4, 5, 7, 999_999, tzinfo=UTC)
        taken = await turns.take_turn(TakeTurn("s", started))
        await turns.append_items(taken.lease, 1, 0, [user("1"), assistant("2")])
        await turns.append_items(taken.lease, 2, 0, [user("3")])
        runs: dict[int, RunState] = {1: "completed", 2: "failed"}
        await turns.end_turn(
            taken.lease,
            TurnEnd(
                "failed",
                ended,
                runs=runs,
                durable=True,
                agent="Assistant \u0000 \N{WHITE SMILING FACE}",
                error_type="ValueError",
                sdk_trace_ids=("trace_1", "trace_2"),
                otel_trace_id="0af7651916cd43dd8448eb211c80319c",
                usage={"requests": 2, "input_tokens": 2**40},
                output_text="It's\nCalifornia",
                history_digest="abc",
            ),
        )
        (record,) = await turns.turns("s")
        assert (record.started_at, record.ended_at) == (started, ended)
        assert record.started_at.utcoffset() == ended.utcoffset()
        assert (record.state, record.agent) == ("failed", "Assistant \u0000 \N{WHITE SMILING FACE}")
        assert (record.error_type, record.item_count, record.runs) == ("ValueError", 3, 2)
        assert record.sdk_trace_ids == ("trace_1", "trace_2")
        assert record.otel_trace_id == "0af7651916cd43dd8448eb211c80319c"
        assert record.usage == {"requests": 2, "input_tokens": 2**40}
        assert (record.output_text, record.history_digest) == ("It's\nCalifornia", "abc")
        assert record.items == [user("1"), assistant("2"), user("3")]

    @given_turns
    async def test_every_state_of_an_end(self, turns: SupportsTurns) -> None:
        """A turn's record says completed, failed, cancelled or awaiting_approval."""
        states: tuple[TurnState, ...] = ("completed", "failed", "cancelled", "awaiting_approval")
        for state in states:
            taken = await take(turns, state)
            await turns.append_items(taken.lease, 1, 0, [user(state)])
            await end(turns, taken, state)
            (record,) = await turns.turns(state)
            assert (record.state, record.items) == (state, [user(state)])
            assert record.ended_at is not None

    @given_turns
    async def test_records_are_read_in_pages(self, turns: SupportsTurns) -> None:
        """turns() gives the newest first, at most ``limit``, only those before a number."""
        for number in range(1, 6):
            await one_turn(turns, [user(f"{number}"), assistant("a")])
        await one_turn(turns, [user("elsewhere")], "other")

        async def numbers(*page: int | None) -> list[int]:
            return [record.turn for record in await turns.turns("s", *page)]

        assert await numbers() == [5, 4, 3, 2, 1]
        assert await numbers(2) == [5, 4]
        assert await numbers(2, 4) == [3, 2]
        assert await numbers(None, 2) == [1]
        assert await numbers(3, 1) == []
        assert await numbers(0) == []
        assert await turns.turns("nobody") == []

    @given_turns
    async def test_a_lost_turn_writes_nothing(self, turns: SupportsTurns) -> None:
        """After its end or its release a turn can write no more, and the history stays."""
        ended = await one_turn(turns, [user("1"), assistant("a")])
        await self.assert_lost(turns, ended.lease)
        released = await take(turns)
        await turns.append_items(released.lease, 1, 0, [user("2")])
        assert await turns.release("s") is True
        assert await turns.release("s") is False
        await self.assert_lost(turns, released.lease)
        record = (await turns.turns("s"))[0]
        assert (record.turn, record.state) == (released.lease.turn, "abandoned")
        newer = await take(turns)
        await self.assert_lost(turns, released.lease)
        await turns.append_items(newer.lease, 1, 0, [user("3")])
        await end(turns, newer)
        assert await turns.load_items("s") == [user("1"), assistant("a"), user("2"), user("3")]

    @given_turns
    async def test_a_token_is_not_guessed(self, turns: SupportsTurns) -> None:
        """A lease with another token, or for another session, is no lease."""
        taken = await take(turns)
        lease = taken.lease
        await self.assert_lost(turns, Lease(lease.session_id, lease.turn, lease.token ^ 1))
        await self.assert_lost(turns, Lease("other", lease.turn, lease.token))
        await end(turns, taken)

    @given_turns
    async def test_release_of_a_free_session(self, turns: SupportsTurns) -> None:
        """Releasing a session that nobody holds says so."""
        assert await turns.release("nobody") is False
