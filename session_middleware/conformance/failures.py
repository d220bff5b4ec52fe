"""A storage that cannot be reached is MemoryUnavailable, stores nothing by halves, and recovers."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import TurnTests, acquire, all_refused, end, one_turn
from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.protocol import TURNS


class FailureTests(TurnTests):
    """Every operation inside ``unavailable``."""

    @given_a_memory
    async def test_an_unavailable_storage_is_told(self, memory: Any) -> None:
        """Each of the six methods raises MemoryUnavailable, never an empty history."""
        await memory.append_to_session("s", [user("1")])
        with self.unavailable(memory):
            errors = await all_refused(
                MemoryUnavailable,
                memory.load_session("s"),
                memory.save_session("s", [user("lost")]),
                memory.append_to_session("s", [user("lost")]),
                memory.clear_session("s"),
                memory.list_sessions(),
                memory.session_exists("s"),
            )
        for error in errors:
            assert error.__cause__ is not None, "the error of the driver must be the cause"
        assert await memory.load_session("s") == [user("1")]
        await memory.append_to_session("s", [assistant("1")])
        assert await memory.load_session("s") == [user("1"), assistant("1")]

    @given_a_memory
    @needs(TURNS)
    async def test_an_unavailable_storage_ends_no_turn(self, memory: Any) -> None:
        """Each operation of a turn raises MemoryUnavailable; the turn goes on afterwards."""
        await one_turn(memory, [user("1")])
        acquired = await acquire(memory)
        with self.unavailable(memory):
            await all_refused(
                MemoryUnavailable,
                acquire(memory, "other"),
                memory.load_turns("s"),
                memory.load_items("s"),
                memory.append_items(acquired.lease, 1, 0, [user("lost")]),
                memory.retry_run(acquired.lease, 1, 2),
                end(memory, acquired),
                memory.pop_item("s"),
                memory.release("s"),
                memory.turns("s"),
            )
        await memory.append_items(acquired.lease, 1, 0, [user("2")])
        await end(memory, acquired)
        assert await memory.load_session("s") == [user("1"), user("2")]
        await end(memory, await acquire(memory, "other"))
