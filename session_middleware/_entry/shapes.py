"""The call shapes of a decorated function, each made within its turn.

The context is set around each step of a generator and never across a yield, so that it does not
leak to the consumer. Which turn it is, and what the function is called with, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any

from session_middleware import _background
from session_middleware._background import loop_is_running
from session_middleware._entry.driver import Driver, Join
from session_middleware._turns.participant import Participant

Shape = Callable[[Join, Callable[[], Any]], Any]
"""Makes a call, given the participant of its turn and the call itself."""


def shape_of(function: Any, *, finishes: bool = False) -> Shape:
    """How calls of this function are made in a turn.

    Args:
        finishes: an async generator finishes though its reader leaves.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - its code is looked at
    if inspect.iscoroutinefunction(function):
        return in_coroutine
    if inspect.isasyncgenfunction(function):
        return in_finishing_generator if finishes else in_async_generator
    return in_generator if inspect.isgeneratorfunction(function) else in_plain


async def in_coroutine(join: Join, call: Callable[[], Awaitable[Any]]) -> Any:
    """A coroutine function: the session is acquired before its first step."""
    await join.approach()
    async with join() as turn:
        await turn.acquire()
        with turn.in_force():
            return await call()


async def in_async_generator(
    join: Join, call: Callable[[], AsyncGenerator[Any, Any]]
) -> AsyncGenerator[Any, Any]:
    """An async generator: the session is acquired at its first step.

    A reader that leaves it early cancels its turn.
    """
    await join.approach()
    participant = join()
    participant.is_generator = participant.turn.of_generator = True
    async with participant as turn:
        await turn.acquire()
        with turn.in_force():
            inner = call()
        step: Callable[[], Awaitable[Any]] = functools.partial(inner.asend, None)
        while True:
            try:
                with turn.in_force():
                    value = await step()
            except StopAsyncIteration:
                break
            try:
                sent = yield value
            except GeneratorExit:
                with turn.in_force():
                    await inner.aclose()
                raise
            except BaseException as thrown:
                step = functools.partial(inner.athrow, thrown)
            else:
                step = functools.partial(inner.asend, sent)


async def in_finishing_generator(
    join: Join, call: Callable[[], AsyncGenerator[Any, Any]]
) -> AsyncGenerator[Any, Any]:
    """The same, for one that finishes in the background when its reader leaves it early."""
    driver = Driver(join, call)
    request: tuple[str, Any] = "asend", None
    with driver:
        while True:
            try:
                value = await driver.step(*request)
            except StopAsyncIteration:
                break
            try:
                sent = yield value
            except GeneratorExit:
                raise
            except BaseException as thrown:
                request = "athrow", thrown
            else:
                request = "asend", sent


def in_generator(
    join: Join, call: Callable[[], Generator[Any, Any, Any]]
) -> Generator[Any, Any, Any]:
    """A generator: the session is acquired at its first step, if the caller runs no event loop."""
    participant = join()
    participant.is_generator = True
    with participant as turn:
        if not loop_is_running():
            _background.wait(turn.acquire())
        with turn.in_force():
            inner = call()
        step: Callable[[], Any] = functools.partial(inner.send, None)
        while True:
            try:
                with turn.in_force():
                    value = step()
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield value
            except GeneratorExit:
                with turn.in_force():
                    inner.close()
                raise
            except BaseException as thrown:
                step = functools.partial(inner.throw, thrown)
            else:
                step = functools.partial(inner.send, sent)


def in_plain(join: Join, call: Callable[[], Any]) -> Any:
    """A plain function: the session is acquired at once or, under a running loop, when needed.

    An awaitable that it returns is awaited inside the turn.
    """
    participant = join()
    with participant.unless_handed_on() as handed_on:
        turn = participant.turn
        if not loop_is_running():
            _background.wait(turn.acquire())
        with turn.in_force():
            value = call()
        if inspect.isawaitable(value):
            handed_on.pop_all()
            return _awaited_in(participant, value)
        return value


def _awaited_in(participant: Participant, value: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    begun = False

    async def inside() -> Any:
        nonlocal begun
        begun = True
        async with participant as turn:
            try:
                await turn.acquire()
            except BaseException:
                if inspect.iscoroutine(value):
                    value.close()  # else it would warn that nobody awaited it
                raise
            with turn.in_force():
                return await value

    coroutine = inside()

    def never_awaited() -> None:
        if not begun:
            participant.leave_soon(asyncio.CancelledError())

    weakref.finalize(coroutine, never_awaited)
    return coroutine
