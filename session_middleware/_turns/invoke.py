"""The three ways to call a Runner method, each with what comes before its run and after it.

``run`` tells the story of a turn; ``run_blocking`` and ``stream`` are the same story for code
without an event loop, and for a run that goes on after the call.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, Protocol, Self

from session_middleware import _background, _sdk
from session_middleware._sdk import RunCall
from session_middleware._turns.readers import cancel_on_departure, finish_on_departure


class InvokedRun(Protocol):
    """A run, as the ways to call a Runner method need it; leaving its block ends it."""

    call: RunCall
    result: Any
    failure: BaseException | None

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None: ...
    def in_force(self) -> AbstractContextManager[None]: ...
    async def prepare(self) -> None: ...
    def prepare_streamed(self) -> None: ...
    async def prepare_called(self) -> None: ...
    def equip(self) -> None: ...
    async def end(self) -> None: ...
    @property
    def gated(self) -> bool: ...
    @property
    def on_departure(self) -> Literal["finish", "cancel"] | None:
        """What becomes of a streamed run whose reader leaves; None: what the SDK does."""
        ...


class InvokingParticipant(Protocol):
    """The participant of a call; leaving its block leaves the turn."""

    failure: BaseException | None

    def new_run(self, call: RunCall) -> InvokedRun: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None: ...
    async def deliver(self) -> None: ...
    def deliver_blocking(self) -> None: ...
    def leave_soon(self, error: BaseException | None = None) -> None: ...


def invoke(participant: InvokingParticipant, call: RunCall) -> Any:
    """Make a Runner call in its method's own way; the participant leaves when its run is over."""
    ways = {"run": run, "run_sync": run_blocking, "run_streamed": stream}
    return ways[call.method](participant, call)


async def run(participant: InvokingParticipant, call: RunCall) -> Any:
    """``Runner.run`` in a turn, from the top to the bottom."""
    async with participant:  # the last participant to leave ends the turn: record, lease, report
        with participant.new_run(call) as one, one.in_force():
            await one.prepare()  # acquire the session; see what an earlier attempt left
            one.equip()  # the SDK is given the run as its session, and our hooks
            # The SDK asks the run for the history: loaded, cut to the window, repaired. It calls
            # the model and its tools, and hands over what is to be persisted.
            one.result = await call.go()
            await participant.deliver()  # persist what was deferred, if the turn goes on
        await one.end()
    return one.result


def run_blocking(participant: InvokingParticipant, call: RunCall) -> Any:
    """``Runner.run_sync`` in a turn."""
    with participant:
        with participant.new_run(call) as one, one.in_force():
            _background.wait(one.prepare())
            one.equip()
            one.result = call.go()
            participant.deliver_blocking()
        _background.wait(one.end())
    return one.result


def stream(participant: InvokingParticipant, call: RunCall) -> Any:
    """``Runner.run_streamed`` in a turn, which its run loop leaves.

    The call is made in a copy of the context: its task inherits that one, and the consumer's
    own stays as it was.
    """
    context = contextvars.copy_context()
    with ExitStack() as unless_running:
        unless_running.push(lambda kind, error, trace: participant.leave_soon(error))
        one = participant.new_run(call)
        unless_running.push(one)
        one.result = result = context.run(_start_stream, one)
        if not _sdk.has_run_loop(result):  # made by what others put in the method's place
            return result
        unless_running.pop_all()
    _RunLoop(participant, one, result).replace(context)
    if one.on_departure == "cancel":
        cancel_on_departure(result)
    elif one.on_departure == "finish":
        finish_on_departure(result, context)
    return result


def _start_stream(one: InvokedRun) -> Any:
    with one.in_force():
        one.prepare_streamed()
        one.equip()
        return _sdk.go_gated(one.call, one.prepare_called) if one.gated else one.call.go()


class _RunLoop:
    """Stands in for the task of a streamed run's loop: the same outcome, after the turn's end."""

    def __init__(self, participant: InvokingParticipant, one: InvokedRun, result: Any) -> None:
        self._participant = participant
        self._run = one
        self._result = result
        self._task: asyncio.Task[Any] = result.run_loop_task
        self._started = False

    def replace(self, context: contextvars.Context) -> None:
        """Put this in the place of the run loop's task."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._await_run(), context=context)
        task.add_done_callback(self._was_never_started)
        self._result.run_loop_task = task

    async def _await_run(self) -> Any:
        self._started = True
        async with self._participant:
            with self._run:
                result = await self._task
                if _sdk.has_ended_early(self._result):  # cancelled: its loop ends in peace
                    self._fail(asyncio.CancelledError())
                await self._participant.deliver()
            if self._run.failure is None:
                await self._run.end()
        return result

    def _fail(self, error: BaseException) -> None:
        self._run.failure = self._participant.failure = error

    def _was_never_started(self, task: asyncio.Task[Any]) -> None:
        """A task that is cancelled before its first step never enters its coroutine."""
        if not self._started:
            self._task.cancel()
            self._task.add_done_callback(self._leave_late)

    def _leave_late(self, task: asyncio.Task[Any]) -> None:
        self._fail(asyncio.CancelledError())
        with self._run:
            pass
        self._participant.leave_soon(self._participant.failure)
