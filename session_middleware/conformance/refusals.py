"""A memory refuses an id, an item or a call that it cannot serve, by name, and changes nothing."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance.cases import given_a_memory, given_turns, needs
from session_middleware.conformance.samples import (
    assistant,
    depth_of,
    faulty_items,
    nested,
    user,
)
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import InvalidItem, InvalidSessionId, MemoryClosed
from session_middleware.stores.items import MAX_DEPTH
from session_middleware.stores.protocol import TURNS

_NO_IDS: tuple[Any, ...] = (
    *("", "  ", "x" * 513, "a\u0000b", "line\nbreak", "\ud800"),
    *(None, 7, b"s"),
)


class RefusalTests(TurnTests):
    """Ids, items and closed memories."""

    @given_a_memory
    @needs(TURNS)
    async def test_an_id_that_names_nothing_is_refused(self, memory: Any) -> None:
        """Blank, long and unprintable ids, and what is no string, are InvalidSessionId."""
        for wrong in _NO_IDS:
            await refused(InvalidSessionId, memory.load_session(wrong))
            await refused(InvalidSessionId, memory.save_session(wrong, [user("1")]))
            await refused(InvalidSessionId, memory.append_to_session(wrong, [user("1")]))
            await refused(InvalidSessionId, memory.clear_session(wrong))
            await refused(InvalidSessionId, memory.session_exists(wrong))
        assert await memory.list_sessions() == []

    @given_turns
    async def test_an_id_that_names_nothing_has_no_turns(self, turns: Any) -> None:
        """What asks for the turns of a session refuses the same ids."""
        for wrong in _NO_IDS:
            await refused(InvalidSessionId, acquire(turns, wrong))
            await refused(InvalidSessionId, turns.load_turns(wrong))
            await refused(InvalidSessionId, turns.load_items(wrong))
            await refused(InvalidSessionId, turns.load_items(wrong, turn=1))
            await refused(InvalidSessionId, turns.pop_item(wrong))
            await refused(InvalidSessionId, turns.release(wrong))
            await refused(InvalidSessionId, turns.turns(wrong))

    @given_a_memory
    @needs(TURNS)
    async def test_a_fault_stores_nothing_of_its_batch(self, memory: Any) -> None:
        """append_to_session and save_session name the faulty item and change nothing."""
        await memory.append_to_session("s", [user("1")])
        for fault in faulty_items():
            batch = [user("a"), assistant("b"), user("c"), fault]
            error = await refused(InvalidItem, memory.append_to_session("s", batch))
            assert error.position == 3
            error = await refused(InvalidItem, memory.save_session("s", batch))
            assert error.position == 3
        for no_list in ("text", {"role": "user"}, None):
            await refused(InvalidItem, memory.append_to_session("s", no_list))
            await refused(InvalidItem, memory.save_session("s", no_list))
        assert await memory.load_session("s") == [user("1")]

    @given_a_memory
    @needs(TURNS)
    async def test_a_closed_memory_says_so(self, memory: Any) -> None:
        """After cleanup() every method raises MemoryClosed; cleaning up again does nothing."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.cleanup()
        await refused(MemoryClosed, memory.load_session("s"))
        await refused(MemoryClosed, memory.save_session("s", [user("1")]))
        await refused(MemoryClosed, memory.append_to_session("s", [user("1")]))
        await refused(MemoryClosed, memory.clear_session("s"))
        await refused(MemoryClosed, memory.list_sessions())
        await refused(MemoryClosed, memory.session_exists("s"))
        await refused(MemoryClosed, acquire(memory))
        await refused(MemoryClosed, memory.append_items(acquired.lease, 1, 1, [user("2")]))
        await refused(MemoryClosed, end(memory, acquired))
        await refused(MemoryClosed, memory.load_turns("s"))
        await refused(MemoryClosed, memory.load_items("s"))
        await refused(MemoryClosed, memory.retry_run(acquired.lease, 1, 2))
        await refused(MemoryClosed, memory.pop_item("s"))
        await refused(MemoryClosed, memory.release("s"))
        await refused(MemoryClosed, memory.turns("s"))
        await memory.cleanup()

    @given_a_memory
    @needs(TURNS)
    async def test_deep_nesting_comes_back(self, memory: Any) -> None:
        """An item may be nested 200 deep, however deep the stack that stores and loads it."""
        for depth in (100, MAX_DEPTH - 1, MAX_DEPTH):
            await one_turn(memory, [nested(depth)], f"{depth}")
            (item,) = await memory.load_items(f"{depth}")
            assert depth_of(item) == depth
            (turn,) = (await memory.load_turns(f"{depth}")).turns
            assert depth_of(turn.items[0]) == depth

    @given_a_memory
    @needs(TURNS)
    async def test_lone_surrogates_survive_or_are_refused(self, memory: Any) -> None:
        """Text that is no Unicode comes back as it was, or is refused when it is stored."""
        for text in ("\ud800", "a\udfffb", "\ud83d\ude00", "\N{WHITE SMILING FACE}\udc00"):
            acquired = await acquire(memory, "s")
            try:
                await memory.append_items(acquired.lease, 1, 0, [user(text)])
            except InvalidItem:
                assert await memory.load_items("s") == []
            else:
                assert await memory.load_items("s") == [user(text)]
                assert await memory.pop_item("s") == user(text)
            await end(memory, acquired)
