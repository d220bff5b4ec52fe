"""Sessions are listed in pages, titled, labelled, and found by a trace."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from session_middleware.conformance.cases import given_a_memory, given_turns, needs
from session_middleware.conformance.conversations import (
    LABELS,
    corrupted,
    ids,
    parked,
    whole_session,
)
from session_middleware.conformance.samples import AWKWARD_IDS, assistant, user
from session_middleware.conformance.steps import TurnTests, acquire, end, now, one_turn, refused
from session_middleware.errors import (
    InvalidOption,
    InvalidSessionId,
)
from session_middleware.stores.managed_store import LOOKED_AT
from session_middleware.stores.protocol import JOURNAL, MANAGE, MANIFEST
from session_middleware.stores.records import CallRecord, JournalEntry


class ListingTests(TurnTests):
    """What is told of sessions."""

    @given_a_memory
    @needs(MANAGE)
    async def test_a_session_is_told_without_its_items(self, memory: Any) -> None:
        """Dates, numbers, title, metadata, the newest turn's state, first and last words."""
        began = datetime.now(UTC) - timedelta(seconds=2)
        await whole_session(memory)
        await memory.set_title("s", "Refunds")
        await memory.set_metadata("s", LABELS)
        info = await memory.session_info("s")
        assert (info.session_id, info.title, info.metadata) == ("s", "Refunds", LABELS)
        assert (info.turns, info.items, info.state) == (5, 7, "completed")
        assert info.bytes > 300
        assert (info.first_question, info.last_answer) == ("1", "one")
        assert began <= info.created_at <= info.updated_at <= datetime.now(UTC) + _SKEW
        assert await memory.sessions() == [info]

    @given_a_memory
    @needs(MANAGE)
    async def test_what_is_not_there_is_not_told(self, memory: Any) -> None:
        """Neither an unknown session nor one in which nothing was stored."""
        assert await memory.session_info("unknown") is None
        discarded = await acquire(memory, "discarded")
        await memory.append_items(discarded.lease, 1, 0, [user("1")])
        await end(memory, discarded, "failed", discard=True)
        await end(memory, await acquire(memory, "empty"))
        assert await memory.sessions() == []
        assert await memory.session_info("discarded") is None

    @given_a_memory
    @needs(MANAGE)
    async def test_the_state_told_is_the_newest_turns(self, memory: Any) -> None:
        """Running while it runs, and awaiting_approval while it waits."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        assert (await memory.session_info("s")).state == "running"
        await end(memory, acquired)
        await parked(memory)
        assert (await memory.session_info("s")).state == "awaiting_approval"

    @given_a_memory
    @needs(MANAGE)
    async def test_words_told_are_cut(self, memory: Any) -> None:
        """A question and an answer are told with 200 characters at most."""
        await memory.append_to_session("s", [user("q" * 500), assistant("a" * 500)])
        info = await memory.session_info("s")
        assert (info.first_question, info.last_answer) == ("q" * 200, "a" * 200)

    @given_a_memory
    @needs(MANAGE)
    async def test_pages_follow_each_other(self, memory: Any) -> None:
        """In each order, no session is told twice or left out, by record, cursor or id."""
        made = [f"{prefix}:{number}" for number in range(4) for prefix in ("b", "a")]
        for session_id in made:
            await memory.append_to_session(session_id, [user(session_id)])
            await asyncio.sleep(0.003)
        await memory.append_to_session("b:0", [user("again")])
        orders = {
            "created": made[::-1],
            "updated": ["b:0", *(each for each in made[::-1] if each != "b:0")],
            "id": sorted(made),
        }
        for order, expected in orders.items():
            for name in ("", "cursor", "session_id"):
                found: list[str] = []
                page = await memory.sessions(limit=3, order=order)
                while page:
                    found += ids(page)
                    last = getattr(page[-1], name) if name else page[-1]
                    page = await memory.sessions(limit=3, order=order, after=last)
                assert found == expected, order
            assert ids(await memory.sessions(order=order)) == expected
            mine = [each for each in expected if each.startswith("a:")]
            assert ids(await memory.sessions(prefix="a:", order=order)) == mine
            assert ids(await memory.sessions("a:", 2, order=order)) == mine[:2]

    @given_a_memory
    @needs(MANAGE)
    async def test_a_prefix_is_taken_character_for_character(self, memory: Any) -> None:
        """No character of it stands for others."""
        for session_id in AWKWARD_IDS:
            await memory.append_to_session(session_id, [user("1")])
        for session_id in AWKWARD_IDS:
            for length in (1, len(session_id)):
                prefix = session_id[:length]
                expected = sorted(each for each in AWKWARD_IDS if each.startswith(prefix))
                assert ids(await memory.sessions(prefix, order="id")) == expected, prefix

    @given_a_memory
    @needs(MANAGE)
    async def test_wrong_values_are_refused(self, memory: Any) -> None:
        """With an error that names the argument."""
        await memory.append_to_session("s", [user("1")])
        page = await memory.sessions()
        for given in (
            {"limit": 0},
            {"limit": "2"},
            {"order": "size"},
            {"prefix": 3},
            {"after": 3},
            {"after": "unknown"},
            {"after": page[0], "order": "id"},
        ):
            error = await refused(InvalidOption, memory.sessions(**given))
            assert any(name in str(error) for name in given), error

    @given_a_memory
    @needs(MANAGE)
    async def test_labels_are_merged_and_removed(self, memory: Any) -> None:
        """A member that is None goes; neither title nor metadata counts as activity."""
        await memory.append_to_session("s", [user("1")])
        before = (await memory.session_info("s")).updated_at
        await memory.set_metadata("s", {"a": 1, "b": 2})
        await memory.set_metadata("s", {"b": None, "c": "3"})
        await memory.set_title("s", "One")
        info = await memory.session_info("s")
        assert (info.title, info.metadata, info.updated_at) == ("One", {"a": 1, "c": "3"}, before)
        await memory.set_title("s", None)
        assert (await memory.session_info("s")).title is None

    @given_a_memory
    @needs(MANAGE)
    async def test_labels_stay_with_a_session_and_go_with_it(self, memory: Any) -> None:
        """They survive turns and a saved history, and not a cleared one."""
        await memory.append_to_session("s", [user("1")])
        await memory.set_title("s", "One")
        await memory.set_metadata("s", {"a": 1})
        await one_turn(memory, [user("2")])
        await memory.save_session("s", [user("3")])
        info = await memory.session_info("s")
        assert (info.title, info.metadata) == ("One", {"a": 1})
        await memory.clear_session("s")
        await memory.append_to_session("s", [user("4")])
        info = await memory.session_info("s")
        assert (info.title, info.metadata) == (None, {})

    @given_a_memory
    @needs(MANAGE)
    async def test_a_turn_keeps_or_clears_the_labels_of_its_session(self, memory: Any) -> None:
        """Saving within a turn keeps date, title and metadata; clearing removes them."""
        await memory.append_to_session("s", [user("1")])
        await memory.set_title("s", "One")
        await memory.set_metadata("s", {"a": 1})
        before = await memory.session_info("s")
        acquired = await acquire(memory)
        await memory.replace_history("s", [[user("2")]], acquired.lease)
        info = await memory.session_info("s")
        assert (info.title, info.metadata) == ("One", {"a": 1})
        assert info.created_at == before.created_at
        await memory.forget_session("s", acquired.lease)
        await memory.append_items(acquired.lease, 2, 0, [user("3")])
        info = await memory.session_info("s")
        assert (info.title, info.metadata, info.items) == (None, {}, 1)
        await end(memory, acquired)
        await memory.save_session("s", [user("4")])
        assert (await memory.session_info("s")).created_at == info.created_at

    @given_a_memory
    @needs(MANAGE)
    async def test_a_discarded_session_takes_its_labels_along(self, memory: Any) -> None:
        """A session that its first turn alone had made is gone with its title."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.set_title("s", "One")
        await memory.set_metadata("s", {"a": 1})
        await end(memory, acquired, "failed", discard=True)
        assert await memory.session_info("s") is None
        await memory.append_to_session("s", [user("2")])
        info = await memory.session_info("s")
        assert (info.title, info.metadata) == (None, {})

    @given_a_memory
    @needs(MANAGE)
    async def test_wrong_labels_are_refused(self, memory: Any) -> None:
        """They must be JSON, and the session must be there."""
        await refused(InvalidSessionId, memory.set_title("s", "One"))
        await refused(InvalidSessionId, memory.set_metadata("s", {"a": 1}))
        await memory.append_to_session("s", [user("1")])
        for title in ("", " ", 3, "x" * 1001, "\0", "\ud800"):
            await refused(InvalidOption, memory.set_title("s", title))
        wrong: tuple[Any, ...] = ([], {1: 2}, {"a": float("nan")}, {"a": b""})
        for metadata in wrong:
            await refused(InvalidOption, memory.set_metadata("s", metadata))
        info = await memory.session_info("s")
        assert (info.title, info.metadata) == (None, {})

    @given_turns
    @needs(MANAGE)
    async def test_the_newest_turns_of_sessions_are_told_at_once(self, turns: Any) -> None:
        """In the order of the ids that were asked for, as records but for their items."""
        await whole_session(turns, "a")
        await parked(turns, "b")
        held = await acquire(turns, "c")
        await turns.append_items(held.lease, 1, 0, [user("1")])
        wanted = ["c", "unknown", "a", "b"]
        newest = await turns.newest_turns(wanted)
        assert [each and each.unreadable for each in newest] == [0, None, 0, 0]
        for session_id, each in zip(wanted, newest, strict=True):
            (record,) = await turns.turns(session_id, limit=1) or (None,)
            if each is not None and record is not None:
                record = replace(record, item_count=0, items=[])
            assert (each and each.record) == record
        assert await turns.newest_turns([]) == []

    @given_turns
    @needs(MANAGE, JOURNAL)
    async def test_a_newest_turn_is_told_with_its_calls(self, turns: Any) -> None:
        """As its record has them."""
        acquired = await acquire(turns)
        call = CallRecord("call_1", "pay", "key", "begun", now())
        await turns.journal(acquired.lease, [JournalEntry(1, 0, call)], durable=True)
        await turns.append_items(acquired.lease, 1, 0, [user("1")])
        await end(turns, acquired, "failed")
        ((newest,), (record,)) = await turns.newest_turns(["s"]), await turns.turns("s")
        assert [call.name for call in newest.record.calls] == ["pay"]
        assert newest.record.calls == record.calls

    @given_turns
    @needs(MANAGE)
    async def test_items_that_cannot_be_read_are_counted(self, turns: Any) -> None:
        """Those among the newest items, of whichever turn; long ones need not be looked at."""
        for number in range(3):
            await one_turn(turns, [user(f"{number}"), assistant("x" * 300_000)], "faulty")
            await one_turn(turns, [user(f"{number}")], "good")
        await corrupted(turns, "faulty", 2)
        faulty, good = await turns.newest_turns(["faulty", "good"])
        assert (faulty.unreadable, good.unreadable) == (2, 0)
        for number in range(LOOKED_AT):
            await turns.append_to_session("faulty", [user(f"{number}")])
        (faulty,) = await turns.newest_turns(["faulty"])
        assert faulty.unreadable == 0

    @given_turns
    @needs(MANAGE)
    async def test_a_turn_is_found_by_its_traces(self, turns: Any) -> None:
        """By the SDK's trace or OpenTelemetry's, while its session is there."""
        await whole_session(turns)
        for trace_id in ("trace_s", f"{1:032x}", f"{1:032X}"):
            record = await turns.find_turn(trace_id)
            assert (record.session_id, record.turn) == ("s", 1)
            assert record.items == [user("1"), assistant("1")]
        assert await turns.find_turn("trace_unknown") is None
        await turns.delete("s")
        assert await turns.find_turn("trace_s") is None

    @given_turns
    @needs(MANAGE, MANIFEST)
    async def test_a_turn_that_runs_is_found_by_its_trace(self, turns: Any) -> None:
        """From the moment at which it has its session, also where it never ends."""
        acquired = await acquire(turns, otel_trace_id=f"{7:032x}")
        assert (await turns.find_turn(f"{7:032x}")).turn == acquired.lease.turn


_SKEW = timedelta(seconds=2)
