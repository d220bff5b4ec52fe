"""The write-ahead log of one file: kept short, emptied of what was deleted, mended when torn.

Functions of a connection without a transaction, called in its thread between two groups. None of
them waits for other processes, but for those that mend the log after a flush that failed, and
none waits long for reads of this process.

A flush that fails leaves the log torn: the kernel drops the pages that it could not write and
says nothing at the next flush, so whatever is committed behind them is lost with the power. The
log is written once more, both connections are opened anew, and a checkpoint empties it, before
anything is acknowledged again.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.sqlite.driver import is_transient, pauses

SIZE_LIMIT = 16 * 2**20
"""Bytes of the log beyond which it is emptied as soon as nobody reads from it."""

_SMALL = 4 * 2**20  # bytes of a database that is built anew in a moment
_CHANGES = 5000  # rows written, after which a checkpoint is worth its two flushes
_TRIES_APART = 0.1  # seconds between two attempts to empty a log that somebody reads from
_OWN_READERS = 0.05  # seconds to wait for a read of this process, which takes milliseconds
_PIECE = 2**20  # bytes
_flush_data = getattr(os, "fdatasync", os.fsync)  # with its length, and without its times
_FLUSH_ERRORS = {errno.EIO, errno.ENOSPC, errno.EDQUOT}


class WriteAheadLog:
    """The log beside a database file.

    Args:
        path: the log.
        reads: the lock that this process holds while it reads from it.

    Attributes:
        torn: a flush failed, and the log was not emptied since.
        used: something was written since the log was emptied.
        holds_deleted: something was deleted, and is to be overwritten.
    """

    def __init__(self, path: str, reads: Callable[[], threading.Lock]) -> None:
        self._path = path
        self._reads = reads
        self._changes = 0
        self._next_try = 0.0
        self._built_anew = False
        self.torn = False
        self.used = False
        self.holds_deleted = False

    # --- kept short ------------------------------------------------------------------------

    def tend(self, connection: sqlite3.Connection, changes: int, size: int) -> None:
        """Move the log into the database where it has grown, after a group changed so many rows.

        SQLite would do this in a commit, and keep it to itself when a flush fails there.

        Args:
            size: bytes of the log.
        """
        if changes:
            self.used = True
        self._changes += changes
        if self._changes >= _CHANGES:
            self._changes = 0
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if changes and size > SIZE_LIMIT:
            now = time.monotonic()
            if now >= self._next_try:
                self._next_try = 0.0 if self.empty(connection) else now + _TRIES_APART

    def empty(self, connection: sqlite3.Connection) -> bool:
        """Move the log into the database and cut it to nothing; False where somebody reads it."""
        reads = self._reads()
        if not reads.acquire(timeout=_OWN_READERS):
            return False
        try:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            reads.release()
        if busy:
            return False
        _flush(self._path)  # so that no power failure brings its bytes back
        self._changes = 0
        self.used = self.torn = False
        return True

    def note_deleted(self) -> None:
        """Note that something was deleted, by a commit before this."""
        self._built_anew = False
        self.holds_deleted = True

    def erase(self, connection: sqlite3.Connection) -> bool:
        """Empty the log of what was deleted; False where somebody reads it.

        SQLite overwrites what it deletes, and leaves traces of rows that it had moved within the
        database to make room for others. A small database is built anew without them.
        """
        if not self.holds_deleted:
            return True
        if not self._built_anew:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
            if pages * size <= _SMALL:
                connection.execute("VACUUM")
            self._built_anew = True
        self.holds_deleted = not self.empty(connection)
        return not self.holds_deleted

    def empty_or_erase(self, connection: sqlite3.Connection) -> bool:
        """Empty the log, of what was deleted as well if anything was."""
        return self.erase(connection) if self.holds_deleted else self.empty(connection)

    # --- mended ----------------------------------------------------------------------------

    def note(self, error: BaseException) -> None:
        """Note an error, which may be that of a flush."""
        code: int | None = getattr(error, "sqlite_errorcode", None)
        if code is not None:
            self.torn = self.torn or code & 0xFF == sqlite3.SQLITE_IOERR
        elif isinstance(error, OSError):
            self.torn = self.torn or error.errno in _FLUSH_ERRORS

    def save(self, connection: sqlite3.Connection, timeout: float) -> None:
        """Write the bytes of the log once more, and flush them.

        A checkpoint alone would not do. A power failure in the middle of it leaves a database
        that is half new, beside a log that ends where it was torn.

        Raises:
            sqlite3.Error: other processes write to it for ``timeout`` seconds.
        """
        _patiently(lambda: self._save(connection), timeout)

    def _save(self, connection: sqlite3.Connection) -> bool:
        connection.execute("BEGIN IMMEDIATE")  # nobody writes to it meanwhile
        try:
            with suppress(FileNotFoundError), open(self._path, "r+b", buffering=0) as log:
                at = 0
                while piece := os.pread(log.fileno(), _PIECE, at):
                    at += os.pwrite(log.fileno(), piece, at)
                os.fsync(log.fileno())
        finally:
            connection.execute("ROLLBACK")
        return True

    def mend(self, connection: sqlite3.Connection, timeout: float) -> None:
        """Save the log and empty it, waiting for other processes to read from it no longer.

        Raises:
            MemoryUnavailable: they still do after ``timeout`` seconds.
        """
        self.save(connection, timeout)
        if not _patiently(lambda: self.empty(connection), timeout):
            raise MemoryUnavailable(
                f"a flush of {self._path} failed, and another process keeps it from being "
                "mended: find the one that keeps a transaction open, then try again"
            )


def _patiently(attempt: Callable[[], bool], timeout: float) -> bool:
    """Try until it succeeds, or other processes were in the way for so many seconds."""
    deadline = time.monotonic() + timeout
    pause = pauses()
    while True:
        try:
            if attempt():
                return True
        except sqlite3.Error as error:
            if not is_transient(error) or time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            return False
        pause()


def _flush(path: str) -> None:
    with suppress(FileNotFoundError):  # a file without a log
        descriptor = os.open(path, os.O_RDWR)
        try:
            _flush_data(descriptor)
        finally:
            os.close(descriptor)
