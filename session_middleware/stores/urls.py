"""Which backend reads a URL, what it comes to, and the options in it: shared by all backends.

Each backend has a module ``url`` that is a ``UrlReader``. Reading a URL imports no driver and
opens nothing; nothing of any one backend is here but its schemes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from session_middleware.errors import InvalidMemoryUrl, InvalidOption
from session_middleware.stores.passwords import without_password

if TYPE_CHECKING:
    from session_middleware.stores.base import TurnMemory


BACKENDS = {
    "sqlite": "sqlite",
    ":memory:": "in_memory",
    "postgresql": "postgres",
    "postgres": "postgres",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
}
"""Scheme -> the package beside this module whose ``url`` reads its URLs."""


@dataclass(frozen=True, slots=True)
class Address:
    """A memory as a URL names it.

    Attributes:
        key: equal for two URLs that name the same storage with the same options.
        open: makes the memory, which opens its storage when it is first used.
    """

    key: Hashable
    open: Callable[[], TurnMemory]


class UrlReader(Protocol):
    """The module ``url`` of a backend."""

    EXAMPLES: Sequence[str]
    """Correct URLs, each in quotes and with what it means, for error messages."""

    def address(self, url: str, options: Mapping[str, Any]) -> Address:
        """Read a URL of the backend's schemes.

        Args:
            options: options by keyword, beside those in the URL.

        Raises:
            InvalidMemoryUrl: the URL names no storage of this backend.
            InvalidOption: an option is unknown, or given both ways.
        """
        ...


def options_of(
    url: str,
    given: Mapping[str, Any],
    known: Mapping[str, Callable[[str], Any]],
    *,
    shown: str | None = None,
) -> dict[str, Any]:
    """The options in the query of a URL and those given by keyword, together.

    Args:
        known: what makes the value of each option from its text in a URL; it raises ValueError
            for a text that is no such value.
        shown: what messages call the URL; by default the URL without its password.

    Raises:
        InvalidMemoryUrl: the text of an option is no such value.
        InvalidOption: an option is unknown, or given twice.
    """
    shown = without_password(url) if shown is None else shown
    options = dict(given)
    there_are = ", ".join(sorted(known)) or "none"
    for name, text in parse_qsl(url.partition("?")[2], keep_blank_values=True):
        if name not in known:  # it may be part of a password, so it is not shown
            raise InvalidOption(f"unknown option in {shown!r}; there are: {there_are}")
        if name in options:
            raise InvalidOption(f"{name} is given twice for {shown!r}: leave one out")
        try:
            options[name] = known[name](text)
        except ValueError:  # it shows the text
            value = ("true or false", "true") if known[name] is truth else ("a number", "10")
            raise InvalidMemoryUrl(
                f"{name} in {shown!r} must be {value[0]}, such as {name}={value[1]}"
            ) from None
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise InvalidOption(f"unknown option {unknown[0]!r} for {shown!r}; there are: {there_are}")
    return options


def truth(text: str) -> bool:
    """What true, yes, on, 1, false, no, off or 0 means in a URL; ValueError for other texts."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(text)
