"""What a connection does when nothing has come for a while, in its thread.

A flush that is owed is made, and the log of an idle file is emptied of what was deleted.
Nobody waits for either.
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial

from session_middleware.stores.sqlite.file import DatabaseFile
from session_middleware.stores.sqlite.flushes import Flushes
from session_middleware.stores.sqlite.group import Counts, Durability, Member
from session_middleware.stores.sqlite.wal import WriteAheadLog

IDLE = 5.0
"""Seconds after which the log is emptied."""


class SpareTime:
    """The work of one connection that nobody asks for.

    Args:
        file: the file; None for ``:memory:``.
        log: the log of the file, for the connection that writes to it.
        timeout: seconds for which a locked database is waited for, to empty the log.
        counts: what the connection's queue did so far.
    """

    def __init__(
        self,
        file: DatabaseFile | None,
        log: WriteAheadLog | None,
        timeout: float,
        counts: Counts,
    ) -> None:
        self._file = file
        self._log = log
        self._timeout = timeout
        self._counts = counts

    def seconds(self, flushes: Flushes) -> float | None:
        """How long nothing must come until there is such work; None: there will be none."""
        if flushes.owed is not None:
            return max(0.0, flushes.owed - time.monotonic())
        return IDLE if self._log is not None and self._log.used else None

    def work(self, flushes: Flushes) -> list[Member[bool] | Member[None]]:
        """The work, when so many seconds have passed."""
        deadline = time.monotonic() + self._timeout
        if flushes.owed is not None:
            flush = partial(self._flush, flushes)
            return [Member(flush, Durability.UNFLUSHED, deadline, None, alone=True)]
        if self._log is None:
            return []
        empty = self._log.empty_or_erase
        return [Member(empty, Durability.UNFLUSHED, deadline, None, alone=True)]

    def _flush(self, flushes: Flushes, connection: sqlite3.Connection) -> None:
        """Flush what was committed and not flushed: no commit, so that no page is written."""
        began = time.monotonic()
        try:
            if self._file is not None and self._log is not None:
                self._file.check_with_log()
                self._log.flush()
        except BaseException:
            flushes.failed()
            raise
        flushes.made(time.monotonic() - began)
        self._counts.synced += 1
