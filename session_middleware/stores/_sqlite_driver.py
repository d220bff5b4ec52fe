"""What SQLite's driver says, in our words: which errors pass, and which error a caller gets."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable

from session_middleware.errors import MemoryUnavailable, NotADatabase

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


def as_memory_error(error: BaseException, path: str) -> BaseException:
    """The error to raise for one of the driver's; any other is returned as it is."""
    if not isinstance(error, (sqlite3.Error, OSError)):
        return error
    wrapped: Exception
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
        wrapped = NotADatabase(
            f"{path} is no SQLite database, and was left as it is: name another file"
        )
    elif is_transient(error):
        wrapped = MemoryUnavailable(
            f"{path} was kept locked by another process for the whole operation_timeout: "
            "find the one that keeps a transaction open, or raise operation_timeout"
        )
    else:
        wrapped = MemoryUnavailable(
            f"SQLite could not work on {path} ({error}): check that the disk has room and that "
            "the file and its folder can be written, then try again"
        )
    wrapped.__cause__ = error
    return wrapped
