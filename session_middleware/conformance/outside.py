"""The six methods and pop_item beside the turns of a session: flat histories, running turns."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import (
    assistant,
    call,
    output,
    user,
)
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import TurnLost
from session_middleware.stores.protocol import TURNS


class OutsideTests(TurnTests):
    """Calls from outside a turn."""

    @given_a_memory
    @needs(TURNS)
    async def test_a_saved_history_is_split_into_turns(self, memory: Any) -> None:
        """Each user message that follows another kind of item begins a turn."""
        first = [user("1"), user("1b"), call("f"), output("f"), assistant("1")]
        second = [user("2"), assistant("2")]
        await memory.save_session("s", [*first, *second])
        turns = (await memory.load_turns("s")).turns
        assert [turn.items for turn in turns] == [first, second]
        assert turns[0].turn < turns[1].turn
        assert {record.state for record in await memory.turns("s")} == {"completed"}
        assert (await acquire(memory)).lease.turn > turns[1].turn

    @given_a_memory
    @needs(TURNS)
    async def test_an_append_is_a_turn_of_its_own(self, memory: Any) -> None:
        """Items that are appended outside a turn become a completed turn, with a record."""
        await memory.append_to_session("s", [user("1"), assistant("1")])
        await memory.append_to_session("s", [assistant("2")])
        turns = (await memory.load_turns("s")).turns
        assert [turn.items for turn in turns] == [[user("1"), assistant("1")], [assistant("2")]]
        newest = (await memory.turns("s"))[0]
        assert (newest.turn, newest.state, newest.item_count) == (2, "completed", 1)
        assert newest.ended_at is not None

    @given_a_memory
    @needs(TURNS)
    async def test_an_append_from_outside_comes_after_the_turn(self, memory: Any) -> None:
        """It does not wait for a running turn, does not disturb it, and lies behind it."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.append_to_session("s", [assistant("outside")])
        await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
        await end(memory, acquired)
        expected = [user("1"), assistant("1"), assistant("outside")]
        assert await memory.load_session("s") == expected
        assert (await acquire(memory)).lease.turn == acquired.lease.turn + 2

    @given_a_memory
    @needs(TURNS)
    async def test_a_turn_without_items_makes_no_session(self, memory: Any) -> None:
        """A session exists from its first item, not from its first turn."""
        await one_turn(memory, [])
        assert await memory.session_exists("s") is False
        assert await memory.list_sessions() == []
        assert (await memory.load_turns("s")).turns == []
        await one_turn(memory, [user("1")])
        assert await memory.session_exists("s") is True

    @given_a_memory
    @needs(TURNS)
    async def test_clearing_ends_the_running_turn(self, memory: Any) -> None:
        """clear_session from outside: the running turn is lost, even when the session is back."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.clear_session("s")
        await self.assert_lost(memory, acquired.lease)
        assert await memory.load_session("s") == []
        assert await memory.session_exists("s") is False
        again = await acquire(memory)
        assert again.lease.turn == 1
        await self.assert_lost(memory, acquired.lease)
        await end(memory, again)

    @given_a_memory
    @needs(TURNS)
    async def test_saving_ends_the_running_turn(self, memory: Any) -> None:
        """save_session from outside: the running turn is lost, the saved history stays."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.save_session("s", [user("saved")])
        await self.assert_lost(memory, acquired.lease)
        assert await memory.load_session("s") == [user("saved")]
        await end(memory, await acquire(memory))

    @given_a_memory
    @needs(TURNS)
    async def test_popping_from_outside_disturbs_nobody(self, memory: Any) -> None:
        """pop_item from outside takes the newest item; the running turn goes on."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1"), assistant("a")])
        assert await memory.pop_item("s") == assistant("a")
        await memory.append_items(acquired.lease, 1, 2, [assistant("b")])
        await end(memory, acquired)
        assert await memory.load_session("s") == [user("1"), assistant("b")]

    @given_a_memory
    @needs(TURNS)
    async def test_clearing_forgets_what_was_parked(self, memory: Any) -> None:
        """After a clear or a save a parked state is gone for good, and a key is free."""
        for identity in ("p", "q"):
            parked = await acquire(memory, idempotency_key="k")
            await end(memory, parked, "awaiting_approval", park=(identity,))
            if identity == "p":
                await memory.clear_session("s")
            else:
                await memory.save_session("s", [user("saved")])
            await refused(TurnLost, acquire(memory, resume=identity))
            await refused(TurnLost, acquire(memory, resume=identity, adopt=True))
            acquired = await acquire(memory, idempotency_key="k")
            assert (acquired.resumed, acquired.carried) == (False, ())
            await end(memory, acquired, "failed")
            await memory.clear_session("s")
