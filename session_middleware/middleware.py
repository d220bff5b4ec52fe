"""The middleware around the Runner: the interceptor, install, and scopes.

Runner's three methods are wrapped in place when something first needs it, and put back when
nothing does. A call that belongs to no session goes through untouched.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, Unpack

from session_middleware import _background, _calling, _observe, _run, _sdk
from session_middleware._options import (
    MemoryOption,
    Options,
    TurnOptions,
    disabled,
    make_options,
    resolve_memory,
    turns_of,
)
from session_middleware._scope import Scope, current_scope
from session_middleware._seat import Seat
from session_middleware._turn import Turn
from session_middleware.errors import (
    ConflictingMemory,
    InvalidOption,
    SessionIdRequired,
)
from session_middleware.memory import (
    Item,
    SessionMemory,
    check_session_id,
    held_turn,
    set_view_factory,
)

MISSING: Any = object()


# --- one call of a Runner method -----------------------------------------------------------


def _around(method: str) -> Callable[..., Any]:
    def intercept(wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        scope = current_scope()
        if scope is None and _installation is None and not _names_view(args, kwargs):
            return wrapped(*args, **kwargs)
        return _Intercepted(method, wrapped, args, kwargs, scope).go()

    return intercept


def _names_view(args: Any, kwargs: dict[str, Any]) -> bool:
    return isinstance(kwargs.get("session"), SessionView) or any(
        isinstance(argument, SessionView) for argument in args
    )


class _Intercepted:
    """A Runner call that may belong to a session: whose it is, and how it is made then."""

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
        return self._go_async() if self.method == "run" else self._carry_out()

    async def _go_async(self) -> Any:
        return await self._carry_out()

    def _carry_out(self) -> Any:
        call = self.call
        session = call.arguments.get("session")
        if disabled() and isinstance(session, SessionView):
            call.arguments["session"] = None
        if disabled() or self.session_id is None:
            return call.go()
        if isinstance(session, _run.Run):
            return call.go()  # the inner call of a run that has its session
        if session is not None and not isinstance(session, SessionView):
            return self._with_session_of_the_users(session)
        seat = self._seat(session)
        if seat is None:
            return call.go()
        return _calling.carry_out(seat, lambda: _run.Run(seat.turn, call), self.method)

    def _with_session_of_the_users(self, session: Any) -> Any:
        """Somebody else's session: respected, and watched where that was asked for."""
        if self.session_id is not MISSING:
            raise ConflictingMemory(
                "the call has a session_id and a session= of its own: leave one out"
            )
        if _installation is None or not _installation.observe or _observe.is_observed(session):
            return self.call.go()
        return _observe.carry_out(session, self.call, _installation.options)

    def _seat(self, view: SessionView | None) -> Seat | None:
        """The seat of this call in a turn; None for a call that is not ours."""
        if view is not None:
            if self.session_id not in (MISSING, view.session_id):
                raise ConflictingMemory(
                    f"session_id is {self.session_id!r}, and session= is of "
                    f"{view.session_id!r}: leave one out"
                )
            return self._of(view.session_id, self._options().with_memory(view.memory))
        if self.session_id is not MISSING:
            options = self._options()
            if options.memory is None:
                return None
            return self._of(check_session_id(self.session_id), options)
        return self._inherited()

    def _inherited(self) -> Seat | None:
        """A seat in the scope's turn, for a call that names no session."""
        scope = self.scope
        if scope is not None:
            if scope.run is not None:
                return None  # an agent used as a tool, or the like
            turn = scope.turn
            assert isinstance(turn, Turn)  # noqa: S101 - the core makes the scopes
            return self._of(turn.session_id, turn.options)
        if _installation is not None and _installation.require_session_id:
            raise SessionIdRequired(
                f"Runner.{self.method} was called without a session_id, which "
                "install(require_session_id=True) asks for: pass one, such as "
                f'Runner.{self.method}(agent, "Hello", session_id="user-42")'
            )
        return None

    def _options(self) -> Options:
        """The scope's options, else the installed ones, else the defaults."""
        if self.scope is not None and isinstance(self.scope.turn, Turn):
            return self.scope.turn.options
        if _installation is not None:
            return _installation.for_agent(self.call.arguments.get("starting_agent"))
        return Options()

    def _of(self, session_id: str, options: Options) -> Seat:
        return _run.seat_for(session_id, options, self.call, check_key(self.key))


