"""Sessions are deleted and pruned, and turns undone, without a trace of their words."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from session_middleware.conformance.cases import given_a_memory, given_turns, needs
from session_middleware.conformance.conversations import (
    lines_of,
    whole_session,
)
from session_middleware.conformance.samples import assistant, call, user
from session_middleware.conformance.steps import TurnTests, acquire, end, refused
from session_middleware.errors import (
    DuplicateTurn,
    InvalidOption,
    TurnLost,
)
from session_middleware.stores.protocol import JOURNAL, MANAGE
from session_middleware.stores.records import (
    CallRecord,
    JournalEntry,
    KeptState,
    PendingCall,
)


class RemovalTests(TurnTests):
    """What is removed."""

    @given_a_memory
    @needs(MANAGE)
    async def test_sessions_are_deleted_by_id_and_by_prefix(self, memory: Any) -> None:
        """How many there were is returned; nothing else goes."""
        for session_id in ("a:1", "a:2", "a%3", "b:1", "a"):
            await memory.append_to_session(session_id, [user("1")])
        assert await memory.delete("b:1", "unknown", "b:1") == 1
        assert await memory.delete_prefix("a:") == 2
        assert sorted(await memory.list_sessions()) == ["a", "a%3"]
        assert await memory.delete() == 0
        await refused(InvalidOption, memory.delete_prefix(""))

    @given_turns
    @needs(MANAGE)
    async def test_a_deleted_session_is_lost_to_its_turn(self, turns: Any) -> None:
        """The turn writes nothing any more, and what it was does not come back."""
        acquired = await acquire(turns)
        await turns.append_items(acquired.lease, 1, 0, [user("1")])
        assert await turns.delete("s") == 1
        await refused(TurnLost, turns.append_items(acquired.lease, 1, 1, [user("2")]))
        assert await turns.sessions() == []

    @given_turns
    @needs(MANAGE)
    async def test_only_idle_sessions_are_pruned(self, turns: Any) -> None:
        """By their last activity, inclusively, and never one that a turn holds."""
        await turns.append_to_session("idle", [user("1")])
        held = await acquire(turns, "held")
        await turns.append_items(held.lease, 1, 0, [user("1")])
        assert await turns.prune(3600) == 0
        assert await turns.prune(timedelta(days=10**5)) == 0
        assert await turns.prune(0) == 1
        assert await turns.list_sessions() == ["held"]
        await end(turns, held)
        assert await turns.prune(timedelta(0)) == 1
        for wrong in (-1, "3", None, True, float("nan")):
            await refused(InvalidOption, turns.prune(wrong))

    @given_turns
    @needs(MANAGE)
    async def test_undo_removes_the_newest_turns_with_items(self, turns: Any) -> None:
        """It returns them as they were, and keeps their records without a word."""
        await whole_session(turns)
        before = await turns.turns("s")
        removed = await turns.undo("s", 2)
        assert [record.turn for record in removed] == [5, 4]
        assert removed == [before[0], before[1]]
        after = await turns.turns("s")
        assert [record.turn for record in after] == [5, 4, 3, 2, 1]
        states = {record.turn: record.state for record in after}
        assert (states[5], states[4]) == ("completed", "cancelled")
        assert [record.item_count for record in after] == [0, 0, 0, 1, 2]
        assert await turns.load_session("s") == [user("1"), assistant("1"), user("2")]
        record = (await turns.undo("s", 9))[-1]
        assert (record.turn, record.output_text) == (1, "one")
        assert [record.output_text for record in await turns.turns("s")] == [None] * 5
        assert await turns.undo("s") == []
        assert await turns.undo("unknown") == []

    @given_turns
    @needs(MANAGE)
    async def test_an_undone_request_is_not_done_again(self, turns: Any) -> None:
        """Its key is known, though its words are gone."""
        await whole_session(turns)
        await turns.undo("s", 9)
        again = acquire(turns, idempotency_key="key", input_digest="digest")
        assert (await refused(DuplicateTurn, again)).items == []

    @given_turns
    @needs(MANAGE, JOURNAL)
    async def test_undo_removes_the_words_of_a_journal(self, turns: Any) -> None:
        """The call stays on record, its arguments and its output do not."""
        acquired = await acquire(turns, idempotency_key="key")
        await turns.append_items(acquired.lease, 1, 0, [user("1")])
        record = CallRecord("call_f", "pay", "key-1", "begun", datetime.now(UTC))
        entry = JournalEntry(1, 0, record, '{"secret": 1}', '{"secret": 2}')
        await turns.journal(acquired.lease, [entry], durable=True)
        await end(turns, acquired, "failed")
        await turns.undo("s")
        (copy,) = await turns.read_copies("s", 0, 9)
        assert [(each.call, each.item, each.output) for each in copy.journal] == [
            (record, None, None)
        ]

    @given_turns
    @needs(MANAGE)
    async def test_a_held_session_is_not_rewritten(self, turns: Any) -> None:
        """Undoing, forking over and importing wait for its turn, and change nothing meanwhile."""
        await whole_session(turns)
        lines = await lines_of(turns, "s")
        held = await acquire(turns)
        work = [
            asyncio.ensure_future(turns.undo("s")),
            asyncio.ensure_future(turns.import_(lines, replace=True)),
        ]
        await asyncio.wait(work, timeout=0.2)
        assert not any(task.done() for task in work)
        for task in work:
            task.cancel()
        await asyncio.wait(work)
        await turns.append_items(held.lease, 1, 0, [user("6")])
        await end(turns, held)
        assert len(await turns.turns("s")) == 6
        assert (await acquire(turns)).lease.turn >= 7

    # --- erased ----------------------------------------------------------------------------

    @given_turns
    @needs(MANAGE)
    async def test_a_removed_session_leaves_no_byte(self, turns: Any) -> None:
        """When the call returns no word is left: of items, answers, labels, states, journals."""
        await turns.append_to_session("other", [user("stays")])
        for name, given in (("delete", ("s:1",)), ("delete_prefix", ("s:",)), ("prune", (0,))):
            await self._fill(turns, "s:1")
            assert _SECRET in await self.raw_bytes(turns)
            held = await acquire(turns, "other")
            assert await getattr(turns, name)(*given) == 1, name
            assert _SECRET not in await self.raw_bytes(turns), name
            await end(turns, held)
        assert await turns.load_session("other") == [user("stays")]

    @given_turns
    @needs(MANAGE)
    async def test_undone_words_leave_the_bytes_soon(self, turns: Any) -> None:
        """And so does a parked state that was settled."""
        await self._fill(turns, "s", labels=False)
        await turns.undo("s", 9)
        await self._fill(turns, "settled", labels=False)
        resumed = await acquire(turns, "settled", resume="p-settled")
        await end(turns, resumed, "failed", settles=("p-settled",), discard=True)
        await turns.undo("settled", 9)
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while _SECRET in await self.raw_bytes(turns):
            assert asyncio.get_running_loop().time() < deadline, f"still there after {_PATIENCE} s"
            await asyncio.sleep(0.1)

    async def _fill(self, turns: Any, session_id: str, *, labels: bool = True) -> None:
        """A session with the secret in every place where words can be."""
        word = _SECRET.decode()
        first = await acquire(turns, session_id, idempotency_key="key")
        await turns.append_items(first.lease, 1, 0, [user(word)])
        if JOURNAL in turns.capabilities:
            record = CallRecord("call_f", "pay", "key-1", "begun", datetime.now(UTC))
            entry = JournalEntry(1, 0, record, f'"{word}"', f'"{word}"')
            await turns.journal(first.lease, [entry], durable=True)
        await end(turns, first, runs={1: "completed"}, output_text=word)
        waits = PendingCall("call_f", "pay", word, None, word)
        second = await acquire(turns, session_id)
        await turns.append_items(second.lease, 1, 0, [user(word), call("f")])
        state = KeptState(f"p-{session_id}", (waits,), f'"{word}"')
        await end(turns, second, "awaiting_approval", park=(state.identity,), states=(state,))
        if labels:
            await turns.set_title(session_id, word)
            await turns.set_metadata(session_id, {"word": word})


_SECRET = b"xyzzy-plugh"
_PATIENCE = 20.0  # seconds
