"""What a file is, seen without opening it as a memory: nothing is created, migrated or changed.

Synchronous functions of a path, for the command line. They open the file for reading, each time
anew.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.sqlite import schema
from session_middleware.stores.sqlite.driver import as_memory_error, readable

_PATIENCE = 10.0  # seconds, while another process keeps the file locked


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a file.

    Attributes:
        version: of its layout; 0 of a file that would get one when it is opened.
        newest: the version that this code writes.
    """

    version: int
    newest: int = schema.VERSION

    @property
    def current(self) -> bool:
        """Whether opening it changes nothing."""
        return self.version >= self.newest


def layout(path: str) -> Layout:
    """The layout of the file.

    Raises:
        MemoryUnavailable: there is no such file, or it cannot be read.
        NotADatabase, UnsupportedSchema: it is none of ours, or newer than this code.
    """
    with _opened(path) as connection:
        schema.is_ready(connection, path)
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        return Layout(version)


def faults(path: str, most: int = 100) -> list[str]:
    """What SQLite's own check of the whole file finds, at most so many lines; empty is good.

    Raises:
        MemoryUnavailable: the file cannot be read.
    """
    with _opened(path) as connection:
        try:
            rows = connection.execute(f"PRAGMA integrity_check({most})").fetchall()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return [str(error)]  # too much is torn for the check itself
    found = [str(line) for (line,) in rows]
    return [] if found == ["ok"] else found


def sizes(path: str) -> tuple[int, int]:
    """The bytes of the file, and of the log beside it."""
    log = os.path.realpath(path) + "-wal"
    return os.path.getsize(path), os.path.getsize(log) if os.path.exists(log) else 0


def unused(path: str) -> int:
    """The bytes of the file that are free for what is stored next."""
    with _opened(path) as connection:
        ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
        ((page,),) = connection.execute("PRAGMA page_size").fetchall()
    return int(free) * int(page)


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    schema.check_sqlite()
    if not os.path.isfile(path):
        what = f"{path} is a folder" if os.path.isdir(path) else f"there is no file {path}"
        raise MemoryUnavailable(f"{what}: name the file of a memory")
    try:
        # Not mode=ro: a connection that may not write leaves a log beside the file.
        uri = f"{Path(os.path.realpath(path)).as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as connection:
            connection.text_factory = readable
            connection.execute("PRAGMA query_only = ON")
            yield connection
    except Exception as error:
        raise as_memory_error(error, path) from error.__cause__
