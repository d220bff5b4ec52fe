"""The end of a turn: its record, its states, and a discarded turn."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from session_middleware.conformance.cases import given_a_memory, given_turns, needs
from session_middleware.conformance.samples import assistant, call, user
from session_middleware.conformance.steps import TurnTests, acquire, end, now, one_turn
from session_middleware.stores.protocol import MANIFEST, TURNS, TurnStore
from session_middleware.stores.records import (
    AcquireRequest,
    Manifest,
    RunState,
    TurnEnd,
    TurnState,
)

A_MANIFEST: Manifest = {
    "parts": [
        {"trace_id": "4bf9", "span_id": "00f0", "digest": "abc", "usage": {"requests": 1}},
        {"trace_id": "0af7", "span_id": "b7ad"},
    ],
    "runs": {"1": {"turns": [[3, 7], [9, 9]], "items": 12, "repairs": {}, "calls": [13, 15]}},
}


class EndTests(TurnTests):
    """Records and discarding."""

    @given_turns
    async def test_the_record_of_a_running_turn(self, turns: TurnStore) -> None:
        """A turn has a record from the moment it acquires its session."""
        started = now()
        acquired = await turns.acquire(AcquireRequest("s", started))
        await turns.append_items(acquired.lease, 1, 0, [user("1")])
        (record,) = await turns.turns("s")
        assert (record.session_id, record.turn, record.state) == ("s", 1, "running")
        assert (record.started_at, record.ended_at) == (started, None)
        assert (record.item_count, record.items) == (1, [user("1")])
        await end(turns, acquired)

    @given_turns
    @needs(MANIFEST)
    async def test_a_record_keeps_the_manifest(self, turns: TurnStore) -> None:
        """The manifest of a turn is read back as its end gave it."""
        acquired = await turns.acquire(AcquireRequest("s", now()))
        await end(turns, acquired, manifest=A_MANIFEST, otel_trace_id="0af7")
        (record,) = await turns.turns("s")
        assert record.manifest == A_MANIFEST
        assert record.otel_trace_ids == ("4bf9", "0af7")

    @given_turns
    @needs(MANIFEST)
    async def test_a_turn_that_never_ends_has_its_trace(self, turns: TurnStore) -> None:
        """The record names the trace from the acquiring on, also where a resume acquires."""
        await turns.acquire(AcquireRequest("s", now(), otel_trace_id="aa"))
        (record,) = await turns.turns("s")
        assert record.otel_trace_id == "aa"
        parked = await turns.acquire(AcquireRequest("t", now(), otel_trace_id="bb"))
        kept: Manifest = {"parts": [{"trace_id": "bb", "span_id": "b"}]}
        await turns.end_turn(
            parked.lease,
            TurnEnd("awaiting_approval", now(), park=("p",), otel_trace_id="bb", manifest=kept),
        )
        resumed = await turns.acquire(AcquireRequest("t", now(), resume="p", otel_trace_id="cc"))
        assert (parked.manifest, resumed.manifest) == (None, kept)
        (record,) = await turns.turns("t")
        assert record.otel_trace_id == "cc"
        assert record.otel_trace_ids == ("bb", "cc")

    @given_turns
    async def test_the_record_keeps_every_field(self, turns: TurnStore) -> None:
        """Every field of a turn's end is in its record, times to the microsecond."""
        started = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
        ended = datetime(2026, 2, 3, 4, 5, 7, 999_999, tzinfo=UTC)
        acquired = await turns.acquire(AcquireRequest("s", started))
        await turns.append_items(acquired.lease, 1, 0, [user("1"), assistant("2")])
        await turns.append_items(acquired.lease, 2, 0, [user("3")])
        runs: dict[int, RunState] = {1: "completed", 2: "failed"}
        await turns.end_turn(
            acquired.lease,
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
    async def test_every_state_of_an_end(self, turns: TurnStore) -> None:
        """A turn's record says completed, failed, cancelled or awaiting_approval."""
        states: tuple[TurnState, ...] = ("completed", "failed", "cancelled", "awaiting_approval")
        for state in states:
            acquired = await acquire(turns, state)
            await turns.append_items(acquired.lease, 1, 0, [user(state)])
            await end(turns, acquired, state)
            (record,) = await turns.turns(state)
            assert (record.state, record.items) == (state, [user(state)])
            assert record.ended_at is not None

    @given_turns
    async def test_records_are_read_in_pages(self, turns: TurnStore) -> None:
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

    @given_a_memory
    @needs(TURNS)
    async def test_discard_removes_exactly_the_turn(self, memory: Any) -> None:
        """A discarded turn leaves its record and none of its items; the others stay."""
        await one_turn(memory, [user("1"), assistant("1")])
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("2"), call("f")])
        await memory.append_items(acquired.lease, 2, 0, [user("3")])
        await memory.append_to_session("s", [assistant("outside")])
        await end(memory, acquired, "failed", discard=True, error_type="ValueError")
        assert await memory.load_session("s") == [user("1"), assistant("1"), assistant("outside")]
        record = (await memory.turns("s"))[1]
        assert (record.turn, record.state, record.item_count) == (acquired.lease.turn, "failed", 0)
        assert (record.items, record.error_type) == ([], "ValueError")
