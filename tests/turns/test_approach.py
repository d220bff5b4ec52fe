"""Thousands of calls that come to one session at once: no step of the loop takes in many."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    InMemorySessionMemory,
    SessionBusy,
    TurnInProgress,
    installed,
    session_scope,
    with_session_memory,
)
from session_middleware._turns import approach, queue
from session_middleware.testing.models import local_agent
from tests.support.conditions import until
from tests.support.sessions import held

MANY = 600
FEW = approach._CROWD + 2
"""How many come in the first step: one holds the session, and a crowd gathers."""


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    """Nothing is remembered of a crowd that is gone."""
    yield
    assert queue._queues == {}
    assert not any(approach._doors.values())


@pytest.fixture
async def memory() -> AsyncIterator[InMemorySessionMemory]:
    async with InMemorySessionMemory() as memory:
        yield memory


Call = Callable[[int], Awaitable[Any]]


def a_scope(memory: Any, **options: Any) -> Call:
    async def call(number: int, **key: Any) -> None:
        async with session_scope("s", memory=memory, **options, **key):
            pass

    return call


def a_function(memory: Any, **options: Any) -> Call:
    @with_session_memory(memory=memory, **options)
    async def function() -> None:
        pass

    async def call(number: int, **key: Any) -> None:
        await function(session_id="s", **key)

    return call


def a_generator(memory: Any, **options: Any) -> Call:
    @with_session_memory(memory=memory, **options)
    async def generator() -> AsyncIterator[int]:
        yield 1

    async def call(number: int, **key: Any) -> None:
        async for _ in generator(session_id="s", **key):
            pass

    return call


def a_finishing_generator(memory: Any, **options: Any) -> Call:
    return a_generator(memory, on_departure="finish", **options)


def a_run(memory: Any, **options: Any) -> Call:
    run = with_session_memory(Runner.run, memory=memory, **options)
    agent = local_agent()

    async def call(number: int, **key: Any) -> None:
        await run(agent, "Hi", session_id="s", **key)

    return call


def an_installed_run(memory: Any, **options: Any) -> Call:
    agent = local_agent()

    async def call(number: int, **key: Any) -> None:
        await Runner.run(agent, "Hi", session_id="s", **key)

    return call


FORMS = (a_scope, a_function, a_generator, a_finishing_generator, a_run, an_installed_run)


def came_in() -> int:
    """How many calls wait in the queue, for whatever session."""
    return sum(len(line.waiters) for line in queue._queues.values())


@asynccontextmanager
async def crowd(
    call: Any, memory: Any, many: int = MANY, *, keyed: bool = False
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """So many calls, started in one step on a session that is held until the block ends."""
    async with held(memory):
        tasks = []
        for number in range(many):
            key = {"idempotency_key": f"key {number}"} if keyed else {}
            tasks.append(asyncio.create_task(call(number, **key)))
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
@pytest.mark.parametrize("form", FORMS)
async def test_one_comes_in_at_each_step(memory: Any, form: Any, keyed: bool) -> None:
    """However many start at once, each step of the event loop makes one of them ready to wait."""
    options = {"max_waiting": MANY}
    with installed(memory=memory, **options):
        async with crowd(form(memory, **options), memory, keyed=keyed):
            most, before = 0, 0
            while before < MANY:
                await asyncio.sleep(0)
                now = came_in()
                most, before = max(most, now - before), now
            assert most <= FEW


@pytest.mark.parametrize("form", [a_scope, a_function, a_run])
async def test_one_leaves_at_each_step(memory: Any, form: Any) -> None:
    """However many are cancelled at once, each step of the event loop ends few of them."""
    async with crowd(form(memory, max_waiting=MANY), memory) as tasks:
        await until(lambda: came_in() == MANY)
        for task in tasks:
            task.cancel()
        most, before = 0, 0
        while before < MANY:
            await asyncio.sleep(0)
            now = sum(task.done() for task in tasks)
            most, before = max(most, now - before), now
        assert most <= FEW
        assert all(task.cancelled() for task in tasks)
        assert came_in() == 0


async def test_the_order_is_kept(memory: Any) -> None:
    """Whoever came first is let in first, whether it found a crowd or none."""
    came: list[int] = []

    async def call(number: int) -> None:
        async with session_scope("s", memory=memory):
            came.append(number)

    tasks = []
    async with held(memory):
        for number in range(3 * FEW):
            tasks.append(asyncio.create_task(call(number)))
            if number % 5 == 0:
                await asyncio.sleep(0)
        await until(lambda: came_in() == 3 * FEW)
    await asyncio.gather(*tasks)
    assert came == [*range(3 * FEW)]


async def test_another_session_does_not_wait_for_the_crowd(memory: Any) -> None:
    """A run of another session is over long before the crowd has come in."""
    call = a_run(memory, max_waiting=MANY)
    run = with_session_memory(Runner.run, memory=memory)

    async def steps_of_a_run(session_id: str) -> int:
        running = asyncio.create_task(run(local_agent(), "Hi", session_id=session_id))
        steps = 0
        while not running.done():
            await asyncio.sleep(0)
            steps += 1
        return steps

    alone = await steps_of_a_run("alone")
    async with crowd(call, memory):
        await asyncio.sleep(0)
        assert await steps_of_a_run("another") <= 2 * alone
        assert came_in() < MANY / 2


async def test_few_ask_the_memory_at_once(memory: Any) -> None:
    """Keyed calls ask whether their work was done before, and never all of them at once."""
    asking = most = asked = 0
    look_up = memory.look_up

    async def counted(request: Any) -> None:
        nonlocal asking, most, asked
        asking, asked = asking + 1, asked + 1
        most = max(most, asking)
        try:
            await asyncio.sleep(0.001)
            await look_up(request)
        finally:
            asking -= 1

    memory.look_up = counted
    async with crowd(a_scope(memory, max_waiting=100), memory, 100, keyed=True):
        await until(lambda: came_in() == 100)
    assert (most, asked) == (approach._LOOK_UPS, 100)


async def test_what_was_refused_is_refused_at_once_in_a_crowd(memory: Any) -> None:
    """Calls beyond max_waiting, and those whose request is running, do not wait in the crowd."""
    async with crowd(a_scope(memory, max_waiting=50), memory, 100) as tasks:
        await until(lambda: sum(task.done() for task in tasks) == 50)
        assert came_in() == 50
        assert all(isinstance(task.exception(), SessionBusy) for task in tasks[50:])

    call = a_scope(memory)
    async with crowd(call, memory, 30, keyed=True):
        await until(came_in)
        with pytest.raises(TurnInProgress):
            await call(0, idempotency_key="key 0")


async def test_cancelled_on_the_way(memory: Any) -> None:
    """Calls that are cancelled before they came in hold nobody up, and leave nothing."""
    async with crowd(a_scope(memory), memory, 100) as tasks:
        await asyncio.sleep(0)
        for task in tasks[20:90]:
            task.cancel()
        await until(lambda: came_in() == 30)


async def test_parts_of_the_turn_do_not_wait_for_the_crowd(memory: Any) -> None:
    """A call inside the turn that holds the session joins it, however many wait outside."""
    joined: list[int] = []

    async def inside(number: int) -> None:
        await a_function(memory)(number)
        joined.append(came_in())

    async with held(memory, inside) as goes_on:
        tasks = [asyncio.create_task(a_scope(memory)(number)) for number in range(100)]
        await asyncio.sleep(0)
        goes_on.set()
        await until(lambda: joined)
        assert joined[0] < 100
    await asyncio.gather(*tasks)


async def test_a_loop_that_goes_away_with_its_crowd(memory: Any) -> None:
    """Calls of an event loop that was closed on their way do not hold up those of another."""

    def come_and_go() -> None:
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(a_scope(memory)(number)) for number in range(100)]
        while not came_in():
            loop.run_until_complete(asyncio.sleep(0))
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    async with held(memory):
        await asyncio.to_thread(come_and_go)
        here = [asyncio.create_task(a_scope(memory)(number)) for number in range(20)]
        await until(lambda: came_in() == 20)
    await asyncio.gather(*here)


async def test_a_waiting_call_is_a_few_objects(memory: Any) -> None:
    """The collector of garbage stops the loop for longer the more objects those that wait have."""
    for form, most in ((a_scope, 75), (a_run, 95)):
        call = form(memory, max_waiting=200)
        async with crowd(call, memory, 20):
            await until(lambda: came_in() == 20)
        gc.collect()
        before = len(gc.get_objects())
        async with crowd(call, memory, 200):
            await until(lambda: came_in() == 200)
            gc.collect()
            assert (len(gc.get_objects()) - before) / 200 <= most
