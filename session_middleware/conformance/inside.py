"""The six methods and pop_item inside the current turn of a session."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from session_middleware._current import in_force
from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import (
    assistant,
    user,
)
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import TurnLost
from session_middleware.stores.protocol import TURNS
from session_middleware.stores.records import Acquired, Lease


@dataclass(slots=True)
class _Holder:
    """A turn as a context holds it."""

    memory_identity: Hashable
    lease: Lease
    runs: int
    ended: bool = False

    @property
    def session_id(self) -> str:
        return self.lease.session_id

    @property
    def number(self) -> int:
        return self.lease.turn

    def next_run(self) -> int:
        self.runs += 1
        return self.runs - 1

    async def settle(self) -> None:
        """Nothing is under way here."""


def held_by(memory: Any, acquired: Acquired) -> _Holder:
    return _Holder(memory.identity, acquired.lease, acquired.next_run)


class InsideTests(TurnTests):
    """Calls inside a turn."""

    @given_a_memory
    @needs(TURNS)
    async def test_appending_within_the_turn(self, memory: Any) -> None:
        """Inside its turn append_to_session stores under the turn, as a run of its own."""
        acquired = await acquire(memory)
        with in_force(held_by(memory, acquired)):
            await memory.append_to_session("s", [user("1")])
            await memory.append_to_session("s", [assistant("2"), user("3")])
            await memory.append_to_session("other", [user("elsewhere")])
            assert await memory.load_session("s") == [user("1"), assistant("2"), user("3")]
        await end(memory, acquired)
        (record,) = await memory.turns("s")
        assert (record.turn, record.item_count) == (acquired.lease.turn, 3)

    @given_a_memory
    @needs(TURNS)
    async def test_saving_within_the_turn(self, memory: Any) -> None:
        """Inside its turn save_session replaces the history, and the turn goes on."""
        await one_turn(memory, [user("old"), assistant("old")])
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        saved = [user("a"), assistant("b"), user("c")]
        with in_force(held_by(memory, acquired)):
            await memory.save_session("s", saved)
        assert await memory.load_session("s") == saved
        await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
        await end(memory, acquired)
        assert await memory.load_session("s") == [*saved, assistant("1")]
        (turn,) = (await memory.load_turns("s")).turns
        assert turn.turn == acquired.lease.turn

    @given_a_memory
    @needs(TURNS)
    async def test_clearing_within_the_turn(self, memory: Any) -> None:
        """Inside its turn clear_session removes all that is stored, and the turn goes on."""
        await one_turn(memory, [user("old"), assistant("old")])
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        with in_force(held_by(memory, acquired)):
            await memory.clear_session("s")
        assert await memory.load_session("s") == []
        assert await memory.session_exists("s") is False
        await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
        await end(memory, acquired)
        assert await memory.load_session("s") == [assistant("1")]
        assert [record.turn for record in await memory.turns("s")] == [acquired.lease.turn]

    @given_a_memory
    @needs(TURNS)
    async def test_popping_within_the_turn(self, memory: Any) -> None:
        """Inside its turn pop_item takes the newest item of the session."""
        await one_turn(memory, [user("old"), assistant("old")])
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        with in_force(held_by(memory, acquired)):
            assert await memory.pop_item("s") == user("1")
            assert await memory.pop_item("s") == assistant("old")
        await end(memory, acquired)
        assert await memory.load_session("s") == [user("old")]

    @given_a_memory
    @needs(TURNS)
    async def test_a_lost_turn_writes_nothing_by_the_six_methods(self, memory: Any) -> None:
        """A context whose turn was lost is refused, and what others stored stays."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.release("s")
        with in_force(held_by(memory, acquired)):
            await refused(TurnLost, memory.append_to_session("s", [user("lost")]))
            await refused(TurnLost, memory.save_session("s", [user("lost")]))
            await refused(TurnLost, memory.clear_session("s"))
            await refused(TurnLost, memory.pop_item("s"))
        assert await memory.load_session("s") == [user("1")]
