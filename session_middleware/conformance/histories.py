"""Histories are stored by session id, whole and in order, as every memory must do it."""

from __future__ import annotations

import asyncio
import copy

from session_middleware.conformance.cases import Hooks, given_a_memory
from session_middleware.conformance.samples import (
    AWKWARD_IDS,
    AWKWARD_VALUES,
    assistant,
    call,
    exactly,
    output,
    user,
)
from session_middleware.memory import SessionMemory
from session_middleware.stores.records import Item


class HistoryTests(Hooks):
    """The six methods of ``SessionMemory``."""

    @given_a_memory
    async def test_an_unknown_session_is_empty(self, memory: SessionMemory) -> None:
        """A session nobody stored anything in has no items, is not there, and can be cleared."""
        assert await memory.load_session("nobody") == []
        assert await memory.session_exists("nobody") is False
        assert await memory.list_sessions() == []
        await memory.clear_session("nobody")
        assert await memory.session_exists("nobody") is False

    @given_a_memory
    async def test_append_adds_at_the_end(self, memory: SessionMemory) -> None:
        """Items come back in the order in which they were appended."""
        await memory.append_to_session("s", [user("1"), assistant("2")])
        await memory.append_to_session("s", [user("3")])
        await memory.append_to_session("s", [assistant("4"), user("5")])
        assert await memory.load_session("s") == [
            user("1"),
            assistant("2"),
            user("3"),
            assistant("4"),
            user("5"),
        ]

    @given_a_memory
    async def test_save_replaces_the_history(self, memory: SessionMemory) -> None:
        """After save_session the history is exactly what was saved."""
        await memory.append_to_session("s", [user("old"), assistant("old")])
        saved = [user("a"), call("f"), output("f"), assistant("b"), user("c"), user("d")]
        await memory.save_session("s", saved)
        assert await memory.load_session("s") == saved
        await memory.save_session("s", saved[:2])
        assert await memory.load_session("s") == saved[:2]
        await memory.append_to_session("s", saved[2:3])
        assert await memory.load_session("s") == saved[:3]

    @given_a_memory
    async def test_an_empty_history_can_be_saved(self, memory: SessionMemory) -> None:
        """Saving an empty history leaves a session that is there and empty."""
        await memory.save_session("s", [])
        assert await memory.load_session("s") == []
        assert await memory.session_exists("s") is True
        assert await memory.list_sessions() == ["s"]

    @given_a_memory
    async def test_appending_nothing_changes_nothing(self, memory: SessionMemory) -> None:
        """An empty batch leaves the history as it is."""
        await memory.append_to_session("s", [user("1")])
        await memory.append_to_session("s", [])
        assert await memory.load_session("s") == [user("1")]

    @given_a_memory
    async def test_clear_forgets_the_session(self, memory: SessionMemory) -> None:
        """A cleared session is not there any more, and can begin anew."""
        await memory.append_to_session("s", [user("1")])
        await memory.clear_session("s")
        assert await memory.load_session("s") == []
        assert await memory.session_exists("s") is False
        assert await memory.list_sessions() == []
        await memory.append_to_session("s", [user("2")])
        assert await memory.load_session("s") == [user("2")]

    @given_a_memory
    async def test_sessions_do_not_touch_each_other(self, memory: SessionMemory) -> None:
        """A change of one session changes no other session."""
        ids = [f"session-{number}" for number in range(50)]
        for session_id in ids:
            await memory.append_to_session(session_id, [user(session_id)])
        await memory.clear_session(ids[7])
        await memory.save_session(ids[8], [user("saved")])
        for number, session_id in enumerate(ids):
            expected = [] if number == 7 else [user("saved" if number == 8 else session_id)]
            assert await memory.load_session(session_id) == expected
        assert sorted(await memory.list_sessions()) == sorted(set(ids) - {ids[7]})

    @given_a_memory
    async def test_ids_are_taken_as_they_are(self, memory: SessionMemory) -> None:
        """Quotes, wildcards, braces, emoji, case, spaces and 512 characters name a session."""
        for session_id in AWKWARD_IDS:
            await memory.append_to_session(session_id, [user(session_id)])
        for session_id in AWKWARD_IDS:
            assert await memory.load_session(session_id) == [user(session_id)]
            assert await memory.session_exists(session_id) is True
        assert sorted(await memory.list_sessions()) == sorted(AWKWARD_IDS)

    @given_a_memory
    async def test_values_come_back_exactly(self, memory: SessionMemory) -> None:
        """Every JSON value comes back as it was: its type, its sign, the order of its keys."""
        items: list[Item] = [{"role": "user", "content": value} for value in AWKWARD_VALUES]
        items.append({"content": "keys in another order", "role": "user", "": None})
        await memory.append_to_session("appended", items)
        await memory.save_session("saved", items)
        assert exactly(await memory.load_session("appended")) == exactly(items)
        assert exactly(await memory.load_session("saved")) == exactly(items)

    @given_a_memory
    async def test_what_is_stored_is_nobody_elses(self, memory: SessionMemory) -> None:
        """Changing what was passed in, or what was returned, changes nothing that is stored."""
        given = [assistant("1")]
        await memory.append_to_session("s", given)
        expected = copy.deepcopy(given)
        given[0]["content"][0]["text"] = "changed"
        given.append(user("added"))
        returned = await memory.load_session("s")
        assert returned == expected
        returned[0]["content"][0]["text"] = "changed"
        returned.append(user("added"))
        assert await memory.load_session("s") == expected

    @given_a_memory
    async def test_appends_at_once_lose_nothing(self, memory: SessionMemory) -> None:
        """Batches appended at the same time are all there, each whole and in order."""
        batches = [[call(f"{n}"), output(f"{n}")] for n in range(30)]
        await asyncio.gather(*(memory.append_to_session("s", batch) for batch in batches))
        stored = await memory.load_session("s")
        pairs = [stored[at : at + 2] for at in range(0, len(stored), 2)]
        assert sorted(pairs, key=repr) == sorted(batches, key=repr)

    @given_a_memory
    async def test_appends_one_after_the_other_keep_their_order(
        self, memory: SessionMemory
    ) -> None:
        """In many sessions at once, each session keeps the order of its own appends."""

        async def converse(session_id: str) -> None:
            for number in range(10):
                await memory.append_to_session(session_id, [user(f"{session_id} {number}")])

        ids = [f"s{number}" for number in range(10)]
        await asyncio.gather(*(converse(session_id) for session_id in ids))
        for session_id in ids:
            assert await memory.load_session(session_id) == [
                user(f"{session_id} {number}") for number in range(10)
            ]

    @given_a_memory
    async def test_it_can_be_used_in_an_async_with_block(self, memory: SessionMemory) -> None:
        """``async with memory`` hands out the memory itself and cleans it up at the end."""
        async with memory as entered:
            assert entered is memory
            await memory.append_to_session("s", [user("1")])
            assert await memory.load_session("s") == [user("1")]
