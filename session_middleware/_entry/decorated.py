"""A decorated function, which still is a function to whoever looks at it.

It has the signature of the function with ``session_id`` and ``idempotency_key`` added, is copied
and pickled as functions are, by name, and binds like the method, classmethod or staticmethod it
goes around. What happens at a call is for the wrapper that it is given.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
from collections.abc import AsyncGenerator, Callable, Generator
from types import CodeType, FunctionType, MethodType
from typing import Any

import wrapt

from session_middleware._entry.arguments import check_key
from session_middleware.memory import check_session_id


class _BoundDecorated(wrapt.BoundFunctionWrapper[Any, Any]):
    """A decorated method, as an instance or its class gives it."""

    @property
    def __func__(self) -> Any:  # where ``inspect.signature`` of a method looks
        return self._self_parent

    def for_session(self, session_id: str, idempotency_key: str | None = None) -> Any:
        """The method with its own parameters, whose calls belong to this session."""
        return _for_session(self, inspect.signature(self.__wrapped__), session_id, idempotency_key)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        instance = getattr(self.__wrapped__, "__self__", None)
        if instance is None or isinstance(instance, type):
            return _named, (self.__module__, self.__qualname__)
        return getattr, (instance, self.__name__)


class Decorated(wrapt.FunctionWrapper[Any, Any]):
    """A decorated function.

    Args:
        function: a function of any shape, a classmethod or staticmethod, or another callable.
        around: the wrapper, as wrapt calls it.
        again: decorates a function in the same way, where it was sent to by value.
        signature: the signature to show; None: that of the function.
    """

    __bound_function_wrapper__ = _BoundDecorated

    def __init__(
        self,
        function: Any,
        around: Callable[..., Any],
        again: Callable[[Any], Any],
        signature: inspect.Signature | None,
    ) -> None:
        super().__init__(function, around)
        self._self_again = again
        self._self_signature = signature

    def for_session(self, session_id: str, idempotency_key: str | None = None) -> Any:
        """The function with its own parameters, whose calls belong to this session."""
        return _for_session(self, inspect.signature(self.__wrapped__), session_id, idempotency_key)

    # --- to whoever looks at functions ---------------------------------------------------------

    @property  # type: ignore[misc] # what type checkers see of it is in ``decorator``
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inner = self.__wrapped__
        # Of a method, ``inspect`` would look at the function in it, not at this.
        return FunctionType if isinstance(inner, MethodType) else inner.__class__

    @property
    def __signature__(self) -> inspect.Signature:
        if self._self_signature is None:
            return inspect.signature(self.__wrapped__)
        return self._self_signature

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override] # likewise
        own = dict(getattr(self.__wrapped__, "__annotations__", {}))
        for name, parameter in self.__signature__.parameters.items():
            if parameter.annotation is not parameter.empty:
                own.setdefault(name, parameter.annotation)
        return own

    # --- copies --------------------------------------------------------------------------------

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__qualname__  # pickle finds the function by its name, or says that it cannot

    # cloudpickle sends functions that cannot be imported by value: their code and what it refers
    # to. Sent so, this is a function that decorates the user's again.

    @property
    def __code__(self) -> CodeType:
        code: CodeType = _by_value(self).__code__
        return code

    @property
    def __closure__(self) -> Any:
        return _by_value(self).__closure__

    __defaults__ = None
    __kwdefaults__ = None


def _for_session(
    function: Any, signature: inspect.Signature, session_id: str, idempotency_key: str | None
) -> Any:
    given: dict[str, Any] = {"session_id": check_session_id(session_id)}
    if check_key(idempotency_key) is not None:
        given["idempotency_key"] = idempotency_key
    bound = functools.partial(function, **given)
    functools.update_wrapper(bound, function)
    vars(bound)["__signature__"] = signature
    return bound


def _named(module: str, name: str) -> Any:
    return operator.attrgetter(name)(importlib.import_module(module))


# --- by value --------------------------------------------------------------------------------


class _Again:
    """The user's function, decorated when it is first called in another process."""

    def __init__(self, again: Callable[[Any], Any], function: Any) -> None:
        self._again = again
        self._function = function
        self._decorated: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._decorated is None:
            self._decorated = self._again(self._function)
        return self._decorated(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _Again, (self._again, self._function)


def _by_value(decorated: Decorated) -> Any:
    inner = decorated.__wrapped__
    shape = (
        _coroutine
        if inspect.iscoroutinefunction(inner)
        else _async_generator
        if inspect.isasyncgenfunction(inner)
        else _generator
        if inspect.isgeneratorfunction(inner)
        else _plain
    )
    return shape(_Again(decorated._self_again, inner))


def _coroutine(again: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await again(*args, **kwargs)

    return call


def _async_generator(again: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async for value in again(*args, **kwargs):
            yield value

    return call


def _generator(again: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from again(*args, **kwargs))

    return call


def _plain(again: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return again(*args, **kwargs)

    return call
