"""What SQLite's driver says, in our words: which errors pass, and which error a caller gets."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable

from session_middleware.errors import MemoryUnavailable, NotADatabase, SessionMemoryError

_TRANSIENT = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


def is_transient(error: BaseException) -> bool:
    """Whether another process is in the way, so that the same thing may succeed in a moment."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _TRANSIENT


def readable(text: bytes) -> str:
    """A text of the file; what somebody else wrote there as no UTF-8 must not stop a load."""
    return text.decode(errors="replace")


def pauses() -> Callable[[], None]:
    """A function that sleeps a little longer each time, with jitter."""
    longest = _FIRST_PAUSE

    def pause() -> None:
        nonlocal longest
        time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, no secret
        longest = min(longest * 2, _LONGEST_PAUSE)

    return pause


_UNREADABLE = (ValueError, TypeError, LookupError, OverflowError, RecursionError)
"""What reading a value raises that this package has not written."""


class OtherItems(SessionMemoryError, ValueError):
    """Items at a place of a run that has others: an error of the caller's."""


def as_memory_error(error: BaseException, path: str) -> BaseException:
    """The error to raise for one of the driver's; any other is returned as it is."""
    if isinstance(error, SessionMemoryError):
        return error
    if isinstance(error, _UNREADABLE):
        return _changed(error, path, f"a value in it cannot be read ({type(error).__name__})")
    if isinstance(error, (sqlite3.Error, OSError, MemoryError)):
        return as_unavailable(error, path)
    return error


def _changed(error: BaseException, path: str, what: str) -> MemoryUnavailable:
    wrapped = MemoryUnavailable(
        f"{path} was changed by another program: {what}. Restore it from a backup, or give the "
        "memory another file"
    )
    wrapped.__cause__ = error
    return wrapped


def as_unavailable(error: BaseException, path: str) -> BaseException:
    """The error to raise for any that kept the file from being opened or used."""
    if isinstance(error, SessionMemoryError) or not isinstance(error, Exception):
        return error
    lacks = isinstance(error, sqlite3.OperationalError) and str(error).startswith("no such ")
    if lacks or isinstance(error, sqlite3.IntegrityError):
        return _changed(error, path, str(error))
    wrapped: SessionMemoryError
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
        wrapped = NotADatabase(
            f"{path} is no SQLite database, and was left as it is: name another file"
        )
    elif is_transient(error):
        wrapped = MemoryUnavailable(
            f"{path} was kept locked by another process for the whole operation_timeout: "
            "find the one that keeps a transaction open, or raise operation_timeout"
        )
    elif isinstance(error, RuntimeError):  # "can't start new thread"
        wrapped = MemoryUnavailable(
            f"{path} cannot be opened ({error}): let this process start more threads, then try "
            "again"
        )
    else:
        wrapped = MemoryUnavailable(
            f"SQLite could not work on {path} ({error}): check that the disk has room, that the "
            "file and its folder can be written and that this process may open more files, then "
            "try again"
        )
    wrapped.__cause__ = error
    return wrapped
