"""Runner's three methods, and our wrappers around them.

Others wrap and replace these methods too: tracing libraries, mocks. Our wrapper goes around
whatever stands in a method's place, and only our own one is ever taken away. One that others
have wrapped stays below theirs, where it hands every call on. Nothing here knows which call
belongs to a session.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

import wrapt
from agents import Runner

from session_middleware._sdk.call import (
    PLACES,
    SERVER_STATE,
    USED,
    Transparent,
    described,
    takes_session,
)
from session_middleware.errors import SessionMemoryError

RUNNER_METHODS: Final = ("run", "run_sync", "run_streamed")
SUPPORTED: Final = "openai-agents 0.24 or newer"

_patching = threading.Lock()


class _BoundInterceptor(Transparent, wrapt.BoundFunctionWrapper[Any, Any]):
    """Our wrapper, as ``Runner.run`` gives it."""


class _Interceptor(Transparent, wrapt.FunctionWrapper[Any, Any]):
    """Our wrapper around what stands in a method's place."""

    __bound_function_wrapper__ = _BoundInterceptor

    def __init__(self, name: str, found: Any, wrapper: Any) -> None:
        """Wrap it; what is no classmethod gets exactly the arguments of the call."""
        method: Any = found
        if not isinstance(found, (classmethod, staticmethod)):
            method = staticmethod(found)
        super().__init__(method, wrapper)
        self._self_method = name
        self._self_found = found


def patched() -> bool:
    """Whether each of Runner's methods is intercepted, with our wrapper outermost."""
    return all(_is_ours(_standing(name)) for name in RUNNER_METHODS)


def patch(around: Callable[[str], Callable[..., Any]]) -> None:
    """Wrap each of Runner's methods whose outermost wrapper is not ours.

    ``around(name)`` gives the wrapt wrapper for a method.

    Raises:
        SessionMemoryError: a method cannot be wrapped; nothing was changed.
    """
    if patched():
        return
    with _patching:
        found = {name: _standing(name) for name in RUNNER_METHODS}
        found = {name: method for name, method in found.items() if not _is_ours(method)}
        for name, method in found.items():
            _check(name, method)
        for name, method in found.items():
            setattr(Runner, name, _Interceptor(name, method, around(name)))


def unpatch() -> None:
    """Take our wrappers away where they are outermost."""
    with _patching:
        for name in RUNNER_METHODS:
            standing = _standing(name)
            while _is_ours(standing):
                ours = getattr(standing, "_self_parent", None) or standing
                standing = ours._self_found
                setattr(Runner, name, standing)


def _standing(name: str) -> Any:
    return vars(Runner).get(name)


def _is_ours(method: object) -> bool:
    # Somebody who saved Runner.run puts the bound form back.
    return type(method) in (_Interceptor, _BoundInterceptor)


def _check(name: str, found: Any) -> None:
    """Refuse what cannot be wrapped."""
    function = inspect.unwrap(getattr(found, "__func__", found))
    if (getattr(function, "__module__", None) or "").partition(".")[0] == "agents":
        _check_signature(name, function)
    elif not callable(getattr(Runner, name, None)):
        raise SessionMemoryError(
            f"Runner.{name} was replaced by {described(found)}, which cannot be called: put the "
            "SDK's method back before a session is used"
        )


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """Refuse a method of the SDK that is not as we know it."""
    parameters = inspect.signature(function).parameters
    lacking = [used for used in (*PLACES, *USED, *SERVER_STATE) if used not in parameters]
    if lacking:
        raise SessionMemoryError(
            f"this openai-agents ({version('openai-agents')}) is not one that sessions can be put "
            f"around: Runner.{name} has no parameter {', '.join(lacking)}. Install {SUPPORTED} "
            "with which this version of session-middleware was tested, or a newer "
            "session-middleware."
        )


def runner_method(function: object) -> str | None:
    """Which of Runner's methods this is, else None.

    It may be bound earlier, wrapped by anybody, a partial, or a ``functools.wraps`` around one,
    as long as it takes what a run in a session is given.
    """
    if type(function) is _BoundInterceptor:
        return str(function._self_parent._self_method)
    for name in RUNNER_METHODS:
        if function is not None and function is getattr(Runner, name, None):
            return name  # whatever stands in the method's place
    function = without_partials(function)[0]
    inner: Any = function
    while isinstance(inner, functools.partial) or hasattr(inner, "__wrapped__"):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__wrapped__
    name = getattr(inner, "__name__", "")
    owner = getattr(inner, "__self__", None)
    if name not in RUNNER_METHODS or not isinstance(owner, type) or not issubclass(owner, Runner):
        return None
    return name if _can_stand_for_a_method(function) else None


def _can_stand_for_a_method(function: Any) -> bool:
    """Whether it takes an input of its own, and what a run in a session is given."""
    own = inspect.signature(function, follow_wrapped=False).parameters
    promised = inspect.signature(function).parameters
    any_place = any(one.kind is one.VAR_POSITIONAL for one in promised.values())
    return takes_session(own) and (any_place or "input" in promised)


def without_partials(function: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function that a partial, or one of a partial, calls in the end, and its arguments."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        args, kwargs = (*function.args, *args), function.keywords | kwargs
        function = function.func
    return function, args, kwargs
