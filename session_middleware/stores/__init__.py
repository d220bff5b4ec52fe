"""Where memories are named: by class, by URL, by file.

The stores are imported when they are first asked for. Nothing is opened here; a store opens
what it needs on its first use.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from session_middleware.errors import InvalidMemoryUrl, InvalidOption
from session_middleware.stores._base import TurnMemory, encode_items, without_password

if TYPE_CHECKING:
    from session_middleware.stores.in_memory import InMemorySessionMemory
    from session_middleware.stores.sqlite import SQLiteSessionMemory

__all__ = [
    "InMemorySessionMemory",
    "SQLiteSessionMemory",
    "encode_items",
    "open_memory",
    "shared",
]

_MODULES = {
    "InMemorySessionMemory": "session_middleware.stores.in_memory",
    "SQLiteSessionMemory": "session_middleware.stores.sqlite",
}

_POSSIBLE = (
    "possible are 'sqlite:///chat.db' (in the current folder), 'sqlite:////var/lib/chat.db' "
    "(an absolute path) and ':memory:'"
)
_NOT_YET = ("postgresql", "postgres", "redis", "rediss", "valkey", "valkeys")

_SQLITE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "lease": float,
    "operation_timeout": float,
    "synchronous": str.upper,
}

_Key = tuple[str, tuple[tuple[str, Any], ...]]

_lock = threading.Lock()
_shared: dict[_Key, TurnMemory] = {}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_memory(url: str, **options: Any) -> TurnMemory:
    """Make the memory that a URL names.

    Args:
        url: ``sqlite:///rel.db``, ``sqlite:////abs.db`` or ``:memory:``. A file's options may
            follow it, as in ``sqlite:///rel.db?synchronous=NORMAL&lease=10``.
        options: the same options by keyword: ``lease`` and ``operation_timeout`` in seconds,
            ``synchronous`` ("FULL" or "NORMAL").

    Raises:
        InvalidMemoryUrl: no memory has such a URL; the message names what is possible.
        InvalidOption: an option is unknown, or given both ways.

    Example:
        memory = open_memory("sqlite:///chat.db", lease=10)
    """
    return _open(*_parse(url, options))


def shared(url_or_path: str | os.PathLike[str]) -> TurnMemory:
    """The one memory of this process for a URL (a string) or a file (a path object).

    A path is made absolute at once, so a later change of the current folder changes nothing.
    A memory that was cleaned up is replaced by a new one.

    Raises:
        InvalidMemoryUrl, InvalidOption: as for ``open_memory``.
    """
    if isinstance(url_or_path, str):
        key = _parse(url_or_path, {})
    else:
        key = (os.path.abspath(os.fspath(url_or_path)), ())
    with _lock:
        memory = _shared.get(key)
        if memory is None or memory.closed:
            memory = _shared[key] = _open(*key)
        return memory


def _open(path: str, options: tuple[tuple[str, Any], ...]) -> TurnMemory:
    if path == ":memory:":
        from session_middleware.stores.in_memory import InMemorySessionMemory

        return InMemorySessionMemory()
    from session_middleware.stores.sqlite import SQLiteSessionMemory

    return SQLiteSessionMemory(path, **dict(options))


def _parse(url: str, options: dict[str, Any]) -> _Key:
    """The absolute path (or ``:memory:``) that a URL names, and the options in it."""
    shown = without_password(url) if isinstance(url, str) else repr(url)
    if not isinstance(url, str):
        raise InvalidMemoryUrl(f"a memory URL is a string, not {shown}: {_POSSIBLE}")
    if url == ":memory:":
        if options:
            raise InvalidOption(f"':memory:' takes no options, and got {', '.join(options)}")
        return (":memory:", ())
    scheme, mark, rest = url.partition("://")
    if mark and scheme.lower() in _NOT_YET:
        raise InvalidMemoryUrl(
            f"this version has no store for {scheme.lower()}:// ({shown!r}): {_POSSIBLE}"
        )
    path, _, query = rest.partition("?")
    if not mark or scheme.lower() != "sqlite":
        raise InvalidMemoryUrl(f"no memory has the URL {shown!r}: {_POSSIBLE}")
    if not path.startswith("/") or not path.strip("/"):
        raise InvalidMemoryUrl(f"{shown!r} names no file after three slashes: {_POSSIBLE}")
    if path == "/:memory:":
        raise InvalidMemoryUrl(f"a memory without a file is ':memory:', not {shown!r}")
    return (
        os.path.abspath(unquote(path[1:])),
        tuple(sorted(_options(shown, query, options).items())),
    )


def _options(shown: str, query: str, options: dict[str, Any]) -> dict[str, Any]:
    made = dict(options)
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in made:
            raise InvalidOption(f"{name} is given twice for {shown!r}: leave one out")
        try:
            made[name] = _SQLITE_OPTIONS.get(name, str)(text)
        except ValueError as error:
            raise InvalidMemoryUrl(
                f"{name} in {shown!r} is a number of seconds, such as {name}=10"
            ) from error
    for name in made:
        if name not in _SQLITE_OPTIONS:
            raise InvalidOption(
                f"unknown option {name!r} for {shown!r}; there are: "
                f"{', '.join(sorted(_SQLITE_OPTIONS))}"
            )
    return made


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it; the memories see to themselves


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
