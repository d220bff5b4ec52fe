"""with_session_memory: a turn around a function, whatever its shape.

This module picks the call shape; where the id comes from is in ``_id_source``, and the turn does
the work.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

import wrapt

from session_middleware import _background, _calling, _run, _sdk
from session_middleware._id_source import IdSource, SessionIdOption
from session_middleware._options import MemoryOption, Options, TurnOptions, disabled, make_options
from session_middleware._scope import current_scope
from session_middleware._seat import Seat
from session_middleware._turn import Turn
from session_middleware.errors import ConflictingMemory, InvalidOption, SessionIdRequired
from session_middleware.memory import check_session_id
from session_middleware.middleware import (
    MISSING,
    intercepted_while_alive,
    loop_is_running,
)

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

Shape = Literal["coroutine", "async generator", "generator", "plain"]


class WithSession(Protocol[P, R_co]):
    """A function that takes ``session_id=`` and ``idempotency_key=`` besides its own arguments."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(
        self,
        *args: Any,
        session_id: str | None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> R_co: ...
    def __get__(self, instance: Any, owner: type | None = None, /) -> Callable[..., R_co]: ...


class Decorator(Protocol):
    """``with_session_memory`` with its options given, to be used on any function."""

    def __call__(self, function: Callable[P, R], /) -> WithSession[P, R]: ...


@overload
def with_session_memory(
    function: Callable[P, R],
    /,
    *,
    session_id: SessionIdOption = None,
    memory: MemoryOption = True,
    **options: Unpack[TurnOptions],
) -> WithSession[P, R]: ...
@overload
def with_session_memory(
    *,
    session_id: SessionIdOption = None,
    memory: MemoryOption = True,
    **options: Unpack[TurnOptions],
) -> Decorator: ...
def with_session_memory(
    function: Any = None,
    /,
    *,
    session_id: SessionIdOption = None,
    memory: MemoryOption = True,
    **options: Unpack[TurnOptions],
) -> Any:
    """Give a function, or a Runner method itself, a memory by session id.

    Runs made inside the function belong to the session that the call names with
    ``session_id=``; neither the function's body nor its agents change.

    The session is taken before the function begins. A plain function cannot wait under a running
    event loop: there its first run takes it, and a call that makes no run, nor returns something
    to await, is no turn; an ``idempotency_key`` says nothing about it.

    Args:
        function: a function of any shape, a method, a partial, a callable, or ``Runner.run``,
            ``Runner.run_sync``, ``Runner.run_streamed``. Without it, a decorator is returned.
        session_id: where calls get their id if they do not name one: the name of a parameter,
            or a callable that is given the function's arguments, a method's instance among them.
        memory: True: what SESSION_MIDDLEWARE_MEMORY says, else ./agent_sessions.db. A
            SessionMemory, or a URL. None: calls pass through untouched.
        options: window, redact, on_busy, wait_timeout (s), turn_timeout (s), on_failure,
            on_unavailable, on_departure, telemetry.

    Returns:
        The function, with two more keywords: ``session_id`` and ``idempotency_key``.

    Raises:
        InvalidOption, InvalidMemoryUrl, ConflictingMemory: at decoration.
        SessionIdRequired, InvalidSessionId, SessionBusy, TurnInProgress, DuplicateTurn,
        IdempotencyConflict, TurnLost, MemoryUnavailable: at the call.

    >>> @with_session_memory(memory=":memory:")
    ... async def chat(question: str) -> str:
    ...     result = await Runner.run(agent, question)
    ...     return result.final_output
    >>> async def talk():
    ...     return await chat("Hi, I'm Alice", session_id="user_alice")
    """
    checked = make_options(memory, dict(options))
    if function is None:
        return functools.partial(_decorate, session_id=session_id, options=checked)
    return _decorate(function, session_id=session_id, options=checked)


def _decorate(function: Any, /, *, session_id: SessionIdOption, options: Options) -> Any:
    inner = function.__func__ if isinstance(function, (classmethod, staticmethod)) else function
    if not callable(inner):
        raise InvalidOption(
            f"with_session_memory goes around a function, not {function!r}: options are given by "
            "name, such as with_session_memory(memory=...)"
        )
    method = _sdk.runner_method(inner)
    source = IdSource(inner, session_id)
    around = (
        _AroundRunner(method, inner, options, source) if method else _Around(inner, options, source)
    )
    decorated: Any = wrapt.FunctionWrapper(cast(Any, function), around)
    intercepted_while_alive(decorated)
    return decorated


# --- the call shapes -----------------------------------------------------------------------


def _shape_of(function: Any) -> Shape:
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - its code is looked at
    if inspect.iscoroutinefunction(function):
        return "coroutine"
    if inspect.isasyncgenfunction(function):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(function) else "plain"


