"""with_session_memory: a turn around a function, whatever its shape.

The decorator is thin: ``_entry.arguments`` finds the session id, ``_entry.shapes`` makes the call
in its shape, and ``_turns`` does the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, overload

from session_middleware import _sdk
from session_middleware._current import current_scope
from session_middleware._entry.arguments import MISSING, IdSource, SessionIdOption
from session_middleware._entry.decorated import Decorated
from session_middleware._entry.intercept import intercept_again, intercepted_while_alive
from session_middleware._entry.shapes import shape_of
from session_middleware._turns.invoke import invoke
from session_middleware._turns.participant import Participant
from session_middleware._turns.run_session import RunSession
from session_middleware._turns.turn import ActiveTurn
from session_middleware.errors import ConflictingMemory, InvalidOption, SessionIdRequired
from session_middleware.memory_option import MemoryOption
from session_middleware.options import Options, TurnOptions, disabled, make_options

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


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
    def for_session(self, session_id: str, idempotency_key: str | None = None) -> Callable[P, R_co]:
        """The function with its own parameters, whose calls belong to this session.

        For callers whose type checker is to check the arguments.
        """
        ...


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

    The session is acquired before the function begins. A plain function cannot wait under a
    running event loop: there its first run acquires the session, and a call that starts no run and
    returns nothing awaitable does not create a turn, so an ``idempotency_key`` says nothing about
    it.

    Args:
        function: a function of any shape, a method, a partial, a callable, or ``Runner.run``,
            ``Runner.run_sync``, ``Runner.run_streamed``. Without it, a decorator is returned.
        session_id: names the session of calls that do not: the name of a parameter, or a function
            of the call's arguments, a method's instance among them. Default None: each call, or
            a scope around it, names its session.
        memory: the memory that holds the sessions: a SessionMemory, a URL, True for the URL in
            SESSION_MIDDLEWARE_MEMORY, else ./agent_sessions.db, or None to let calls pass
            through untouched. Default True.
        window: Which turns of the history the model sees. Default None: all of them.
        redact: A function from an item to the item that is stored, or to None to leave it out.
            Default None: items are stored as they are.
        on_busy: Wait for a session that another turn holds, or raise SessionBusy at once.
            Default "wait".
        wait_timeout: Seconds to wait for a busy session before SessionBusy. Default None: twice
            the memory's lease, 60 s.
        max_waiting: How many turns of this process may wait for one session; one more gets
            SessionBusy at once. Default 1000.
        turn_timeout: Seconds after which a turn loses its session. Default None: no limit.
        on_failure: Keep or discard the items of a turn that failed or was cancelled. Default
            "keep".
        on_unavailable: Raise MemoryUnavailable when the storage fails, or go on without memory
            and log it. Default "raise".
        on_departure: Whether a run finishes ("finish") or is cancelled ("cancel") when its reader
            leaves before the end. Default None: a streamed run finishes, a decorated async
            generator is cancelled.
        on_unknown: What becomes of a tool call that began in an earlier attempt and did not
            end: tell the model, raise OutcomeUnknown, or let the model make it again. Default
            "tell".
        rerun: The names of tools that may simply run again, or a function of a tool's name.
            Default None: none may.
        unknown_state: Refuse to resume a run that this memory has not parked, or adopt it.
            Default "refuse".
        keep_state: Whether the memory keeps the state of a run that waits for approval, so that
            any process can restore it. Default None: yes, unless redact is given, which the state
            knows nothing of.
        telemetry: A dict with tracer_provider, meter_provider, session_id, baggage or
            token_counts. Default None: the global providers.

    Returns:
        The function, with two more keywords: ``session_id`` and ``idempotency_key``, a string
        that names the request, so that a retry does not do its work twice. A type checker does
        not check the other arguments of a call that names its session so;
        ``chat.for_session("user_alice")`` is the function with exactly its own parameters.

    Raises:
        InvalidOption, InvalidMemoryUrl, ConflictingMemory: at decoration.
        SessionIdRequired, InvalidSessionId: at the call, which names no session or a wrong one.
        SessionBusy, TurnInProgress, DuplicateTurn, IdempotencyConflict: at the call, if another
            turn is in its way.
        TurnLost, MemoryUnavailable: at the call, or at its end.

    >>> @with_session_memory(memory=":memory:")
    ... async def chat(question: str) -> str:
    ...     result = await Runner.run(agent, question)
    ...     return result.final_output
    >>> async def talk():
    ...     return await chat("Hi, I'm Alice", session_id="user_alice")
    """
    checked = make_options(memory, dict(options))
    if function is None:
        return functools.partial(decorate, session_id=session_id, options=checked)
    return decorate(function, session_id=session_id, options=checked)


