"""Which sessions are listed, and which state is told of a turn whose process has died."""

from __future__ import annotations

import json
from typing import Any

from session_middleware._current import in_force
from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.inside import held_by
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn
from session_middleware.stores.protocol import STORE_WITH_ACQUIRE, TURNS
from session_middleware.stores.records import RunItems


class VisibleTests(TurnTests):
    """Listing sessions, and the truth of records."""

    async def assert_listed(self, memory: Any, listed: bool, session_id: str = "s") -> None:
        assert await memory.list_sessions() == ([session_id] if listed else [])
        assert await memory.session_exists(session_id) is listed

    @given_a_memory
    @needs(TURNS)
    async def test_a_session_of_a_discarded_turn_is_not_listed(self, memory: Any) -> None:
        """Only that turn has touched it, and nothing of the turn is there."""
        for _ in range(2):
            acquired = await acquire(memory)
            await memory.append_items(acquired.lease, 1, 0, [user("1"), assistant("1")])
            await self.assert_listed(memory, True)
            await end(memory, acquired, "failed", discard=True, output_text="words")
            await self.assert_listed(memory, False)
        assert [(record.state, record.output_text) for record in await memory.turns("s")] == [
            ("failed", None),
            ("failed", None),
        ]

    @given_a_memory
    @needs(TURNS, STORE_WITH_ACQUIRE)
    async def test_a_discarded_input_leaves_no_session(self, memory: Any) -> None:
        """The same for an input that was stored when the session was acquired."""
        asked = RunItems(1, 0, [json.dumps(user("1"))])
        acquired = await acquire(memory, input=asked)
        await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
        await end(memory, acquired, "failed", discard=True)
        await self.assert_listed(memory, False)

    @given_a_memory
    @needs(TURNS)
    async def test_a_session_that_was_there_stays_listed(self, memory: Any) -> None:
        """A turn that is discarded leaves what others stored or saved, an empty history too."""
        await memory.save_session("s", [])
        for _ in range(2):
            acquired = await acquire(memory)
            await memory.append_items(acquired.lease, 1, 0, [user("1")])
            await end(memory, acquired, "failed", discard=True)
            await self.assert_listed(memory, True)
            await one_turn(memory, [user("kept")])

    @given_a_memory
    @needs(TURNS)
    async def test_a_session_that_another_wrote_to_stays_listed(self, memory: Any) -> None:
        """An item that was appended from outside while the discarded turn ran makes a session."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await memory.append_to_session("s", [user("outside")])
        await end(memory, acquired, "failed", discard=True)
        await self.assert_listed(memory, True)
        assert await memory.load_session("s") == [user("outside")]

    @given_a_memory
    @needs(TURNS)
    async def test_a_session_without_items_is_listed(self, memory: Any) -> None:
        """Whoever erases sessions by the list finds one whose items were all removed."""
        await one_turn(memory, [user("1"), assistant("1")])
        while await memory.pop_item("s") is not None:
            pass
        await self.assert_listed(memory, True)
        assert len(await memory.turns("s")) == 1

    @given_a_memory
    @needs(TURNS)
    async def test_a_record_with_words_makes_a_session(self, memory: Any) -> None:
        """The answer in a turn's record is found, also where the turn stored no item."""
        acquired = await acquire(memory)
        await end(memory, acquired, output_text="words")
        await self.assert_listed(memory, True)
        await memory.clear_session("s")
        await self.assert_listed(memory, False)
        assert await memory.turns("s") == []

    @given_a_memory
    @needs(TURNS)
    async def test_a_turn_that_cleared_its_session_is_listed_with_its_answer(
        self, memory: Any
    ) -> None:
        """Cleared from inside, the session is back with the answer of the turn."""
        await one_turn(memory, [user("1"), assistant("1")])
        acquired = await acquire(memory)
        with in_force(held_by(memory, acquired)):
            await memory.clear_session("s")
        await self.assert_listed(memory, False)
        await end(memory, acquired, output_text="words")
        await self.assert_listed(memory, True)

    @given_a_memory
    @needs(TURNS)
    async def test_a_turn_whose_lease_has_expired_is_told_as_abandoned(self, memory: Any) -> None:
        """Whoever looks sees that it does not run; it may still go on, and then it does."""
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await self.expire(memory, "s")
        (record,) = await memory.turns("s")
        assert (record.state, record.ended_at) == ("abandoned", None)
        await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
        await end(memory, acquired)
        (record,) = await memory.turns("s")
        assert (record.state, record.item_count) == ("completed", 2)
