"""The readers of a streamed run: what becomes of the run when one leaves before the end.

The SDK cancels a run whose reader is cancelled, as servers do when a client leaves. A run that is
to finish is therefore drained by a task of its own, and readers read from that; a run that is to
be cancelled is cancelled however its reader leaves.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

Events = Callable[[], AsyncIterator[Any]]


def cancel_on_departure(result: Any) -> None:
    """Cancel the run when its reader leaves the stream before its end."""
    events: Events = result.stream_events

    async def stream_events() -> AsyncIterator[Any]:
        at_end = False
        try:
            async for event in events():
                yield event
            at_end = True
        finally:
            if not at_end:
                result.cancel()

    result.stream_events = stream_events


def finish_on_departure(result: Any, context: contextvars.Context) -> None:
    """Let the run finish however its reader leaves the stream.

    Args:
        context: in which the run was started; its stream is drained there.
    """
    result.stream_events = _Drain(result.stream_events, context).read


_END: Final = object()


class _Drain:
    """Takes the events of a run from the SDK, and hands them to whoever reads.

    The SDK begins the next model turn when the reader has had all events of the one before, so
    that a reader may stop the run in between. While somebody reads, the drain waits likewise.
    Events that are left unread are dropped once nobody reads any more.
    """

    def __init__(self, events: Events, context: contextvars.Context) -> None:
        # Held weakly, as the result holds the drain; the run itself keeps its result alive.
        self._events = weakref.WeakMethod(events)
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._readers = 0

    async def read(self) -> AsyncIterator[Any]:
        """The stream, in place of the SDK's."""
        task = self._start()
        self._readers += 1
        try:
            while not (task.done() and self._queue.empty()):
                event = await self._queue.get()
                try:
                    if event is _END:
                        break
                    yield event
                finally:
                    self._queue.task_done()
        except GeneratorExit:
            self._leave()
            await asyncio.wait((task,))  # as the SDK's own stream does when it is closed
            raise
        except BaseException:
            self._leave()
            raise
        self._leave()
        await asyncio.wait((task,))
        task.result()

    def _leave(self) -> None:
        self._readers -= 1
        while not self._readers and not self._queue.empty():
            self._queue.get_nowait()
            self._queue.task_done()

    def _start(self) -> asyncio.Task[None]:
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._drain(self._events()), context=self._context)
            self._task.add_done_callback(_look_at)
        return self._task

    async def _drain(self, events: Events | None) -> None:
        try:
            if events is None:
                return  # nobody holds the result, and nobody can
            async for event in events():
                if self._readers:
                    self._queue.put_nowait(event)
                    await self._queue.join()
        finally:
            for _ in range(self._readers):
                self._queue.put_nowait(_END)


def _look_at(task: asyncio.Task[None]) -> None:
    """Look at the error of a run that nobody reads any more; its turn has reported it."""
    if not task.cancelled():
        task.exception()
