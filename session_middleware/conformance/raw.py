"""The storage itself, read behind the memory's back, holds exactly what the memory returns."""

from __future__ import annotations

import asyncio
from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import assistant, call, faulty_items, output, user
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import InvalidItem, TurnLost
from session_middleware.stores.protocol import TURNS

_PATIENCE = 60.0  # seconds; an idle memory overwrites removed words within 10 s
_SECRET = "swordfish"  # noqa: S105 - a word to search for


class RawTests(TurnTests):
    """Tests that need ``raw_items`` or ``raw_bytes``."""

    @given_a_memory
    async def test_the_storage_holds_each_item_once(self, memory: Any) -> None:
        """Appended and saved items are in the storage as they are returned, each once."""
        await memory.append_to_session("s", [user("1"), assistant("2")])
        await memory.append_to_session("s", [user("3")])
        assert await self.raw_items(memory, "s") == [user("1"), assistant("2"), user("3")]
        await memory.save_session("s", [user("a"), assistant("b")])
        assert await self.raw_items(memory, "s") == [user("a"), assistant("b")]
        await memory.clear_session("s")
        assert await self.raw_items(memory, "s") == []

    @given_a_memory
    @needs(TURNS)
    async def test_a_lost_turn_changes_nothing_in_the_storage(self, memory: Any) -> None:
        """A write that raised TurnLost is not in the storage either."""
        released = await acquire(memory)
        await memory.append_items(released.lease, 1, 0, [user("1")])
        await memory.release("s")
        await refused(TurnLost, memory.append_items(released.lease, 1, 1, [user("lost")]))
        assert await self.raw_items(memory, "s") == [user("1")]

    @given_a_memory
    @needs(TURNS)
    async def test_a_refused_batch_leaves_nothing_in_the_storage(self, memory: Any) -> None:
        """A batch with an item that is no JSON object is not stored in part."""
        acquired = await acquire(memory)
        batch = [user("1"), faulty_items()[0]]
        await refused(InvalidItem, memory.append_items(acquired.lease, 1, 0, batch))
        await refused(InvalidItem, memory.append_to_session("s", batch))
        assert await self.raw_items(memory, "s") == []

    @given_a_memory
    @needs(TURNS)
    async def test_a_discarded_turn_leaves_nothing_in_the_storage(self, memory: Any) -> None:
        """Items of a discarded turn, and of a run that was replaced, are gone from the storage."""
        await one_turn(memory, [user("1")])
        acquired = await acquire(memory)
        await memory.append_items(
            acquired.lease, 1, 0, [user("2"), call("f"), output("f"), call("g")]
        )
        await memory.retry_run(acquired.lease, 1, 2)
        stored = [user("1"), user("2"), call("f"), output("f")]
        assert await self.raw_items(memory, "s") == stored
        await end(memory, acquired, "failed", discard=True)
        assert await self.raw_items(memory, "s") == stored[:1]

    @given_a_memory
    async def test_a_cleared_session_leaves_no_byte(self, memory: Any) -> None:
        """When clear_session returns, no word of the session is in the bytes of the storage."""
        await memory.append_to_session("s", [user(f"{_SECRET} {number}") for number in range(50)])
        await memory.append_to_session("other", [user("stays")])
        assert _SECRET.encode() in await self.raw_bytes(memory)
        await memory.clear_session("s")
        assert _SECRET.encode() not in await self.raw_bytes(memory)
        assert await memory.load_session("other") == [user("stays")]

    @given_a_memory
    @needs(TURNS)
    async def test_removed_words_leave_the_bytes_soon(self, memory: Any) -> None:
        """Discarded, popped and replaced items are gone from the bytes of an idle memory."""
        await self.raw_bytes(memory)
        for number, removes in enumerate((self._discard, self._pop, self._save_over)):
            await removes(memory, f"s{number}")
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while _SECRET.encode() in await self.raw_bytes(memory):
            late = asyncio.get_running_loop().time() > deadline
            assert not late, f"words that were removed are still there after {_PATIENCE} s"
            await asyncio.sleep(0.1)

    async def _discard(self, memory: Any, session_id: str) -> None:
        acquired = await acquire(memory, session_id)
        await memory.append_items(acquired.lease, 1, 0, [user(_SECRET)])
        await end(memory, acquired, "failed", discard=True)

    async def _pop(self, memory: Any, session_id: str) -> None:
        await one_turn(memory, [user("1"), assistant(_SECRET)], session_id)
        assert await memory.pop_item(session_id) == assistant(_SECRET)

    async def _save_over(self, memory: Any, session_id: str) -> None:
        await one_turn(memory, [user(_SECRET)], session_id)
        await memory.save_session(session_id, [user("1")])
