"""The database file: created for its owner only, made ready, and the same one ever after.

Many processes may open one file at the same moment; each of them either finds it ready or makes
it ready, and waits for the other meanwhile. Nothing here knows what is stored.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import warnings
from contextlib import suppress
from pathlib import Path

from session_middleware.errors import MemoryUnavailable, UnsupportedSchema
from session_middleware.stores.sqlite import schema as schema
from session_middleware.stores.sqlite.driver import is_transient, pauses
from session_middleware.stores.sqlite.wal import SIZE_LIMIT

Identity = tuple[int, int]
"""Device and inode: no two files that exist at once have the same."""

_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class DatabaseFile:
    """The file at a path, with the log that SQLite keeps beside it.

    The file that is opened first is the only one that is ever used: what is written to a file
    that was removed or replaced is lost, and its log destroys the file that took its place.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.log_path = os.path.realpath(path) + "-wal"
        self.forget()

    def forget(self) -> None:
        """Begin with nothing: as new, or in a forked child, which opens the file anew."""
        self._opened: Identity | None = None
        self._log: Identity | None = None

    @property
    def uri(self) -> str:
        """The path for SQLite, which must not create the file: it would not keep it private."""
        return f"{Path(self.path).as_uri()}?mode=rw"

    def create(self) -> None:
        """Create the file if there was none when it is opened first; else see that it is there.

        Raises:
            MemoryUnavailable: there can be no such file, or it is not the one any more.
        """
        if self._opened is None:
            _create(self.path)
        else:
            self.check()

    def note_opened(self) -> None:
        """Note which file a new connection uses, and keep what is beside it as private.

        Raises:
            MemoryUnavailable: the file is not the one that was opened before.
            OSError: the names of the files cannot be flushed to the disk. SQLite does that as
                well, and passes over an error.
        """
        _flush_folder(os.path.dirname(self.log_path))
        found = os.stat(self.path)
        if self._opened not in (None, _identity(found)):
            raise self._replaced()
        self._opened = _identity(found)
        self._log = None
        with suppress(FileNotFoundError):
            self._log = _identity(os.stat(self.log_path))
        self._restrict(stat.S_IMODE(found.st_mode))

    def check(self) -> None:
        """See that the file is the one that was opened.

        Raises:
            MemoryUnavailable: it is not. So it is for good, as another file has other
                conversations.
        """
        try:
            if _identity(os.stat(self.path)) == self._opened:
                return
        except FileNotFoundError:
            pass
        raise self._replaced()

    def check_with_log(self) -> int:
        """The same for the file and its log; returns the bytes of the log."""
        self.check()
        while True:
            log = self._log
            try:
                found = os.stat(self.log_path)
            except FileNotFoundError:
                found = None
            if found is not None and log in (None, _identity(found)):
                return found.st_size
            if log is None:
                return 0
            if log is self._log:  # else another thread closes its connection, or has opened it
                raise self._replaced()

    def release_log(self) -> None:
        """Expect the log to go: a connection is about to be closed, and the last removes it."""
        self._log = None

    def _replaced(self) -> MemoryUnavailable:
        return MemoryUnavailable(
            f"{self.path} was removed or replaced while it was in use: to use the file that is "
            "there now, call cleanup() and make a new memory, or start the process again"
        )

    def _restrict(self, mode: int) -> None:
        """Let nobody do more to the files beside the database than to the database."""
        beside = self.log_path.removesuffix("-wal")
        for path in (f"{beside}-wal", f"{beside}-shm"):
            with suppress(OSError):  # there is none, or another user owns it
                found = stat.S_IMODE(os.stat(path).st_mode)
                if found & ~mode & _GROUP_AND_OTHERS:
                    os.chmod(path, found & (mode | ~_GROUP_AND_OTHERS))
        if mode & _WRITABLE:
            warnings.warn(
                f"{self.path} can be written by other users (mode {mode:04o}): "
                f"run chmod 600 on it, unless they are meant to change conversations",
                stacklevel=2,
            )


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _flush_folder(path: str) -> None:
    if os.name == "nt":  # a folder is no file there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: str) -> None:
    """Create the file if there is none, for its owner only, also where a link leads to it.

    SQLite gives the files it makes beside it the same mode.
    """
    try:
        with suppress(FileExistsError):
            # A link that leads nowhere exists, and cannot be created: its target is.
            target = os.path.realpath(path)
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
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


# --- the layout ------------------------------------------------------------------------------


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


def check_unchanged(connection: sqlite3.Connection, path: str) -> None:
    """See that a file that was made ready still is, in the transaction that is open.

    Raises:
        MemoryUnavailable: another program has changed it meanwhile.
    """
    try:
        if schema.is_ready(connection, path):
            return
        cause = None
    except UnsupportedSchema as error:
        cause = error
    raise MemoryUnavailable(
        f"{path} was changed by another program while it was open: restore it from a backup, or "
        "give the memory another file"
    ) from cause


def _make_ready(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN")  # one look: another process may be giving the file its layout
    ready = schema.is_ready(connection, path)
    connection.execute("COMMIT")
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode not in ("wal", "memory"):
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA secure_delete = ON").fetchone()
    connection.execute("PRAGMA temp_store = MEMORY").fetchone()  # no words in other files
    connection.execute("PRAGMA wal_autocheckpoint = 0").fetchone()  # the queue sees to the log
    connection.execute(f"PRAGMA journal_size_limit = {SIZE_LIMIT}").fetchone()
    if ready:
        return
    connection.execute("BEGIN IMMEDIATE")
    if not schema.is_ready(connection, path):  # another process was quicker
        schema.make_ready(connection)
    connection.execute("COMMIT")
