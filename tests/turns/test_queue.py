"""Waiting for a session: in order, without deadlock, and with nothing left behind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    InMemorySessionMemory,
    SessionBusy,
    TurnInProgress,
    TurnLost,
    session_scope,
    with_session_memory,
)
from session_middleware._turns import queue
from session_middleware.stores.records import AcquireRequest, TurnEnd
from session_middleware.testing.models import local_agent
from tests.support.conditions import until
from tests.support.sessions import free, own_loop, states


@pytest.fixture(autouse=True)
def _no_entry_is_kept() -> Any:
    """A session that nobody holds or waits for has no entry."""
    yield
    assert queue._queues == {}
    assert queue._awaited == {}


def waiters() -> int:
    """How many wait, for whatever session."""
    return sum(len(line.waiters) for line in queue._queues.values())


class Order:
    """Turns that say when they are in, and stay until they may go."""

    def __init__(self, memory: Any, **options: Any) -> None:
        self.memory = memory
        self.options = options
        self.came: list[str] = []
        self.may_go = asyncio.Event()

    async def turn(self, name: str, **options: Any) -> None:
        """One turn on session "s"."""
        async with session_scope("s", memory=self.memory, **self.options, **options):
            self.came.append(name)
            await self.may_go.wait()

    def start(self, name: str, **options: Any) -> asyncio.Task[None]:
        """The turn as a task."""
        return asyncio.create_task(self.turn(name, **options))

    async def settled(self, *, waiting: int) -> None:
        """Until one turn is in and so many others wait for it."""
        await until(lambda: self.came and waiters() == waiting)


async def test_waiters_come_in_order(each_memory: Any) -> None:
    """Who waits first is let in first."""
    order = Order(each_memory)
    tasks = []
    for number, name in enumerate("ABCDE"):
        tasks.append(order.start(name))
        await order.settled(waiting=number)
    order.may_go.set()
    await asyncio.gather(*tasks)
    assert order.came == list("ABCDE")
    assert await states(each_memory) == ["completed"] * 5


async def test_a_cancelled_waiter_is_passed_over(each_memory: Any) -> None:
    """A waiter that is cancelled leaves the line; those behind it move up."""
    order = Order(each_memory)
    first, second, third = (order.start(name) for name in "ABC")
    await order.settled(waiting=2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    order.may_go.set()
    await asyncio.gather(first, third)
    assert order.came == ["A", "C"]


async def test_a_waiter_cancelled_in_the_moment_it_is_let_in(each_memory: Any) -> None:
    """If the session became its own in the same step, it is passed on."""
    order = Order(each_memory)
    first, second, third = (order.start(name) for name in "ABC")
    await order.settled(waiting=2)
    ((place, line),) = queue._queues.items()
    waiter = next(iter(line.waiters))
    queue.leave(place, line.holder)
    assert line.holder is waiter.turn
    second.cancel()
    order.may_go.set()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert order.came == ["A", "C"]


async def test_a_waiter_whose_loop_is_closed_is_passed_over(each_memory: Any) -> None:
    """A waiter that nobody can wake up any more does not stop those behind it."""
    order = Order(each_memory)
    first = order.start("A")
    await order.settled(waiting=0)
    stuck = []

    async def wait() -> None:
        async with session_scope("s", memory=each_memory, idempotency_key="k"):
            raise AssertionError

    def wait_in_a_loop_that_goes_away() -> None:
        loop = asyncio.new_event_loop()
        stuck.append(loop.create_task(wait()))
        while not waiters():
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    await asyncio.to_thread(wait_in_a_loop_that_goes_away)
    second, third = order.start("C"), order.start("D")
    await order.settled(waiting=3)
    ((place, line),) = queue._queues.items()
    queue.leave(place, line.holder)
    last = order.start("E", idempotency_key="k")  # nobody is at work on that request any more
    await order.settled(waiting=2)
    order.may_go.set()
    await asyncio.gather(first, second, third, last)
    assert order.came == ["A", "C", "D", "E"]
    stuck[0]._log_destroy_pending = False
    stuck[0].get_coro().close()  # late, when its session is somebody else's or nobody's


async def test_a_wait_that_is_over_leaves_no_timer(each_memory: Any) -> None:
    """Neither does one that was cancelled, however long it might have lasted."""

    def timers() -> int:
        handles = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return sum(one._callback is queue._give_up and not one.cancelled() for one in handles)

    order = Order(each_memory, wait_timeout=3600)
    first, second, third = (order.start(name) for name in "ABC")
    await order.settled(waiting=2)
    assert timers() == 2
    third.cancel()
    order.may_go.set()
    await asyncio.gather(first, second)
    assert timers() == 0


async def test_waiting_has_an_end(each_memory: Any) -> None:
    """After wait_timeout a waiter gets SessionBusy, which says who holds the session."""
    order = Order(each_memory)
    first = order.start("A")
    await order.settled(waiting=0)
    with pytest.raises(SessionBusy, match=r"waited 0\.01 s for it") as raised:
        await order.turn("B", wait_timeout=0.01)
    assert (raised.value.turn, raised.value.since) == (
        1,
        (await each_memory.turns("s"))[0].started_at,
    )
    order.may_go.set()
    await first
    assert order.came == ["A"]


async def test_reject_never_waits(each_memory: Any) -> None:
    """on_busy="reject" is SessionBusy at once, with what an HTTP 409 needs."""
    order = Order(each_memory)
    first = order.start("A")
    await order.settled(waiting=0)
    with pytest.raises(SessionBusy) as raised:
        await order.turn("B", on_busy="reject")
    assert raised.value.turn == 1
    assert raised.value.retry_after is not None
    assert 0.5 <= raised.value.retry_after <= 10
    order.may_go.set()
    await first


async def recorded(memory: Any, *seconds: float) -> None:
    """Turns of the session that took so long, as far as their records say."""
    for number, took in enumerate(seconds):
        started = datetime.now(UTC) - timedelta(hours=2, minutes=-number)
        acquired = await memory.acquire(AcquireRequest("s", started))
        await memory.end_turn(
            acquired.lease, TurnEnd("completed", started + timedelta(seconds=took))
        )


@pytest.mark.parametrize(
    ("took", "low", "high"),
    [((2.0, 2.0, 2.5), 1.5, 2.0), ((100.0,) * 6, 10, 10), ((0.01, 60.0, 0.01), 0.5, 0.5)],
)
async def test_when_to_ask_again(each_memory: Any, took: Any, low: float, high: float) -> None:
    """retry_after is what recent turns of the session took, less what this one has taken."""
    await recorded(each_memory, *took)
    order = Order(each_memory)
    first = order.start("A")
    await order.settled(waiting=0)
    for _ in range(2):
        with pytest.raises(SessionBusy) as raised:
            await order.turn("B", on_busy="reject")
        assert raised.value.retry_after is not None
        assert low <= raised.value.retry_after <= high
        assert "release" not in str(raised.value)
    order.may_go.set()
    await first


async def test_when_to_ask_again_of_another_process(memory: Any, make_memory: Any) -> None:
    """The same for a session that another process holds, and for a key that is running."""
    await recorded(memory, 3.0, 3.0)
    other = make_memory()
    held = await memory.acquire(AcquireRequest("s", datetime.now(UTC), idempotency_key="k"))
    for options, error in (
        ({"on_busy": "reject"}, SessionBusy),
        ({"idempotency_key": "k"}, TurnInProgress),
    ):
        with pytest.raises(error) as raised:
            async with session_scope("s", memory=other, **options):
                raise AssertionError
        assert 2 <= raised.value.retry_after <= 3
    await memory.end_turn(held.lease, TurnEnd("completed", datetime.now(UTC)))


async def test_the_queue_has_a_bound(each_memory: Any) -> None:
    """Beyond max_waiting a turn is refused at once; one that gave up makes room."""
    order = Order(each_memory)
    first = order.start("A")
    await order.settled(waiting=0)
    waiting = [order.start(name, max_waiting=2) for name in "BC"]
    await order.settled(waiting=2)
    with pytest.raises(SessionBusy, match="2 others wait for it"):
        await order.turn("D", max_waiting=2)
    waiting[0].cancel()
    await order.settled(waiting=1)
    waiting.append(order.start("E", max_waiting=2))
    await order.settled(waiting=2)
    order.may_go.set()
    await asyncio.gather(first, *waiting[1:])
    assert order.came == ["A", "C", "E"]


def test_threads_with_loops_of_their_own(each_memory: Any, do: Any) -> None:
    """Waiters of several threads and loops are let in one after the other."""
    inside = 0
    most = 0
    came = []

    async def turn(name: int) -> None:
        nonlocal inside, most
        async with session_scope("s", memory=each_memory):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.002)
            came.append(name)
            inside -= 1

    def run(name: int) -> None:
        with own_loop() as do_here:
            do_here(turn(name))

    threads = [threading.Thread(target=run, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, sorted(came)) == (1, list(range(6)))
    assert do(states(each_memory)) == ["completed"] * 6


@pytest.mark.parametrize("moment", ["_grant", "_give_up"])
def test_two_loops_at_the_same_moment(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loops let a waiter in, or turn one away, each while the other does: both come through."""
    memory = InMemorySessionMemory()
    both, come = threading.Barrier(2), getattr(queue, moment)
    outcomes: list[str] = []

    def at_once(granted: Any) -> None:
        both.wait(60)
        come(granted)

    def waits(session_id: str) -> bool:
        return any(line.waiters for (_, own), line in [*queue._queues.items()] if own == session_id)

    async def two(session_id: str) -> None:
        """A turn, and one that waits for it."""
        async with session_scope(session_id, memory=memory):
            patience = 0.01 if moment == "_give_up" else 60
            elsewhere = contextvars.Context()  # not within this turn
            waiting = asyncio.create_task(one(session_id, patience), context=elsewhere)
            if moment == "_give_up":
                await waiting
            else:
                await until(lambda: waits(session_id))
        await waiting

    async def one(session_id: str, patience: float) -> None:
        try:
            async with session_scope(session_id, memory=memory, wait_timeout=patience):
                outcomes.append("_grant")
        except SessionBusy:
            outcomes.append("_give_up")

    monkeypatch.setattr(queue, moment, at_once)
    threads = [
        threading.Thread(target=asyncio.run, args=(asyncio.wait_for(two(name), 60),), daemon=True)
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [moment] * 2


async def test_two_turns_that_wait_for_each_other(each_memory: Any) -> None:
    """A call that would wait for ever gets SessionBusy at once, naming both."""
    both = asyncio.Barrier(2)

    async def nested(outer: str, inner: str) -> None:
        async with session_scope(outer, memory=each_memory):
            await both.wait()
            async with session_scope(inner, memory=each_memory):
                pass

    ends = await asyncio.gather(nested("a", "b"), nested("b", "a"), return_exceptions=True)
    (refused,) = [end for end in ends if end is not None]
    assert isinstance(refused, SessionBusy)
    assert "'a'" in str(refused)
    assert "'b'" in str(refused)
    assert "turn 1" in str(refused)


async def test_three_turns_in_a_circle(each_memory: Any) -> None:
    """The circle may be longer than two, and go through tasks and decorated functions."""
    all_in = asyncio.Barrier(3)
    ask = with_session_memory(Runner.run, memory=each_memory)

    async def nested(outer: str, inner: str) -> None:
        @with_session_memory(memory=each_memory)
        async def hold() -> None:
            await all_in.wait()
            await asyncio.create_task(ask(local_agent(), "Hi", session_id=inner))

        await hold(session_id=outer)

    ends = await asyncio.gather(
        nested("a", "b"), nested("b", "c"), nested("c", "a"), return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["NoneType", "NoneType", "SessionBusy"]


async def test_nested_without_a_circle_waits(each_memory: Any) -> None:
    """Holding one session while waiting for another is no circle by itself."""
    order = Order(each_memory)
    first = order.start("A")
    await order.settled(waiting=0)

    async def outer() -> None:
        async with session_scope("other", memory=each_memory):
            await order.turn("B")

    second = asyncio.create_task(outer())
    await order.settled(waiting=1)
    order.may_go.set()
    await asyncio.gather(first, second)
    assert order.came == ["A", "B"]


async def test_release_lets_the_next_one_write() -> None:
    """release() takes the session away: the holder gets TurnLost and stores no more."""
    memory = InMemorySessionMemory()

    @with_session_memory(memory=memory)
    async def slow() -> None:
        assert await memory.release("s")
        await Runner.run(local_agent(), "too late")

    with pytest.raises(TurnLost):
        await slow(session_id="s")
    assert await memory.load_session("s") == []
    assert await states(memory) == ["abandoned"]


@pytest.mark.parametrize("how", ["release", "clear", "save"])
async def test_nobody_waits_for_a_turn_that_lost_its_session(each_memory: Any, how: str) -> None:
    """A session that is taken away from a turn is free at once, even if that turn hangs."""
    hanging, following = Order(each_memory), Order(each_memory)
    holder = hanging.start("hangs")
    await hanging.settled(waiting=0)
    waiter = following.start("follows", wait_timeout=float("inf"))
    await until(lambda: waiters() == 1)
    if how == "release":
        assert await each_memory.release("s")
    elif how == "clear":
        await each_memory.clear_session("s")
    else:
        await each_memory.save_session("s", [])
    await following.settled(waiting=0)
    hanging.may_go.set()
    with pytest.raises(TurnLost):
        await holder
    assert not await free(each_memory)
    following.may_go.set()
    await waiter
    assert (await states(each_memory))[-1] == "completed"