def check_key(key: object) -> str | None:
    """Return the idempotency key if it is one.

    Raises:
        InvalidOption: it is neither None nor a non-blank string of at most 512 characters, none
            of them a lone surrogate.
    """
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > 512 or not _is_encodable(key):
        raise InvalidOption(
            "idempotency_key is a non-blank string of at most 512 characters, without lone "
            f"surrogates, not {key!r:.60}"
        )
    return key


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- when the Runner is wrapped ------------------------------------------------------------

_needs: set[object] = set()
_needing = threading.Lock()


def ensure_intercepted(need: object) -> None:
    """Wrap Runner's methods if they are not; ``need`` stands for who needs it."""
    with _needing:
        _needs.add(need)
        _sdk.patch(_around)


def intercepted_while_alive(owner: object) -> None:
    """Wrap Runner's methods, for at least as long as ``owner`` exists."""
    need = object()
    ensure_intercepted(need)
    # Only a note: a finalizer may run anywhere, so the methods are put back at the next
    # occasion, when a scope or an installation ends.
    weakref.finalize(owner, _needs.discard, need).atexit = False


def no_longer_needed(need: object) -> None:
    """Put Runner's methods back if nobody else needs them wrapped."""
    with _needing:
        _needs.discard(need)
        if not _needs:
            _sdk.unpatch()


# --- install -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Installation:
    memory: Any
    options: Options
    require_session_id: bool
    observe: bool

    def for_agent(self, agent: Any) -> Options:
        """The options for a run that starts with this agent."""
        if callable(self.memory) and not isinstance(self.memory, SessionMemory):
            return self.options.with_memory(resolve_memory(self.memory(agent)))
        return self.options


_installation: _Installation | None = None


def install(
    *,
    memory: MemoryOption | Callable[[Any], MemoryOption] = True,
    require_session_id: bool = False,
    observe: bool = False,
    **options: Unpack[TurnOptions],
) -> None:
    """Give every Runner call of this process a ``session_id=`` keyword.

    Args:
        memory: as for ``with_session_memory``, or a function from the starting agent to one.
        require_session_id: a call without one is an error instead of going through untouched.
        observe: also trace and count runs that bring a ``session=`` of another kind.
        options: see ``with_session_memory``.

    Raises:
        InvalidOption: an option is wrong, or other settings are installed already.

    >>> install(memory=":memory:")
    >>> uninstall()
    """
    global _installation
    chosen = callable(memory) and not isinstance(memory, (SessionMemory, type))
    new = _Installation(
        memory=memory if chosen else None,
        options=make_options(None if chosen else memory, dict(options)),  # type: ignore[arg-type]
        require_session_id=require_session_id,
        observe=observe,
    )
    if _installation is not None and _installation != new:
        raise InvalidOption(
            "install() was called before with other settings: call uninstall() first, or use "
            "installed(...) for a limited time"
        )
    ensure_intercepted(install)
    _installation = new


def uninstall() -> None:
    """End what ``install`` began; no error where it was not called."""
    global _installation
    _installation = None
    no_longer_needed(install)


@contextmanager
def installed(
    *,
    memory: MemoryOption | Callable[[Any], MemoryOption] = True,
    require_session_id: bool = False,
    observe: bool = False,
    **options: Unpack[TurnOptions],
) -> Iterator[None]:
    """``install`` for the length of a block; what was installed before comes back after it."""
    global _installation
    before, _installation = _installation, None
    try:
        install(memory=memory, require_session_id=require_session_id, observe=observe, **options)
        yield
    finally:
        _installation = before
        if before is None:
            no_longer_needed(install)


# --- a turn as a block ---------------------------------------------------------------------


