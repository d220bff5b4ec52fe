"""A call of a Runner method that may belong to a session, and when the Runner is wrapped.

Runner's three methods are wrapped in place when something first needs it, and put back when
nothing does. A call that belongs to no session goes through untouched. What a run does in its
turn is for ``_turns``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from session_middleware import _sdk
from session_middleware._current import Scope, current_scope, inside_call
from session_middleware._entry.arguments import MISSING, check_key
from session_middleware._entry.installation import current_installation
from session_middleware._entry.view import SessionView, view_within
from session_middleware._turns import observe
from session_middleware._turns.invoke import invoke
from session_middleware._turns.participant import Participant
from session_middleware._turns.run_session import RunSession
from session_middleware._turns.tool_calls import current_tool_call
from session_middleware._turns.turn import ActiveTurn, turn_here
from session_middleware._turns.wrapped_session import WrappedSession
from session_middleware.errors import ConflictingMemory, SessionIdRequired
from session_middleware.memory import SessionMemory, set_view_factory
from session_middleware.options import Options, disabled

# --- one call of a Runner method -----------------------------------------------------------


def _around(method: str) -> Callable[..., Any]:
    def intercept(wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        session = _sdk.given_session(kwargs)
        if isinstance(session, RunSession) and _sdk.given_context(kwargs) is None:
            return wrapped(*args, **kwargs)  # a run that is in a turn already, and for no tool
        scope = current_scope()
        of_none = session is None or view_within(session) is None
        if of_none and turn_here() is None and current_installation() is None:
            return wrapped(*args, **kwargs)
        return _Intercepted(method, wrapped, args, kwargs, scope).go()

    return intercept


_passed_on: ContextVar[_sdk.RunCall | None] = ContextVar("session_middleware.passed", default=None)
"""A call that is made without a session although one may be in force.

