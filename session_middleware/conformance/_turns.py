"""What tests of turns are made of: taking, ending, being refused, and losing a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from session_middleware.conformance._histories import MemoryFactory, given_a_memory
from session_middleware.conformance._items import (
    user,
)
from session_middleware.errors import (
    SessionMemoryError,
    TurnLost,
)
from session_middleware.memory import (
    Item,
    Lease,
    SupportsTurns,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnState,
)

C = TypeVar("C", bound="TurnFactory")
E = TypeVar("E", bound=SessionMemoryError)


def now() -> datetime:
    return datetime.now(UTC)


async def take(turns: SupportsTurns, session_id: str = "s", **request: Any) -> Taken:
    return await turns.take_turn(TakeTurn(session_id, now(), **request))


async def end(
    turns: SupportsTurns, taken: Taken, state: TurnState = "completed", **rest: Any
) -> None:
    await turns.end_turn(taken.lease, TurnEnd(state, now(), **rest))


async def one_turn(turns: SupportsTurns, items: list[Item], session_id: str = "s") -> Taken:
    """A whole turn with one run that stores these items."""
    taken = await take(turns, session_id)
    if items:
        await turns.append_items(taken.lease, taken.next_run, 0, items)
    await end(turns, taken, runs={taken.next_run: "completed"})
    return taken


async def refused(error: type[E], work: Awaitable[Any]) -> E:
    """The error that ``work`` raises; anything else fails the test."""
    try:
        outcome = await work
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was expected, and the outcome is {outcome!r}")


def given_turns(test: Callable[[C, SupportsTurns], Awaitable[None]]) -> Callable[[C], None]:
    """Run an asynchronous test on what keeps the turns of a new memory."""

    async def with_turns(case: C, memory: Any) -> None:
        await test(case, case.turns_of(memory))

    with_turns.__name__ = test.__name__
    with_turns.__qualname__ = test.__qualname__
    with_turns.__doc__ = test.__doc__
    return given_a_memory(with_turns)


class TurnFactory(MemoryFactory):
    """Where the tests get what keeps turns from."""

    def turns_of(self, memory: Any) -> SupportsTurns:
        """What keeps the turns of a memory: the memory itself, unless a test class says else."""
        assert isinstance(memory, SupportsTurns), "it lacks a method of SupportsTurns"
        return memory

    async def assert_lost(self, turns: SupportsTurns, lease: Lease) -> None:
        """Every write under this lease is refused, and changes nothing."""
        before = await turns.load_items(lease.session_id)
        records = await turns.turns(lease.session_id)
        await refused(TurnLost, turns.append_items(lease, 9, 0, [user("lost")]))
        await refused(TurnLost, turns.retry_run(lease, 1, 9))
        await refused(TurnLost, turns.end_turn(lease, TurnEnd("completed", now())))
        assert await turns.load_items(lease.session_id) == before
        assert await turns.turns(lease.session_id) == records
