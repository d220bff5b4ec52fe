"""Which session is in force in this context.

A context variable and nothing else: what a turn is, the core knows. Tasks and ``to_thread``
inherit it; a generator sets it around each of its steps, never across a yield.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class ScopedTurn(Protocol):
    """The turn of a scope, as far as a context needs to know it."""

    @property
    def session_id(self) -> str: ...
    @property
    def number(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """A session in force.

    Attributes:
        turn: the turn that was running when this context was made; it may have ended since.
        run: the Runner run this context is inside of, if it is. Runs made in there, such as
            agents used as tools, do not join the session by themselves.
    """

    turn: ScopedTurn
    run: object | None = None


_scope: ContextVar[Scope | None] = ContextVar("session_middleware.scope", default=None)


def current_scope() -> Scope | None:
    """The scope in force here."""
    return _scope.get()


@contextmanager
def in_force(scope: Scope) -> Iterator[None]:
    """Put the scope in force for this block, in this context."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        with suppress(ValueError):  # closed in another context, by the collector of garbage
            _scope.reset(token)


def current_session() -> tuple[str, int | None] | None:
    """Return ``(session_id, turn)`` in force here, or None.

    The turn's number is None before the session is taken and after the turn has ended.
    """
    scope = _scope.get()
    return None if scope is None else (scope.turn.session_id, scope.turn.number)
