"""Opening a database file: created for its owner only, refused or made ready, the same by all.

Many processes may open one file at the same moment; each of them either finds it ready or makes
it ready, and waits for the other meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores import _sqlite_schema as schema
from session_middleware.stores._sqlite_driver import is_transient, pauses


def create_file(path: str) -> None:
    """Create the file if there is none, readable and writable for its owner only.

    SQLite gives the files it makes beside it the same mode.

    Raises:
        MemoryUnavailable: there can be no such file; the cause is the operating system's error.
    """
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileNotFoundError as error:
        raise MemoryUnavailable(
            f"there is no folder for {path}: create it, or name another db_path"
        ) from error
    except OSError as error:
        raise MemoryUnavailable(
            f"{path} cannot be created ({error.strerror}): let this user write to its folder, "
            "or name another db_path"
        ) from error
    if os.path.isdir(path):
        cause = IsADirectoryError(path)
        raise MemoryUnavailable(f"{path} is a folder: name a file in it as db_path") from cause


def make_ready(connection: sqlite3.Connection, path: str, timeout: float) -> None:
    """See that the file is ours, or make it so.

    Args:
        connection: a new connection, in autocommit mode.
        path: its file, for messages.
        timeout: seconds to wait for other processes that are doing the same.

    Raises:
        UnsupportedSchema: the file is not ours to use; it was left as it is.
        sqlite3.Error: what SQLite has against it.
    """
    deadline = time.monotonic() + timeout
    pause = pauses()
    while True:
        try:
            _make_ready(connection, path)
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not is_transient(error) or time.monotonic() > deadline:
                raise
            pause()
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        else:
            return


def _make_ready(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN")  # one look: another process may be giving the file its layout
    ready = schema.is_ready(connection, path)
    connection.execute("COMMIT")
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode not in ("wal", "memory"):
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA secure_delete = ON").fetchone()
    if ready:
        return
    connection.execute("BEGIN IMMEDIATE")
    if not schema.is_ready(connection, path):  # another process was quicker
        schema.make_ready(connection)
    connection.execute("COMMIT")
