"""Memories that fail, and processes that die, at the n-th operation.

An operation is a call of a method of the memory, made by a run or by the test; what a method of
the memory asks of the memory itself is part of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, NoReturn, Self, TypeAlias

from session_middleware.errors import InvalidOption, MemoryUnavailable
from session_middleware.memory import SessionMemory

__all__ = ["Fault", "When", "die", "fail_at", "kill_at"]

When: TypeAlias = Literal["before", "after"]

_NOT_COUNTED = {"cleanup", "ping", "wait_for_session", "withdraw_ticket"}
"""Methods that change nothing and read nothing of a session."""

_inside: ContextVar[bool] = ContextVar("inside an operation", default=False)


class Fault:
    """A fault that waits in a memory for its operation; also a context manager that ends it.

    Attributes:
        happened: the name of the operation at which it happened; None: it has not yet.
        count: how many operations of those that count there were.
    """

    def __init__(
        self,
        memory: SessionMemory,
        n: int,
        operation: str | None,
        when: When,
        happen: Callable[[str], object],
    ) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InvalidOption(f"n must be a whole number of at least 1, got {n!r}")
        if when not in ("before", "after"):
            raise InvalidOption(f"when must be 'before' or 'after', got {when!r}")
        there_are = operations_of(memory)
        if operation is not None and operation not in there_are:
            raise InvalidOption(
                f"operation must be one of {', '.join(there_are)}, got {operation!r}"
            )
        self.happened: str | None = None
        self.count = 0
        self._n = n
        self._when = when
        self._happen = happen
        self._memory = memory
        self._ended = False
        self._before = dict(vars(memory))
        self._watched: dict[str, Any] = {}
        for name in there_are if operation is None else [operation]:
            self._watched[name] = self._watching(name, getattr(memory, name))
        vars(memory).update(self._watched)

    def end(self) -> None:
        """Take the fault out of the memory; no error if it happened or was ended before."""
        self._ended = True
        now = vars(self._memory)
        for name, watching in self._watched.items():
            if now.get(name) is not watching:
                continue  # a later fault calls it, and it only passes on
            if name in self._before:
                now[name] = self._before[name]
            else:
                del now[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def _watching(self, name: str, method: Any) -> Any:
        @functools.wraps(method)
        async def operation(*args: Any, **kwargs: Any) -> Any:
            if self._ended or _inside.get():
                return await method(*args, **kwargs)
            self.count += 1
            happens = self.count == self._n
            if happens and self._when == "before":
                self._now(name)
            token = _inside.set(True)
            try:
                outcome = await method(*args, **kwargs)
            finally:
                _inside.reset(token)
            if happens and self._when == "after":
                self._now(name)
            return outcome

        return operation

    def _now(self, name: str) -> None:
        self.happened = name
        self._happen(name)


def fail_at(
    memory: SessionMemory,
    n: int = 1,
    operation: str | None = None,
    *,
    when: When = "before",
    error: BaseException | None = None,
) -> Fault:
    """Let the n-th operation of a memory fail, once; later ones work again.

    Args:
        memory: the memory object that fails; others on the same storage do not.
        n: which operation, counted from 1. Default 1, the next one.
        operation: the name of a method, such as "append_items"; only its calls count. Default
            None: every operation counts. A run uses those that ``operations_of`` lists.
        when: "before" it did anything, or "after" it did its work, as when an answer is lost.
        error: what is raised. Default MemoryUnavailable.

    Returns:
        The fault: its ``happened`` says at which operation it happened.

    Raises:
        InvalidOption: n, operation or when is none that there is.

    Example:
        with fail_at(memory, 2):
            ...
    """

    def happen(name: str) -> NoReturn:
        raise error or MemoryUnavailable(f"the test lets operation {n} ({name}) fail")

    return Fault(memory, n, operation, when, happen)


def kill_at(
    memory: SessionMemory, n: int = 1, operation: str | None = None, *, when: When = "before"
) -> Fault:
    """Let this process die at the n-th operation of a memory; arguments as for ``fail_at``.

    It dies as by ``kill -9``: no ``finally`` runs and nothing is given back. So it belongs into a
    process of its own: see the fixture ``worker_process``.
    """
    return Fault(memory, n, operation, when, lambda _: die())


def die() -> NoReturn:
    """Let this process die here, as by ``kill -9``: in a tool, say, after its effect."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    raise AssertionError("unreachable")


def operations_of(memory: SessionMemory) -> list[str]:
    """The names of the methods of a memory whose calls are operations."""
    kind = type(memory)
    return [
        name
        for name in sorted(dir(kind))
        if not name.startswith("_")
        and name not in _NOT_COUNTED
        and inspect.iscoroutinefunction(getattr(kind, name, None))
    ]
