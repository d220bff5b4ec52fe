"""Where a decorated function's calls get their session id and idempotency key from.

It reads a call's arguments and nothing else: what a scope says, and what to do without an id, is
for whoever asks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import wrapt

from session_middleware.errors import InvalidOption
from session_middleware.middleware import MISSING, check_key

SessionIdOption = str | Callable[..., str | None] | None


class IdSource:
    """Where a decorated function's calls get their session id from."""

    def __init__(self, function: Any, given: SessionIdOption) -> None:
        self.name = getattr(function, "__qualname__", None) or type(function).__qualname__
        self.given = given
        self.bound = inspect.ismethod(function)
        try:
            self.signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            self.signature = None
        parameters = self.signature.parameters if self.signature else {}
        self.declared = "session_id" in parameters and (
            parameters["session_id"].kind is not inspect.Parameter.VAR_KEYWORD
        )
        if given is not None and not isinstance(given, str) and not callable(given):
            raise InvalidOption(
                "session_id at decoration is the name of a parameter or a callable, "
                f"not {given!r}; a fixed id goes into the call"
            )
        if isinstance(given, str) and given not in parameters:
            raise InvalidOption(
                f"session_id={given!r} at decoration is the name of a parameter, and {self.name} "
                f"has only: {', '.join(parameters) or 'none'}"
            )

    def take(
        self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, str | None, dict[str, Any]]:
        """The id (MISSING where the call says nothing), the key, and what is left of kwargs."""
        kwargs = dict(kwargs)
        key = kwargs.pop("idempotency_key", None)
        if not self.bound:  # a function's own arguments begin with its instance, if it has one
            if inspect.ismethod(wrapped):
                args = (wrapped.__self__, *args)
            elif isinstance(wrapped, wrapt.PartialCallableObjectProxy):  # Class.method(instance)
                args = (instance, *args)
        found: Any = MISSING
        if "session_id" in kwargs:
            found = kwargs["session_id"] if self.declared else kwargs.pop("session_id")
        elif self.declared:
            found = self._argument("session_id", args, kwargs)
        if found is MISSING and isinstance(self.given, str):
            found = self._argument(self.given, args, kwargs)
        elif found is MISSING and callable(self.given):
            found = self.given(*args, **kwargs)
        return found, check_key(key), kwargs

    def _argument(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        assert self.signature is not None  # noqa: S101 - the name was found in it
        try:
            bound = self.signature.bind_partial(*args, **kwargs)
        except TypeError:
            return MISSING  # the function itself will say what is wrong
        bound.apply_defaults()
        return bound.arguments.get(name, MISSING)
