"""Which memory a URL names, and one shared memory per storage and process.

A backend is imported when one of its URLs is read. Nothing is opened here, and nothing of any one
backend is known.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from session_middleware._fork import Step, at_fork
from session_middleware.errors import InvalidMemoryUrl
from session_middleware.stores.passwords import without_password
from session_middleware.stores.urls import BACKENDS, Address, UrlReader

if TYPE_CHECKING:
    from session_middleware.stores.base import TurnMemory

__all__ = ["open_memory", "shared"]

_lock = threading.Lock()
_shared: dict[Hashable, TurnMemory] = {}


def open_memory(url: str, **options: Any) -> TurnMemory:
    """Make the memory that a URL names.

    Args:
        url: ``sqlite:///rel.db``, ``sqlite:////abs.db`` or ``:memory:``. Options may follow it,
            as in ``sqlite:///rel.db?synchronous=NORMAL&lease=10``.
        options: the same options by keyword, as the memory's class takes them: for a file
            ``lease``, ``ttl`` and ``operation_timeout`` in seconds, ``synchronous`` ("FULL" or
            "NORMAL").

    Raises:
        InvalidMemoryUrl: no memory has such a URL; the message names what is possible.
        InvalidOption: an option is unknown, has a wrong value, or is given both ways.

    Example:
        memory = open_memory("sqlite:///chat.db", lease=10)
    """
    return _address(url, options).open()


def shared(url: str) -> TurnMemory:
    """The one memory of this process for a URL.

    A path is made absolute at once, so a later change of the current directory changes nothing.
    A memory that was cleaned up is replaced by a new one.

    Raises:
        InvalidMemoryUrl, InvalidOption: as for ``open_memory``.
    """
    address = _address(url, {})
    with _lock:
        memory = _shared.get(address.key)
        if memory is None or memory.closed:
            memory = _shared[address.key] = address.open()
            memory.url = url
        return memory


def _address(url: object, options: Mapping[str, Any]) -> Address:
    if not isinstance(url, str):
        raise InvalidMemoryUrl(
            f"the URL of a memory must be a string, got {type(url).__name__}: {_possible()}"
        )
    scheme = url.partition("?")[0].partition("://")[0].lower()
    if scheme not in BACKENDS:
        raise InvalidMemoryUrl(f"no memory has the URL {without_password(url)!r}: {_possible()}")
    return _reader(BACKENDS[scheme]).address(url, options)


def _reader(backend: str) -> UrlReader:
    """The module that reads the URLs of a backend."""
    return cast(UrlReader, import_module(f"{__name__}.{backend}.url"))


def _possible() -> str:
    """Correct URLs of every backend, for error messages."""
    readers = [_reader(backend) for backend in dict.fromkeys(BACKENDS.values())]
    examples = [example for reader in readers for example in reader.EXAMPLES]
    return f"possible are {', '.join(examples)}"


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it; the memories see to themselves


at_fork(Step.SHARED_MEMORIES, _after_fork_in_child)
