"""What a decorated function's calls say of themselves: session id, idempotency key, fingerprint.

It reads a call's arguments and nothing else: what a scope says, and what to do without an id, is
for whoever asks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import wrapt

from session_middleware.errors import InvalidOption
from session_middleware.history import digest

MISSING: Any = object()
"""Stands for a session id that a call does not give; None is one that it gives."""

SessionIdOption = str | Callable[..., str | None] | None


class IdSource:
    """Where a decorated function's calls get their session id from."""

    def __init__(self, function: Any, given: SessionIdOption) -> None:
        self.name = getattr(function, "__qualname__", None) or type(function).__qualname__
        self.given = given
        self.bound = inspect.ismethod(function)
        self.signature = _signature_of(function)
        parameters = self.signature.parameters if self.signature else {}
        own = parameters.get("session_id")
        self.declared = (
            own is not None and own.kind is not own.VAR_KEYWORD and not isinstance(own, _Shown)
        )
        if given is not None and not isinstance(given, str) and not callable(given):
            raise InvalidOption(
                "session_id at decoration must be the name of a parameter or a function of the "
                f"call's arguments, got {given!r}: a fixed id goes into the call"
            )
        if isinstance(given, str) and given not in parameters:
            raise InvalidOption(
                f"session_id at decoration must be the name of a parameter of {self.name}, "
                f"{' or '.join(parameters) or 'which has none'}, got {given!r}"
            )

    def shown_signature(self, function: Any) -> inspect.Signature | None:
        """The function's signature with what a call takes besides; None where it has none.

        Where the id has a parameter of its own, or is made of others, it is not shown again:
        callers that go by the signature, such as web frameworks, would give it as None.
        """
        signature = _signature_of(function)
        if signature is None:
            return None
        known = signature.parameters
        more = [] if self.given is not None else ["session_id"]
        more = [name for name in (*more, "idempotency_key") if name not in known]
        ordinary = [one for one in known.values() if one.kind is not one.VAR_KEYWORD]
        any_name = [one for one in known.values() if one.kind is one.VAR_KEYWORD]
        return signature.replace(parameters=[*ordinary, *map(_shown, more), *any_name])

    def take(
        self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, str | None, dict[str, Any]]:
        """The id (MISSING where the call says nothing), the key, and what is left of kwargs."""
        kwargs = dict(kwargs)
        key = kwargs.pop("idempotency_key", None)
        args = self._own(wrapped, instance, args)
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

    def fingerprint(
        self, wrapped: Any, instance: Any, args: Any, kwargs: dict[str, Any]
    ) -> str | None:
        """A digest of the arguments that are JSON, by name; None where none of them is.

        The session's id and whatever else is no JSON, such as an agent or a client, are left
        out.
        """
        if self.signature is None:
            return None
        try:
            bound = self.signature.bind(*self._own(wrapped, instance, args), **kwargs)
        except TypeError:
            return None  # the function itself will say what is wrong
        bound.arguments.pop("session_id", None)
        return fingerprint_of(bound.arguments)

    def _own(self, wrapped: Any, instance: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A function's own arguments, which begin with its instance, if it has one."""
        if self.bound:
            return args
        if inspect.ismethod(wrapped):
            return (wrapped.__self__, *args)
        if isinstance(wrapped, wrapt.PartialCallableObjectProxy):  # Class.method(instance)
            return (instance, *args)
        return args

    def _argument(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        assert self.signature is not None  # noqa: S101 - the name was found in it
        try:
            bound = self.signature.bind_partial(*args, **kwargs)
        except TypeError:
            return MISSING  # the function itself will say what is wrong
        bound.apply_defaults()
        return bound.arguments.get(name, MISSING)


def check_key(key: object) -> str | None:
    """Return the idempotency key if it is valid.

    Raises:
        InvalidOption: it is neither None nor a non-blank string of at most 512 characters
            without lone surrogates.
    """
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > 512 or not _is_encodable(key):
        raise InvalidOption(
            "idempotency_key must be a non-blank string of at most 512 characters without lone "
            f"surrogates, or None, got {key!r:.60}"
        )
    return key


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _signature_of(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


class _Shown(inspect.Parameter):
    """A parameter that a decorated function shows, and that its function does not get."""

    __slots__ = ()


def _shown(name: str) -> _Shown:
    return _Shown(name, _Shown.KEYWORD_ONLY, default=None, annotation=str | None)


# --- what makes two requests with one idempotency key the same ---------------------------------


def fingerprint_of(arguments: Mapping[str, Any]) -> str | None:
    """A digest of those values that are JSON or a pydantic model; None where there are none."""
    plain = {}
    for name, value in arguments.items():
        with suppress(_NotPlain):
            plain[name] = _plain(value)
    return digest([plain]) if plain else None


def check_fingerprint(value: Any) -> str | None:
    """Return the digest of a fingerprint.

    Raises:
        InvalidOption: it is neither None, JSON nor a pydantic model.
    """
    if value is None:
        return None
    found = fingerprint_of({"fingerprint": value})
    if found is None:
        raise InvalidOption(
            "fingerprint must be JSON, a pydantic model or None, got a value of type "
            f"{type(value).__name__}"
        )
    return found


class _NotPlain(Exception):
    """A value is neither JSON nor a pydantic model."""


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise _NotPlain
        return {key: _plain(one) for key, one in value.items()}
    dump = getattr(type(value), "model_dump", None)
    if dump is None:
        raise _NotPlain
    try:
        return dump(value, mode="json")
    except Exception as error:  # what it holds is no JSON
        raise _NotPlain from error
