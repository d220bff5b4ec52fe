"""The steps of tests of turns: acquiring, ending, being refused, losing a session."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from session_middleware.conformance.cases import Hooks
from session_middleware.conformance.samples import (
    user,
)
from session_middleware.errors import (
    SessionMemoryError,
    TurnLost,
)
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    Lease,
    TurnEnd,
    TurnState,
)

E = TypeVar("E", bound=SessionMemoryError)


def now() -> datetime:
    return datetime.now(UTC)


async def acquire(turns: TurnStore, session_id: str = "s", **request: Any) -> Acquired:
    return await turns.acquire(AcquireRequest(session_id, now(), **request))


async def end(
    turns: TurnStore, acquired: Acquired, state: TurnState = "completed", **rest: Any
) -> None:
    await turns.end_turn(acquired.lease, TurnEnd(state, now(), **rest))


async def one_turn(turns: TurnStore, items: list[Item], session_id: str = "s") -> Acquired:
    """A whole turn with one run that stores these items."""
    acquired = await acquire(turns, session_id)
    if items:
        await turns.append_items(acquired.lease, acquired.next_run, 0, items)
    await end(turns, acquired, runs={acquired.next_run: "completed"})
    return acquired


async def refused(error: type[E], work: Awaitable[Any]) -> E:
    """The error that ``work`` raises; anything else fails the test."""
    try:
        outcome = await work
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was expected, and the outcome is {outcome!r}")


async def all_refused(error: type[E], *works: Coroutine[Any, Any, Any]) -> list[E]:
    """The error that each of these operations raises, one after the other."""
    try:
        return [await refused(error, work) for work in works]
    finally:
        for work in works:
            work.close()  # one that was not reached, and would warn that it was never awaited


class TurnTests(Hooks):
    """A check that the tests of turns share."""

    async def assert_lost(self, turns: TurnStore, lease: Lease) -> None:
        """Every write under this lease is refused, and changes nothing."""
        before = await turns.load_items(lease.session_id)
        records = await turns.turns(lease.session_id)
        await refused(TurnLost, turns.append_items(lease, 9, 0, [user("lost")]))
        await refused(TurnLost, turns.retry_run(lease, 1, 9))
        await refused(TurnLost, turns.end_turn(lease, TurnEnd("completed", now())))
        assert await turns.load_items(lease.session_id) == before
        assert await turns.turns(lease.session_id) == records
