"""An operation that is cancelled, at whatever await it is, was done as a whole or not at all."""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from session_middleware.conformance.cases import given_a_memory, given_turns, needs
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn
from session_middleware.stores.items import encode_items
from session_middleware.stores.protocol import STORE_WITH_ACQUIRE, TURNS, TurnStore
from session_middleware.stores.records import Acquired, Item, RunItems, RunState

_MOMENT = 0.001  # seconds: the storage is at work

_Operation = Callable[[], Coroutine[Any, Any, Any]]
_Cancel = Callable[["asyncio.Task[Any]", "asyncio.Future[Any]"], object]


def _at_once(task: asyncio.Task[Any], awaited: asyncio.Future[Any]) -> None:
    """Cancel before anybody else has done anything."""
    task.cancel()


def _meanwhile(task: asyncio.Task[Any], awaited: asyncio.Future[Any]) -> None:
    """Cancel while the storage is at work."""
    task.get_loop().call_later(_MOMENT, task.cancel)


def _with_the_answer(task: asyncio.Task[Any], awaited: asyncio.Future[Any]) -> None:
    """Cancel when the answer is there, and the operation has not seen it yet."""
    awaited.add_done_callback(lambda _: task.cancel())


async def cancelled_at_every_await(
    name: str,
    begin: Callable[[str], Awaitable[_Operation]],
    check: Callable[[str], Awaitable[None]],
) -> None:
    """Cancel an operation at its first await, its second ..., in a session of its own each time.

    At each await it is cancelled at once, a moment later, and together with the answer.

    Args:
        name: of the operation, and of its sessions.
        begin: prepares the session and returns the operation.
        check: what must hold of the session afterwards.
    """
    for cancel in (_at_once, _meanwhile, _with_the_answer):
        for at in itertools.count(1):
            session_id = f"{name} {cancel.__name__} {at}"
            operation = await begin(session_id)
            reached = await _cancelled(operation(), at, cancel)
            await check(session_id)
            if not reached:
                break


async def _cancelled(work: Coroutine[Any, Any, Any], at: int, cancel: _Cancel) -> bool:
    """Cancel ``work`` at this await of its own; returns whether it got that far.

    What it did then does not matter. If it did not get that far, it must succeed.
    """
    reached = False

    @types.coroutine
    def counted() -> Generator[Any, Any, Any]:
        nonlocal reached
        error: BaseException | None = None
        for count in itertools.count(1):
            try:
                awaited = work.send(None) if error is None else work.throw(error)
            except StopIteration as stop:
                return stop.value
            if count == at:
                reached = True
                if asyncio.isfuture(awaited):
                    cancel(task, awaited)
                else:  # it lets others go on once
                    task.cancel()
            try:
                yield awaited
                error = None
            except BaseException as thrown:
                error = thrown

    async def driven() -> Any:
        return await counted()

    task = asyncio.ensure_future(driven())
    await asyncio.wait((task,))
    if not reached:
        task.result()
    return reached


