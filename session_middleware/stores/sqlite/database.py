"""One database: its file, the two connections to it, and the leases held through them.

It outlives the memory that it serves: a memory that is forgotten, or a process that ends, closes
it from the background loop. Nothing here knows what a memory reads and writes.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial

from session_middleware import _background
from session_middleware._fork import Step, at_fork
from session_middleware.errors import MemoryUnavailable, SessionMemoryError
from session_middleware.stores.leases import HeldLeases
from session_middleware.stores.sqlite import acquire as leasing
from session_middleware.stores.sqlite.connection import ConnectionQueue
from session_middleware.stores.sqlite.driver import is_transient
from session_middleware.stores.sqlite.file import DatabaseFile, check_unchanged, make_ready
from session_middleware.stores.sqlite.group import GroupConnection
from session_middleware.stores.sqlite.schema import FLUSH, check_sqlite
from session_middleware.stores.sqlite.wal import WriteAheadLog

_EXIT_PATIENCE = _background.EXIT_SECONDS / 2
_FORK_PATIENCE = 1.0
_ERASE_PAUSE = 0.001  # seconds
_LONGEST_ERASE_PAUSE = 0.1


class Database:
    """The connections to one file and the leases held through them.

    Args:
        path: the file, or ``:memory:``.
        lease: the length of a lease in seconds.
        timeout: seconds to wait for other processes that keep the file locked.
    """

    def __init__(self, path: str, lease: float, timeout: float) -> None:
        self._path = path
        self._lease = lease
        self._timeout = timeout
        self.file = None if path == ":memory:" else DatabaseFile(path)
        self._log = (
            None
            if self.file is None
            else WriteAheadLog(self.file.log_path, lambda: self.reads.running)
        )
        self.writes = ConnectionQueue(
            path,
            self.file,
            begin="BEGIN IMMEDIATE",
            flush=FLUSH,
            timeout=timeout,
            create=self._create,
            prepare=self._prepare_writes,
            check=partial(check_unchanged, path=path),
            log=self._log,
        )
        self.reads = self.writes
        if self.file is not None:
            self.reads = ConnectionQueue(
                path,
                self.file,
                begin="BEGIN",
                timeout=timeout,
                create=self.file.check,
                prepare=_prepare_reads,
                check=partial(check_unchanged, path=path),
                after=self.writes,
            )
        self.leases: HeldLeases[int] = HeldLeases(self._renew, self._release, lease)
        _databases.add(self)
        _background.at_exit(_close_databases)

    def _create(self) -> None:
        check_sqlite()
        if self.file is not None:
            self.file.create()

    def _prepare_writes(self, connection: GroupConnection) -> None:
        if self._log is not None and self._log.torn:
            self._log.mend(connection, self._timeout)
        make_ready(connection, self._path, self._timeout)
        if self.file is not None:
            self.file.note_opened()

    async def _renew(self, held: Mapping[int, int]) -> Collection[int]:
        still = await self.writes.submit(partial(leasing.renew, held=held, lease=self._lease))
        return set(held.values()) - still

    async def _release(self, held: Mapping[int, int], patience: float | None) -> None:
        await self.writes.submit(partial(leasing.release_held, held=held), timeout=patience)

    def erase_when_idle(self) -> None:
        """Let what was deleted be overwritten as soon as nothing is written for some seconds."""
        if self._log is not None:
            self._log.note_deleted()

    async def erase(self) -> None:
        """Return when no byte of the file and its log holds what was deleted before.

        The write queue does not wait meanwhile.

        Raises:
            MemoryUnavailable: another process reads on; what was deleted stays deleted.
        """
        if self._log is None:
            return
        self._log.note_deleted()
        deadline = time.monotonic() + self._timeout
        pause = _ERASE_PAUSE
        while not await self._erased(self._log):
            if time.monotonic() > deadline:
                raise MemoryUnavailable(
                    f"it is deleted, and still in the write-ahead log of {self._path}, as another "
                    "process reads on: the next checkpoint will overwrite it. Find the process "
                    "that keeps a transaction open"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_ERASE_PAUSE)

    async def _erased(self, log: WriteAheadLog) -> bool:
        try:
            return await self.writes.submit_read(log.erase, alone=True)
        except MemoryUnavailable as error:
            if error.__cause__ is not None and is_transient(error.__cause__):
                return False  # another process writes
            raise

    # --- the end ---------------------------------------------------------------------------

    async def close(self, patience: float | None = None) -> None:
        """End the held leases and close the connections. For the background loop only."""
        with suppress(SessionMemoryError):  # closed before, or a lease ends by itself
            await self.leases.release_all(patience)
        await self.reads.close()
        await self.writes.close()

    @property
    def _opened(self) -> bool:
        return self.writes.opened or self.reads.opened

    async def close_from_anywhere(self) -> None:
        """Close from any event loop; nothing is opened for it."""
        if self._opened:
            await _background.finish(asyncio.wrap_future(_background.submit(self.close())))
        else:
            self.writes.refuse()
            self.reads.refuse()

    def abandon(self) -> None:
        """Close the connections at some time: the memory is gone."""
        if self._opened:
            _background.submit(self.close())


def _prepare_reads(connection: GroupConnection) -> None:
    connection.execute("PRAGMA query_only = ON")


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


async def _close_databases() -> None:
    await asyncio.gather(*(database.close(_EXIT_PATIENCE) for database in list(_databases)))


# --- forks -----------------------------------------------------------------------------------

_paused: list[threading.Lock] = []


def _queues() -> set[ConnectionQueue]:
    return {queue for database in list(_databases) for queue in (database.writes, database.reads)}


def _pause_before_fork() -> None:
    # A child forked inside a call of SQLite would inherit SQLite's own mutexes as locked.
    locks = [queue.running for queue in _queues()]
    _paused.extend(lock for lock in locks if lock.acquire(timeout=_FORK_PATIENCE))


def _resume_after_fork() -> None:
    while _paused:
        _paused.pop().release()


def _start_anew_in_child() -> None:
    _paused.clear()
    for queue in _queues():
        queue.start_anew_in_child()


at_fork(
    Step.CONNECTIONS,
    _start_anew_in_child,
    before=_pause_before_fork,
    in_parent=_resume_after_fork,
)