class session_scope:  # noqa: N801 - used like a function
    """A turn as a block: runs inside it belong to the session.

    ``async with`` takes the session on entry; a stream that was started inside carries the turn
    on after the block. ``with`` does the same for code without an event loop.

    Args:
        session_id: which conversation.
        memory: as for ``with_session_memory``.
        idempotency_key: names the request, so that a retry does not do its work twice.
        options: see ``with_session_memory``.

    Raises:
        SessionBusy: another turn holds the session, with ``on_busy="reject"`` or after waiting.
        InvalidSessionId, InvalidOption: when it is made.

    >>> async def handler(agent, text):
    ...     async with session_scope("user-42", memory=":memory:", on_busy="reject"):
    ...         return await Runner.run(agent, text)
    """

    def __init__(
        self,
        session_id: str,
        *,
        memory: MemoryOption = True,
        idempotency_key: str | None = None,
        **options: Unpack[TurnOptions],
    ) -> None:
        if session_id is None:
            raise SessionIdRequired(
                'a scope needs a session id: session_scope("user-42", memory=...)'
            )
        self.session_id = check_session_id(session_id)
        self._options = make_options(memory, dict(options))
        self._key = check_key(idempotency_key)
        self._seat: Seat | None = None
        self._force: Any = None

    @property
    def turn(self) -> int | None:
        """The turn's number while it holds the session."""
        return None if self._seat is None else self._seat.turn.number

    def _enter(self) -> Seat | None:
        if self._options.memory is None or disabled():
            return None
        if self._seat is not None:
            raise InvalidOption(
                "this session_scope is entered already, and is one turn: make a new one for each "
                "block"
            )
        seat = Seat.here(self.session_id, self._options, self._key) or Seat.of_new(
            Turn(self.session_id, self._options, name="session_scope", idempotency_key=self._key)
        )
        ensure_intercepted(self)
        return seat

    def _put_in_force(self, seat: Seat) -> None:
        self._seat = seat
        self._force = seat.turn.in_force()
        self._force.__enter__()

    def _withdraw(self) -> None:
        with suppress(ValueError):  # left in another context than entered, which ends with that
            self._force.__exit__(None, None, None)
        no_longer_needed(self)

    async def __aenter__(self) -> Self:
        seat = self._enter()
        if seat is not None:
            try:
                await seat.turn.take()
            except BaseException as error:
                no_longer_needed(self)
                await seat.leave(error)
                raise
            self._put_in_force(seat)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            self._withdraw()
            await seat.leave(error)

    def __enter__(self) -> Self:
        seat = self._enter()
        if seat is not None:
            if not loop_is_running():  # else the first access to the memory takes it
                try:
                    _background.wait(seat.turn.take())
                except BaseException as error:
                    no_longer_needed(self)
                    seat.leave_blocking(error)
                    raise
            self._put_in_force(seat)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            self._withdraw()
            if loop_is_running():
                seat.leave_soon(error)
            else:
                seat.leave_blocking(error)


def loop_is_running() -> bool:
    """Whether this thread runs an event loop, so that it must not block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- the SDK's Session protocol ------------------------------------------------------------


class SessionView:
    """One session of a memory, in the SDK's ``Session`` protocol.

    As ``session=`` of a Runner call it makes that run a full turn. Called directly, its methods
    are the memory's own: ``get_items(n)`` gives exactly the newest n.
    """

    session_settings: Any = None

    def __init__(self, memory: SessionMemory, session_id: str) -> None:
        self.memory = memory
        self.session_id = session_id
        intercepted_while_alive(self)

    async def get_items(self, limit: int | None = None) -> list[Item]:
        """The newest ``limit`` items, oldest first; all without a limit."""
        turns = turns_of(self.memory)
        held = held_turn(turns.identity, self.session_id)
        if held is not None:
            await held.settle()
        return await turns.load_items(self.session_id, limit=limit)

    async def add_items(self, items: list[Item]) -> None:
        """Add items at the end."""
        await self.memory.append_to_session(self.session_id, items)

    async def pop_item(self) -> Item | None:
        """Remove and return the newest item; None where there is none."""
        return await turns_of(self.memory).pop_item(self.session_id)

    async def clear_session(self) -> None:
        """Forget the session."""
        await self.memory.clear_session(self.session_id)


set_view_factory(SessionView)