Where others have wrapped Runner's methods in between, our wrapper may be there twice, and the
inner one must not decide otherwise.
"""


@contextmanager
def _passing_on(call: _sdk.RunCall) -> Iterator[None]:
    token = _passed_on.set(call)
    try:
        yield
    finally:
        _passed_on.reset(token)


def _was_passed_on(call: _sdk.RunCall) -> bool:
    """Whether an outer wrapper of ours made this call; true once."""
    outer = _passed_on.get()
    if outer is None or not outer.is_handed_on_as(call):
        return False
    _passed_on.set(None)
    return True


class _Intercepted:
    """A Runner call that may belong to a session: finds which one, and makes the call."""

    def __init__(
        self,
        method: str,
        wrapped: Any,
        args: Any,
        kwargs: dict[str, Any],
        scope: Scope | None,
    ) -> None:
        self.method = method
        self.scope = scope
        kwargs = dict(kwargs)
        self.session_id = kwargs.pop("session_id", MISSING)
        self.key = kwargs.pop("idempotency_key", None)
        self.call = _sdk.bind(method, wrapped, args, kwargs)

    def go(self) -> Any:
        if self.method == "run":
            return self._go_async()
        with self._inside_call():
            return self._invoke()

    async def _go_async(self) -> Any:
        with self._inside_call():
            return await self._invoke()

    def _inside_call(self) -> AbstractContextManager[None]:
        """A block for a run that is made for a tool call: of an agent used as a tool."""
        nested = self.scope is not None and self.scope.run is not None
        outer = current_tool_call(self.call.context) if nested else None
        return nullcontext() if outer is None else inside_call(outer)

    def _invoke(self) -> Any:
        call, session = self.call, self.call.session
        if isinstance(session, (RunSession, WrappedSession)):
            return call.go()  # our outer wrapper has made a run of it
        view = view_within(session)
        if disabled() and view is not None:
            call.drop_session()
        if disabled() or _was_passed_on(call):
            return call.go()
        installation = current_installation()
        if self.session_id is None:
            if installation is not None and installation.require_session_id:
                raise self._id_required()
            return self._pass_on()
        if session is not None and view is None:
            return self._with_other_session(session)
        found = self._session(view)
        if found is None:
            return self._pass_on()
        key = check_key(self.key)
        return self._run(*found, key) if self.method == "run" else self._make(*found, key)

    async def _run(self, session_id: str, options: Options, key: str | None) -> Any:
        await Participant.approach(session_id, options)
        return await self._make(session_id, options, key)

    def _make(self, session_id: str, options: Options, key: str | None) -> Any:
        return invoke(Participant.for_call(session_id, options, self.call, key), self.call)

    def _pass_on(self) -> Any:
        """Make the call as one that is not ours."""
        if self.session_id is MISSING:
            return self.call.go()
        if self.method == "run":
            return self._pass_on_async()
        with _passing_on(self.call):
            return self.call.go()

    async def _pass_on_async(self) -> Any:
        with _passing_on(self.call):
            return await self.call.go()

    def _with_other_session(self, session: Any) -> Any:
        """Make the call with a session that is not ours; observe it if ``install`` says so."""
        if self.session_id is not MISSING:
            raise ConflictingMemory(
                f"Runner.{self.method}() got both session_id and session=: leave one out"
            )
        scope = self.scope
        if scope is not None and scope.run is None and isinstance(scope.turn, ActiveTurn):
            kind = type(session).__name__
            scope.turn.telemetry.event("other_session_given", session_type=kind)
        installation = current_installation()
        if installation is None or not installation.observe or observe.is_observed(session):
            return self.call.go()
        return observe.invoke(session, self.call, installation.options)

    def _session(self, view: SessionView | None) -> tuple[str, Options] | None:
        """The session that this call belongs to; None for a call that is not ours."""
        if view is not None:
            if self.session_id not in (MISSING, view.session_id):
                raise ConflictingMemory(
                    f"session_id must be that of session=, {view.session_id!r}, got "
                    f"{self.session_id!r}: leave one out"
                )
            return view.session_id, self._options().with_memory(view.memory)
        if self.session_id is not MISSING:
            options = self._options()
            if options.memory is None:
                return None
            return options.full_id(self.session_id), options
        return self._inherited()

    def _inherited(self) -> tuple[str, Options] | None:
        """The session of the scope's turn, for a call that names none."""
        scope = self.scope
        if scope is not None:
            if scope.run is not None:
                return None  # an agent used as a tool, or the like
            turn = scope.turn
            assert isinstance(turn, ActiveTurn)  # noqa: S101 - the core makes the scopes
            return turn.session_id, turn.options
        installation = current_installation()
        if installation is not None and installation.require_session_id:
            raise self._id_required()
        outlived = turn_here()
        if outlived is not None:
            outlived.telemetry.event_once("context_outlived_turn")
        return None

    def _id_required(self) -> SessionIdRequired:
        return SessionIdRequired(
            f"Runner.{self.method}() needs a session_id, since install() was given "
            "require_session_id=True: call it as "
            f'Runner.{self.method}(agent, "Hello", session_id="user-42")'
        )

    def _options(self) -> Options:
        """The options of the turn that this context was made in, else the installed ones.

        A call that names its session has them also where that turn has ended.
        """
        turn = turn_here()
        if turn is not None:
            return turn.options
        installation = current_installation()
        if installation is not None:
            return installation.for_agent(self.call.starting_agent)
        return Options()


# --- when the Runner is wrapped ------------------------------------------------------------

_needs: set[object] = set()
_needing = threading.Lock()


def ensure_intercepted(need: object) -> None:
    """Wrap Runner's methods if they are not; ``need`` stands for the caller."""
    with _needing:
        _needs.add(need)
        _sdk.patch(_around)


def intercepted_while_alive(owner: object) -> None:
    """Wrap Runner's methods, for at least as long as ``owner`` exists."""
    need = object()
    ensure_intercepted(need)
    # Only a note: a finalizer may run anywhere, so the methods are put back later, when a
    # scope or an installation ends.
    weakref.finalize(owner, _needs.discard, need).atexit = False


def intercept_again() -> None:
    """Wrap Runner's methods where others have put back what they saved before we came."""
    _sdk.patch(_around)


def no_longer_needed(need: object) -> None:
    """Put Runner's methods back unless another need is left."""
    with _needing:
        _needs.discard(need)
        if not _needs:
            _sdk.unpatch()


def _view_of(memory: SessionMemory, session_id: str) -> SessionView:
    """A view that makes each run it is given to a turn."""
    view = SessionView(memory, session_id)
    intercepted_while_alive(view)
    return view


set_view_factory(_view_of, intercepted_while_alive)