class CancellationTests(TurnTests):
    """Every operation that writes, cancelled at every await."""

    @given_a_memory
    async def test_cancelled_writes_of_a_history_are_whole(self, memory: Any) -> None:
        """A cancelled append or save leaves the old history or the new one."""
        old, new = [user("1"), assistant("1")], [user("2"), call("f"), output("f"), assistant("2")]

        async def appends(session_id: str) -> _Operation:
            await memory.append_to_session(session_id, old)
            return lambda: memory.append_to_session(session_id, new)

        async def saves(session_id: str) -> _Operation:
            await memory.save_session(session_id, old)
            return lambda: memory.save_session(session_id, new)

        appended, saved = self._holds(memory, old, old + new), self._holds(memory, old, new)
        await cancelled_at_every_await("append", appends, appended)
        await cancelled_at_every_await("save", saves, saved)

    @given_turns
    async def test_a_cancelled_acquire_leaves_the_session_free(self, turns: TurnStore) -> None:
        """A cancelled acquire gives the session up: the next turn gets it at once."""
        granted: list[Acquired] = []

        async def acquires(session_id: str) -> _Operation:
            await one_turn(turns, [user("1")], session_id)

            async def acquires_it() -> None:
                granted.append(await acquire(turns, session_id))

            return acquires_it

        async def is_free(session_id: str) -> None:
            while granted:
                await end(turns, granted.pop())
            await end(turns, await acquire(turns, session_id))
            assert await turns.load_items(session_id) == [user("1")]

        await cancelled_at_every_await("acquire", acquires, is_free)

    @given_turns
    @needs(STORE_WITH_ACQUIRE)
    async def test_a_cancelled_acquire_stores_no_input(self, turns: TurnStore) -> None:
        """The input that came with a cancelled acquire is withdrawn with its lease."""
        granted: list[Acquired] = []
        given = RunItems(1, 0, encode_items([user("1")]))

        async def acquires(session_id: str) -> _Operation:
            async def acquires_it() -> None:
                granted.append(await acquire(turns, session_id, input=given))

            return acquires_it

        async def is_withdrawn(session_id: str) -> None:
            assert await turns.load_items(session_id) == ([user("1")] if granted else [])
            while granted:
                await end(turns, granted.pop())
            await end(turns, await acquire(turns, session_id))

        await cancelled_at_every_await("input", acquires, is_withdrawn)

    @given_a_memory
    @needs(TURNS)
    async def test_a_cancelled_resume_can_be_made_again(self, memory: Any) -> None:
        """The run that a cancelled acquire was to resume waits for its approval as before."""
        granted: list[Acquired] = []

        async def resumes(session_id: str) -> _Operation:
            parked = await acquire(memory, session_id)
            await memory.append_items(parked.lease, 1, 0, [user("1"), call("f")])
            runs: dict[int, RunState] = {1: "awaiting_approval"}
            await end(memory, parked, "awaiting_approval", runs=runs, park=(session_id,))

            async def acquires_it() -> None:
                granted.append(await acquire(memory, session_id, resume=session_id))

            return acquires_it

        async def waits(session_id: str) -> None:
            if not granted:
                (record,) = await memory.turns(session_id)
                assert record.state == "awaiting_approval"
                granted.append(await acquire(memory, session_id, resume=session_id))
            resumed = granted.pop()
            assert resumed.resumed
            await end(memory, resumed, settles=(session_id,))

        await cancelled_at_every_await("resume", resumes, waits)

    @given_turns
    async def test_a_cancelled_write_of_a_turn_is_whole(self, turns: TurnStore) -> None:
        """A cancelled append to a turn stored all of its items or none, and the turn goes on."""
        batch = [user("1"), call("f"), output("f")]
        leases: dict[str, Acquired] = {}

        async def appends(session_id: str) -> _Operation:
            leases[session_id] = await acquire(turns, session_id)
            return lambda: turns.append_items(leases[session_id].lease, 1, 0, batch)

        async def is_whole(session_id: str) -> None:
            items = await turns.load_items(session_id)
            assert items in ([], batch), items
            await turns.append_items(leases[session_id].lease, 2, 0, [user("next")])
            await end(turns, leases[session_id], runs={1: "cancelled", 2: "completed"})
            assert await turns.load_items(session_id) == [*items, user("next")]

        await cancelled_at_every_await("append", appends, is_whole)

    @given_a_memory
    @needs(TURNS)
    async def test_a_cancelled_discard_is_whole(self, memory: Any) -> None:
        """A cancelled end of a turn that is discarded removed all of its items or none."""
        batch = [user("1"), call("f"), output("f")]

        async def discards(session_id: str) -> _Operation:
            acquired = await acquire(memory, session_id)
            await memory.append_items(acquired.lease, 1, 0, batch)
            return lambda: end(memory, acquired, "failed", discard=True)

        async def is_whole(session_id: str) -> None:
            (record,) = await memory.turns(session_id)
            items = await memory.load_session(session_id)
            assert items == ([] if record.state == "failed" else batch)
            await memory.release(session_id)

        await cancelled_at_every_await("discard", discards, is_whole)

    def _holds(self, memory: Any, *outcomes: list[Item]) -> Callable[[str], Awaitable[None]]:
        """A check that the session has one of these histories, and can be written to."""

        async def check(session_id: str) -> None:
            items = await memory.load_session(session_id)
            assert items in outcomes, items
            await memory.append_to_session(session_id, [user("next")])
            assert await memory.load_session(session_id) == [*items, user("next")]

        return check