def decorate(function: Any, /, *, session_id: SessionIdOption, options: Options) -> Any:
    """Decorate a function with options that were checked."""
    inner = function.__func__ if isinstance(function, (classmethod, staticmethod)) else function
    if not callable(inner):
        raise InvalidOption(
            f"with_session_memory() must be given a function, got a value of type "
            f"{type(function).__name__}: options are given by name, such as "
            "with_session_memory(memory=...)"
        )
    method = _sdk.runner_method(inner)
    source = IdSource(_sdk.without_partials(inner)[0] if method else inner, session_id)
    around = (
        _AroundRunner(method, inner, options, source) if method else _Around(inner, options, source)
    )
    decorated = Decorated(
        function,
        around,
        functools.partial(decorate, session_id=session_id, options=options),
        source.shown_signature(inner),
    )
    intercepted_while_alive(decorated)
    return decorated


# --- one call --------------------------------------------------------------------------------


class _Around:
    """What happens around a call of a decorated function."""

    def __init__(self, function: Any, options: Options, source: IdSource) -> None:
        self._options = options
        self.source = source
        self.shape = shape_of(function, finishes=options.on_departure == "finish")

    @property
    def options(self) -> Options:
        return self._options.in_force()

    def __call__(self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        session_id, key, kwargs = self.source.take(wrapped, instance, args, kwargs)
        if self.options.memory is None or disabled():
            return wrapped(*args, **kwargs)
        intercept_again()
        call = functools.partial(wrapped, *args, **kwargs)
        fingerprint = None
        if key is not None:
            fingerprint = self.source.fingerprint(wrapped, instance, args, kwargs)
        join = _Join(self, session_id, key, fingerprint, (*args, *kwargs.values()))
        return self.shape(join, call)

    def session_id(self, found: Any) -> str:
        """The session's id, given what was found in the call."""
        scope = current_scope()
        if found is MISSING and scope is not None and scope.turn is not None:
            found = scope.turn.session_id
            if scope.turn.memory_identity == self.options.turns.identity:
                return scope.turn.session_id  # it is the full id already
        if found is MISSING or found is None:
            raise SessionIdRequired(
                f"{self.source.name}() needs a session_id: call it as "
                f'{self.source.name}(..., session_id="user-42")'
            )
        return self.options.full_id(found)


@dataclass(eq=False, slots=True)
class _Join:
    """How one call of a decorated function comes to be part of a turn."""

    around: _Around
    session_id: Any
    key: str | None
    fingerprint: str | None
    arguments: tuple[Any, ...]

    async def approach(self) -> None:
        """Wait for those who come to the session at the same time."""
        around = self.around
        await Participant.approach(around.session_id(self.session_id), around.options)

    def __call__(self) -> Participant:
        """A participant in the scope's turn if it is of this session, else in a new one."""
        around = self.around
        session_id = around.session_id(self.session_id)
        participant = Participant.here(session_id, around.options, self.key)
        if participant is None:
            state = _sdk.find_state(self.arguments)
            participant = Participant.of_new(
                ActiveTurn(
                    session_id,
                    around.options,
                    name=around.source.name,
                    idempotency_key=self.key,
                    input_digest=self.fingerprint,
                    resume=None if state is None else _sdk.parked_identity(state),
                )
            )
        participant.expects_run = True
        return participant


class _AroundRunner(_Around):
    """What happens around ``Runner.run``, ``run_sync`` or ``run_streamed`` itself."""

    def __init__(self, method: str, function: Any, options: Options, source: IdSource) -> None:
        super().__init__(function, options, source)
        self.method = method

    def __call__(self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        wrapped, first, named = _sdk.without_partials(wrapped)
        args, kwargs = (*first, *args), named | kwargs
        session_id, key, kwargs = self.source.take(wrapped, instance, args, kwargs)
        if self.options.memory is None or disabled():
            return wrapped(*args, **kwargs)
        call = _sdk.bind(self.method, wrapped, args, kwargs)
        if isinstance(call.session, RunSession):
            return call.go()  # decorated twice: the run has its session
        if call.session is not None:
            raise ConflictingMemory(
                f"{self.source.name}() has a memory, and the call got a session= of its own: leave "
                "one out"
            )
        if self.method == "run":
            return self._run(session_id, key, call)
        return self._invoke(session_id, key, call)

    async def _run(self, session_id: Any, key: str | None, call: _sdk.RunCall) -> Any:
        await Participant.approach(self.session_id(session_id), self.options)
        return await self._invoke(session_id, key, call)

    def _invoke(self, session_id: Any, key: str | None, call: _sdk.RunCall) -> Any:
        session_id = self.session_id(session_id)
        return invoke(Participant.for_call(session_id, self.options, call, key), call)
