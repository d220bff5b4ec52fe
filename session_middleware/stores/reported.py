"""Methods of a memory that people call themselves, told to the core one by one.

Stores neither log nor trace. The core sets the reporter; without one nobody is told.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast

M = TypeVar("M", bound=Callable[..., Coroutine[Any, Any, Any]])


class Report(Protocol):
    """What is told of a call while it runs.

    Attributes:
        count: items, turns or sessions that it returned, stored or removed.
        waited: seconds for which it waited for other turns of the session.
    """

    count: int | None
    waited: float


Reporter = Callable[[Any, str, str, object], AbstractContextManager[Report] | None]
"""Takes memory, operation, method and session id; None: nobody wants to know."""

_reporter: Reporter | None = None
_report: ContextVar[Report | None] = ContextVar("session_middleware.report", default=None)


def set_reporter(reporter: Reporter) -> None:
    """Have this asked, at every call of a reported method, for what is told of it."""
    global _reporter
    _reporter = reporter


def reported(operation: str) -> Callable[[M], M]:
    """Decorate a method that people call: each call is told as that operation.

    A call that one reported method makes of another belongs to the first, and is not told.
    """

    def decorate(method: M) -> M:
        first = list(inspect.signature(method).parameters)[1]

        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if _reporter is None or _report.get() is not None:
                return await method(*args, **kwargs)
            session_id = _session_id(first, args[1:], kwargs)
            report = _reporter(args[0], operation, method.__name__, session_id)
            if report is None:
                return await method(*args, **kwargs)
            with report as told:
                token = _report.set(told)
                try:
                    result = await method(*args, **kwargs)
                finally:
                    _report.reset(token)
                told.count = _count(result, args[2:], kwargs)
                return result

        return cast(M, call)

    return decorate


@contextmanager
def unreported(report: Report) -> Iterator[None]:
    """Tell no call of this block: an operation around it is told, as ``report``."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


@contextmanager
def waiting() -> Iterator[None]:
    """Count the time of this block as waiting for other turns, in what is told of the call."""
    report = _report.get()
    began = perf_counter()
    try:
        yield
    finally:
        if report is not None:
            report.waited += perf_counter() - began


def _session_id(first: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """The one session that the call is of; None where it is of several, or of none."""
    if first == "session_ids":
        return args[0] if len(args) == 1 else None
    if first != "session_id":
        return None
    return args[0] if args else kwargs.get(first)


def _count(result: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """How many records the call touched, as its result says, or the items it was given."""
    if isinstance(result, int) and not isinstance(result, bool):
        return result
    given = result if isinstance(result, list) else [*args, *kwargs.values(), None][0]
    return len(given) if isinstance(given, list) else None
