"""The three ways to call a Runner method, each with what comes before its run and after it.

What the run is of, and whose turn it is part of, are no concern of it: it is given a seat, which
it leaves, and something that makes the run.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from session_middleware import _background, _sdk
from session_middleware._sdk import RunCall


class RunOf(Protocol):
    """What the three ways to call a Runner method need of a run."""

    call: RunCall

    def in_force(self) -> AbstractContextManager[None]: ...
    async def prepare(self) -> None: ...
    def prepare_streamed(self) -> None: ...
    def equip(self) -> None: ...
    def over(
        self, result: Any = None, error: BaseException | None = None, *, here: bool
    ) -> None: ...
    async def is_over(self) -> None: ...
    @property
    def gated(self) -> bool: ...
    @property
    def cancels_on_departure(self) -> bool: ...


class SeatOf(Protocol):
    """What they need of a seat, which they leave."""

    @property
    def owes(self) -> bool: ...
    async def send(self) -> None: ...
    async def leave(self, error: BaseException | None = None) -> None: ...
    def leave_blocking(self, error: BaseException | None = None) -> None: ...
    def leave_soon(self, error: BaseException | None = None) -> None: ...


def carry_out(seat: SeatOf, make: Callable[[], RunOf], method: str) -> Any:
    """Make a Runner call in its method's own way, and leave the seat when its run is over."""
    if method == "run":
        return run(seat, make)
    return stream(seat, make) if method == "run_streamed" else run_blocking(seat, make)


async def run(seat: SeatOf, make: Callable[[], RunOf]) -> Any:
    """``Runner.run``."""
    error: BaseException | None = None
    try:
        one = make()
        with one.in_force():
            try:
                await one.prepare()
                one.equip()
                result = await one.call.go()
                if seat.owes:
                    await seat.send()
            except BaseException as failure:
                one.over(error=failure, here=True)
                raise
            one.over(result, here=True)
        await one.is_over()
        return result
    except BaseException as failure:
        error = failure
        raise
    finally:
        await seat.leave(error)


def run_blocking(seat: SeatOf, make: Callable[[], RunOf]) -> Any:
    """``Runner.run_sync``."""
    error: BaseException | None = None
    try:
        one = make()
        with one.in_force():
            try:
                _background.wait(one.prepare())
                one.equip()
                result = one.call.go()
                if seat.owes:
                    _background.wait(seat.send())
            except BaseException as failure:
                one.over(error=failure, here=True)
                raise
            one.over(result, here=True)
        _background.wait(one.is_over())
        return result
    except BaseException as failure:
        error = failure
        raise
    finally:
        seat.leave_blocking(error)


def stream(seat: SeatOf, make: Callable[[], RunOf]) -> Any:
    """``Runner.run_streamed``; its run loop leaves the turn.

    The call is made in a copy of the context: its task inherits that one, and the consumer's
    own stays as it was.
    """
    context = contextvars.copy_context()
    try:
        one = make()
        result = context.run(_start_stream, one)
    except BaseException as error:
        seat.leave_soon(error)
        raise
    ending = _Ending(seat, one, result)
    result.run_loop_task = asyncio.get_running_loop().create_task(
        ending.await_run(), context=context
    )
    result.run_loop_task.add_done_callback(ending.was_never_started)
    if one.cancels_on_departure:
        _cancel_on_departure(result)
    return result


def _start_stream(one: RunOf) -> Any:
    with one.in_force():
        one.prepare_streamed()
        one.equip()
        return _sdk.go_gated(one.call, one.prepare) if one.gated else one.call.go()


class _Ending:
    """What follows a streamed run: the end of its part in the turn, exactly once."""

    def __init__(self, seat: SeatOf, one: RunOf, result: Any) -> None:
        self.seat = seat
        self.one = one
        self.result = result
        self.loop_task: asyncio.Task[Any] = result.run_loop_task
        self.started = False

    async def await_run(self) -> Any:
        """Stand in for the run loop's task: its outcome, after the turn's end."""
        self.started = True
        error: BaseException | None = None
        try:
            result = await self.loop_task
            if self.seat.owes:
                await self.seat.send()
            return result
        except BaseException as failure:
            error = failure
            raise
        finally:
            error = self._report(error)
            if error is None:
                await self.one.is_over()
            await self.seat.leave(error)

    def was_never_started(self, standing_in: asyncio.Task[Any]) -> None:
        """A task that is cancelled before its first step never enters its coroutine."""
        if self.started:
            return
        self.loop_task.cancel()
        self.loop_task.add_done_callback(self._leave_late)

    def _leave_late(self, loop_task: asyncio.Task[Any]) -> None:
        self.seat.leave_soon(self._report(asyncio.CancelledError()))

    def _report(self, error: BaseException | None) -> BaseException | None:
        result = self.result
        if error is None and result.final_output is None and not result.interruptions:
            error = asyncio.CancelledError()  # cancelled after a turn: the loop ends in peace
        self.one.over(result, error, here=False)
        return error


def _cancel_on_departure(result: Any) -> None:
    """Cancel the run when its consumer leaves the stream before its end."""
    events = result.stream_events

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
