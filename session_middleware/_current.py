"""What is in force in this context: a turn, the run inside it, and the root span of its traces.

One context variable and nothing else; the core knows what a turn is. Tasks and ``to_thread``
inherit the variable; a generator sets it around each of its steps, never across a yield. A turn
that has ended is no longer in force, wherever a context still carries it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Protocol

from session_middleware.stores.records import Lease


class CurrentTurn(Protocol):
    """The turn in force, as a memory's own methods need it."""

    @property
    def session_id(self) -> str: ...
    @property
    def memory_identity(self) -> Hashable: ...
    @property
    def number(self) -> int | None:
        """The turn's number while it holds the session."""
        ...

    @property
    def lease(self) -> Lease | None: ...
    @property
    def ended(self) -> bool:
        """Whether the turn is over, and so is all that was part of it."""
        ...

    def next_run(self) -> int:
        """Reserve the next run number of the turn."""
        ...

    async def settle(self) -> None:
        """Store what the runs of the turn have handed over, so that a reader sees it."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Scope:
    """What is in force.

    Attributes:
        turn: the turn that was running when this context was made; it may have ended since.
            None: no session is in force, only a trace.
        run: the Runner run that this context is inside of. Runs made in there, such as agents
            used as tools, do not join the session by themselves.
        root: the root span from which the OpenTelemetry context here was made.
        outer: the call of the agent used as a tool that this context is inside of.
    """

    turn: CurrentTurn | None = None
    run: object | None = None
    root: object | None = None
    outer: object | None = None


_NOTHING = Scope()
_scope: ContextVar[Scope] = ContextVar("session_middleware.scope", default=_NOTHING)


def inherited_turn() -> CurrentTurn | None:
    """The turn that this context was made in; it may have ended."""
    return _scope.get().turn


def current_scope() -> Scope | None:
    """The scope in force here; None without a turn, or where the turn has ended."""
    scope = _scope.get()
    return None if scope.turn is None or scope.turn.ended else scope


def outlives_turn() -> bool:
    """Whether this context was made in a turn that has ended since."""
    turn = _scope.get().turn
    return turn is not None and turn.ended


def current_session() -> tuple[str, int | None] | None:
    """Return ``(session_id, turn)`` in force here, or None.

    The turn's number is None before the session is acquired. A task or server that was started
    inside a turn and outlives it is in no session: None.
    """
    scope = current_scope()
    if scope is None or scope.turn is None:
        return None
    return scope.turn.session_id, scope.turn.number


def current_turn(identity: Hashable, session_id: str) -> CurrentTurn | None:
    """The turn in force here if it holds that session of that memory, or None."""
    turn = _scope.get().turn
    if turn is None or turn.ended or turn.memory_identity != identity:
        return None
    lease = turn.lease
    return turn if lease is not None and lease.session_id == session_id else None


class in_force(AbstractContextManager[None]):  # noqa: N801 - called like a function
    """Put the turn, and a run of it, in force for this block."""

    __slots__ = ("_run", "_token", "_turn")

    def __init__(self, turn: CurrentTurn, run: object | None = None) -> None:
        self._turn = turn
        self._run = run

    def __enter__(self) -> None:
        self._token = _scope.set(Scope(self._turn, self._run, _scope.get().root))

    def __exit__(self, *exc_info: object) -> None:
        with suppress(ValueError):  # closed in another context, by the collector of garbage
            _scope.reset(self._token)


@contextmanager
def inside_call(outer: object) -> Iterator[None]:
    """Say, for this block, that an agent runs which is used as a tool for that call."""
    token = _scope.set(replace(_scope.get(), outer=outer))
    try:
        yield
    finally:
        with suppress(ValueError):  # closed in another context, by the collector of garbage
            _scope.reset(token)


# --- the trace that belongs to it ----------------------------------------------------------


def current_root() -> object | None:
    """The root span from which the OpenTelemetry context here was made, or None."""
    return _scope.get().root


def put_root(root: object) -> Token[Scope]:
    """Say that the OpenTelemetry context here is made from this root span from now on."""
    scope = _scope.get()
    return _scope.set(Scope(scope.turn, scope.run, root, scope.outer))


def reset_root(token: Token[Scope]) -> None:
    """Undo ``put_root`` in the same context."""
    _scope.reset(token)