class _Around:
    """What happens around a call of a decorated function."""

    def __init__(self, function: Any, options: Options, source: IdSource) -> None:
        self.options = options
        self.source = source
        self.shape = _shape_of(function)

    def __call__(self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        session_id, key, kwargs = self.source.take(wrapped, instance, args, kwargs)
        if self.options.memory is None or disabled():
            return wrapped(*args, **kwargs)
        call = functools.partial(wrapped, *args, **kwargs)
        take_seat = functools.partial(self._seat, session_id, key, (*args, *kwargs.values()))
        if self.shape == "coroutine":
            return _in_coroutine(take_seat, call)
        if self.shape == "async generator":
            return _in_async_generator(take_seat, call)
        if self.shape == "generator":
            return _in_generator(take_seat, call)
        return _in_plain(take_seat, call)

    def _seat(self, session_id: Any, key: str | None, arguments: tuple[Any, ...]) -> Seat:
        """A seat in the scope's turn if it is of this session, else in a new one."""
        session_id = self._session_id(session_id)
        seat = Seat.here(session_id, self.options, key)
        if seat is None:
            state = _sdk.find_state(arguments)
            seat = Seat.of_new(
                Turn(
                    session_id,
                    self.options,
                    name=self.source.name,
                    idempotency_key=key,
                    resume=None if state is None else _sdk.parked_identity(state),
                )
            )
        return seat

    def _session_id(self, found: Any) -> str:
        scope = current_scope()
        if found is MISSING and scope is not None:
            found = scope.turn.session_id
        if found is MISSING or found is None:
            raise SessionIdRequired(
                f"{self.source.name} has a memory, and this call names no session: call it as "
                f'{self.source.name}(..., session_id="user-42")'
            )
        return check_session_id(found)


class _AroundRunner(_Around):
    """What happens around ``Runner.run``, ``run_sync`` or ``run_streamed`` itself."""

    def __init__(self, method: str, function: Any, options: Options, source: IdSource) -> None:
        super().__init__(function, options, source)
        self.method = method

    def __call__(self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        session_id, key, kwargs = self.source.take(wrapped, instance, args, kwargs)
        if self.options.memory is None or disabled():
            return wrapped(*args, **kwargs)
        call = _sdk.bind(self.method, wrapped, args, kwargs)
        session = call.arguments.get("session")
        if isinstance(session, _run.Run):
            return call.go()  # decorated twice: the run has its session
        if session is not None:
            raise ConflictingMemory(
                f"{self.source.name} was given a memory, and the call brings a session= of its "
                "own: leave one out"
            )
        if self.method == "run":
            return self._run(session_id, key, call)
        return self._carry_out(session_id, key, call)

    async def _run(self, session_id: Any, key: str | None, call: _sdk.RunCall) -> Any:
        return await self._carry_out(session_id, key, call)

    def _carry_out(self, session_id: Any, key: str | None, call: _sdk.RunCall) -> Any:
        seat = _run.seat_for(self._session_id(session_id), self.options, call, key)
        return _calling.carry_out(seat, lambda: _run.Run(seat.turn, call), self.method)


TakeSeat = Callable[[], Seat]


async def _in_coroutine(take_seat: TakeSeat, call: Callable[[], Awaitable[Any]]) -> Any:
    seat = take_seat()
    turn = seat.turn
    error: BaseException | None = None
    try:
        await turn.take()
        with turn.in_force():
            return await call()
    except BaseException as failure:
        error = failure
        raise
    finally:
        await seat.leave(error)
        _warn_of_no_run(turn, error)


async def _in_async_generator(
    take_seat: TakeSeat, call: Callable[[], AsyncGenerator[Any, Any]]
) -> AsyncGenerator[Any, Any]:
    seat = take_seat()
    turn = seat.turn
    error: BaseException | None = None
    try:
        await turn.take()
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
    except BaseException as failure:
        error = failure
        raise
    finally:
        await seat.leave(_departure(error))
        _warn_of_no_run(turn, error)


def _in_generator(
    take_seat: TakeSeat, call: Callable[[], Generator[Any, Any, Any]]
) -> Generator[Any, Any, Any]:
    seat = take_seat()
    turn = seat.turn
    error: BaseException | None = None
    try:
        if not loop_is_running():
            _background.wait(turn.take())
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
    except BaseException as failure:
        error = failure
        raise
    finally:
        _leave_from_plain(seat, _departure(error))
        _warn_of_no_run(turn, error)


def _in_plain(take_seat: TakeSeat, call: Callable[[], Any]) -> Any:
    """A plain function: the session is taken at once, or, under a running loop, when needed.

    What it returns to be awaited is awaited inside the turn.
    """
    seat = take_seat()
    turn = seat.turn
    awaited = False
    error: BaseException | None = None
    try:
        if not loop_is_running():
            _background.wait(turn.take())
        with turn.in_force():
            value = call()
        if inspect.isawaitable(value):
            awaited = True
            return _awaited_in(seat, value)
        return value
    except BaseException as failure:
        error = failure
        raise
    finally:
        if not awaited:
            _leave_from_plain(seat, error)
            _warn_of_no_run(turn, error)


def _awaited_in(seat: Seat, value: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    turn = seat.turn
    begun = False

    async def inside() -> Any:
        nonlocal begun
        begun = True
        error: BaseException | None = None
        try:
            try:
                await turn.take()
            except BaseException:
                if inspect.iscoroutine(value):
                    value.close()  # else it would warn that nobody awaited it
                raise
            with turn.in_force():
                return await value
        except BaseException as failure:
            error = failure
            raise
        finally:
            await seat.leave(error)
            _warn_of_no_run(turn, error)

    coroutine = inside()

    def never_awaited() -> None:
        if not begun:
            seat.leave_soon(asyncio.CancelledError())

    weakref.finalize(coroutine, never_awaited)
    return coroutine


def _leave_from_plain(seat: Seat, error: BaseException | None) -> None:
    if not loop_is_running():
        seat.leave_blocking(error)
    elif seat.turn.idempotency_key is not None and error is None:
        seat.leave_blocking(error)  # the record must be durable before the call returns
    else:
        seat.leave_soon(error)


def _departure(error: BaseException | None) -> BaseException | None:
    """A consumer that leaves a generator early cancels its turn; that may be awaited."""
    return asyncio.CancelledError() if isinstance(error, GeneratorExit) else error


def _warn_of_no_run(turn: Turn, error: BaseException | None) -> None:
    if error is None and turn.account.made == 0:
        turn.telemetry.event("no_run_intercepted")
