"""A run that failed is taken over by the next run of its turn."""

from __future__ import annotations

from session_middleware.conformance.cases import given_turns
from session_middleware.conformance.samples import (
    assistant,
    call,
    output,
    user,
)
from session_middleware.conformance.steps import (
    TurnTests,
    acquire,
    end,
    one_turn,
)
from session_middleware.stores.protocol import TurnStore


class RetryTests(TurnTests):
    """Retrying a run within its turn."""

    @given_turns
    async def test_a_run_without_outputs_is_replaced(self, turns: TurnStore) -> None:
        """When the failed run had no completed tool output, its items go."""
        await one_turn(turns, [user("old"), assistant("old")])
        acquired = await acquire(turns)
        await turns.append_items(acquired.lease, 1, 0, [user("1"), call("f")], input_digest="d")
        assert await turns.retry_run(acquired.lease, 1, 2) == 0
        await turns.append_items(
            acquired.lease, 2, 0, [user("1"), assistant("2")], input_digest="d"
        )
        await end(turns, acquired, runs={2: "completed"})
        assert (await turns.load_turns("s")).turns[-1].items == [user("1"), assistant("2")]
        assert await turns.load_items("s") == [
            user("old"),
            assistant("old"),
            user("1"),
            assistant("2"),
        ]

    @given_turns
    async def test_a_run_with_outputs_is_continued(self, turns: TurnStore) -> None:
        """The new run keeps what the failed one had, up to its last tool output."""
        acquired = await acquire(turns)
        done = [user("1"), call("f"), output("f")]
        await turns.append_items(acquired.lease, 1, 0, done)
        await turns.append_items(acquired.lease, 1, 3, [call("g")])
        assert await turns.retry_run(acquired.lease, 1, 2) == 3
        assert await turns.load_items("s") == done
        await turns.append_items(acquired.lease, 2, 3, [assistant("2")])
        await end(turns, acquired, runs={2: "completed"})
        assert await turns.load_items("s") == [*done, assistant("2")]

    @given_turns
    async def test_a_retried_run_can_be_retried(self, turns: TurnStore) -> None:
        """A third run takes over from the second what the second took over from the first."""
        acquired = await acquire(turns)
        done = [user("1"), call("f"), output("f")]
        await turns.append_items(acquired.lease, 1, 0, done)
        assert await turns.retry_run(acquired.lease, 1, 2) == 3
        assert await turns.retry_run(acquired.lease, 2, 3) == 3
        await turns.append_items(acquired.lease, 3, 3, [assistant("3")])
        await end(turns, acquired, runs={3: "completed"})
        assert await turns.load_items("s") == [*done, assistant("3")]
        assert (await turns.turns("s"))[0].items == [*done, assistant("3")]

    @given_turns
    async def test_retrying_a_run_that_stored_nothing(self, turns: TurnStore) -> None:
        """A run that failed before it stored anything leaves nothing to take over."""
        acquired = await acquire(turns)
        assert await turns.retry_run(acquired.lease, 1, 2) == 0
        await turns.append_items(acquired.lease, 2, 0, [user("1")])
        await end(turns, acquired)
        assert await turns.load_items("s") == [user("1")]
