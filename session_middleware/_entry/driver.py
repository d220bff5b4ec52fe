"""An async generator that is driven by a task of its own, so that it outlives its reader.

While the reader is there, the generator takes a step when the reader asks for one. Once the
reader has left, it goes on by itself to its end. The task is one, so that the generator may keep
time limits and cancel scopes across its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, Self

from session_middleware._turns.participant import Participant

_Request = tuple[str, Any, "asyncio.Future[Any]"]

_driving: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks weakly


class Join(Protocol):
    """How a call comes to be part of a turn."""

    def __call__(self) -> Participant: ...
    async def approach(self) -> None:
        """Wait for those who come to the session at the same time; only before the call."""
        ...


class Driver:
    """Drives one async generator in its turn; leaving the block says that the reader leaves."""

    def __init__(self, join: Join, call: Callable[[], AsyncGenerator[Any, Any]]) -> None:
        self._join = join
        self._call = call
        self._requests: asyncio.Queue[_Request | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._drive())
        _driving.add(self._task)
        self._task.add_done_callback(_is_done)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._requests.put_nowait(None)

    async def step(self, method: str, argument: Any) -> Any:
        """What the generator yields next, asked for by ``asend`` or ``athrow``.

        Raises:
            StopAsyncIteration: the generator has ended, and so has its part in the turn.
        """
        assert self._task is not None  # noqa: S101 - asked for within the block
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((method, argument, answer))
        await asyncio.wait((self._task, answer), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        self._task.result()
        raise StopAsyncIteration

    async def _drive(self) -> None:
        await self._join.approach()
        async with self._join() as turn:
            await turn.acquire()
            with turn.in_force():
                inner = self._call()
                try:
                    while (request := await self._requests.get()) is not None:
                        method, argument, answer = request
                        answer.set_result(await getattr(inner, method)(argument))
                    async for _ in inner:
                        pass
                except StopAsyncIteration:
                    return


def _is_done(task: asyncio.Task[None]) -> None:
    _driving.discard(task)
    if not task.cancelled():
        task.exception()  # looked at: a reader that has left hears of nothing
