"""One SQLite connection and everything that waits for it, run in groups.

Whatever waits together is one transaction: one hop to the connection's thread, one commit.
Between two groups the thread keeps the log short, and makes one step of what is left to do of
results that are out of the database already, so that a long one holds up no group for long.

The connection is aiosqlite's, opened and driven from the background loop: its thread inherits
daemon status there, so an open connection never keeps a process alive, and no event loop of a
user's can stall or end it. Groups run through ``commit()``, the one method that aiosqlite
passes on without arguments and whose meaning fits: run what waits, and commit it. It is called
once for each connection and returns when the queue is closed or the connection is to be opened
anew: until then its thread waits here, and a caller's loop wakes it without a hop in between.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import aiosqlite

from session_middleware import _background
from session_middleware._background import Outcome
from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.sqlite.driver import (
    as_memory_error,
    as_unavailable,
    is_transient,
    pauses,
)
from session_middleware.stores.sqlite.file import DatabaseFile
from session_middleware.stores.sqlite.flushes import Flushes
from session_middleware.stores.sqlite.group import (
    Counts,
    Durability,
    GroupConnection,
    Member,
    Steps,
    deliver,
    run_members,
)
from session_middleware.stores.sqlite.waiting import Waiting
from session_middleware.stores.sqlite.wal import WriteAheadLog

T = TypeVar("T")

_STARTS = 4
IDLE = 5.0
"""Seconds after which the log of a file that nobody writes to is emptied."""


class ConnectionQueue:
    """Functions waiting for one connection, which is opened when the first of them comes.

    Args:
        path: the database file, or ``:memory:``.
        file: the same, seen to be there at each group; None for ``:memory:``.
        begin: the statement that begins a group.
        flush: a statement that writes a page and changes nothing, so that a commit flushes.
        timeout: seconds for which a locked database is waited for.
        create: called before a connection is made, in its thread.
        prepare: called with the new connection, in its thread, before anything else.
        check: called in a transaction, where the layout may be another than before.
        log: the log of the file, for the queue that writes to it.
        after: another queue whose connection is opened first, and anew together with this one's.
    """

    def __init__(
        self,
        path: str,
        file: DatabaseFile | None = None,
        *,
        begin: str,
        flush: str = "",
        timeout: float,
        create: Callable[[], None],
        prepare: Callable[[GroupConnection], None],
        check: Callable[[GroupConnection], None],
        log: WriteAheadLog | None = None,
        after: ConnectionQueue | None = None,
    ) -> None:
        self._path = path
        self._file = file
        self._begin = begin
        self._flush = flush
        self._timeout = timeout
        self._log = log
        self._after = after
        self._before: ConnectionQueue | None = None
        if after is not None:
            after._before = self
        self.create = create
        self.prepare = prepare
        self.check = check
        self.counts = Counts()
        self._waiting = Waiting(path, timeout)
        self._forget()

    def _forget(self) -> None:
        """Begin with nothing: as new, or in a forked child."""
        if self._file is not None:
            self._file.forget()
        self._waiting.forget()
        self.running = threading.Lock()  # held whenever SQLite is inside a call
        self._unfinished: deque[Member[Any]] = deque()  # these have steps left to make
        self._drain_task: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[aiosqlite.Connection] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._broken = False  # the connection must be opened anew
        self.flushes = Flushes()

    # --- any thread ------------------------------------------------------------------------

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        durability: Durability = Durability.UNFLUSHED,
        *,
        throttled: bool = False,
        timeout: float | None = None,
    ) -> Outcome[T]:
        """Let ``work`` run in the next group; the future is of the caller's running loop.

        A write that has begun is not torn: a cancellation waits for its outcome.

        Args:
            durability: what a power failure may take of it once the future is done.
            throttled: the work begins something that will write more, such as a turn. Few of
                these are admitted to a group at a time.
            timeout: seconds to wait for a locked database, when not the queue's own.

        Raises:
            MemoryClosed: the queue is closed.
        """
        patience = self._timeout if timeout is None else timeout
        waiter: Outcome[T] = Outcome(loop=asyncio.get_running_loop())
        self._add(Member(work, durability, time.monotonic() + patience, waiter), throttled)
        return waiter

    def submit_read(
        self, work: Callable[[sqlite3.Connection], T | Steps[T]], *, alone: bool = False
    ) -> asyncio.Future[T]:
        """Let ``work``, which writes nothing, run in the next group; it can be cancelled at once.

        Args:
            work: a function that returns its result, or the steps that lead to it from what it
                read; these are made when the transaction is over.
            alone: run it between two groups, without a transaction.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        deadline = time.monotonic() + self._timeout
        self._add(Member(work, Durability.UNFLUSHED, deadline, waiter, alone))
        return waiter

    def submit_steps(self, steps: Steps[T]) -> asyncio.Future[T]:
        """Make these steps in the connection's thread, between groups and one at a time."""
        return self.submit_read(lambda connection: steps, alone=True)

    def _add(self, member: Member[Any], throttled: bool = False) -> None:
        def drain() -> None:
            _background.loop().call_soon_threadsafe(self._start_drain)

        self._waiting.add(member, drain, throttled=throttled)

    @property
    def length(self) -> int:
        """How many functions wait."""
        return len(self._waiting)

    @property
    def opened(self) -> bool:
        """Whether a connection was ever asked for."""
        return self._opening is not None or self.draining

    @property
    def draining(self) -> bool:
        """Whether the connection's thread takes what waits, or is about to."""
        return self._waiting.draining

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits or runs."""
        return self._waiting.idle or not self.draining

    # --- the background loop ---------------------------------------------------------------

    def _start_drain(self) -> None:
        self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await (await self._connection()).commit()
            while self._broken:
                self._broken = False
                await self._disconnect()
                if self._before is not None and self._log is not None and self._log.torn:
                    await self._before.open_anew()
                await (await self._connection()).commit()
        except BaseException as error:
            self._note(error)
            self._settle(self._give_up(), as_unavailable(error, self._path))

    async def open_anew(self) -> None:
        """Close the connection when its group is over; what waits is done by the next one."""
        self._broken = self.draining
        self._waiting.interrupt()
        await self._disconnect()

    async def _connection(self) -> aiosqlite.Connection:
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._connect())
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except BaseException:
            if self._opening is opening and opening.done():
                self._opening = None  # the next one to come tries again
            raise

    async def _connect(self) -> aiosqlite.Connection:
        if self._after is not None:
            await self._after._connection()
        return await aiosqlite.connect(
            self._path if self._file is None else self._file.uri,
            factory=partial(GroupConnection, self),
            uri=self._file is not None,
            isolation_level=None,
            timeout=0,
            cached_statements=256,
        )

    async def _disconnect(self) -> None:
        opening, self._opening = self._opening, None
        if self._file is not None and self._log is not None:
            self._file.release_log()
        if opening is not None:
            self._closing = asyncio.get_running_loop().create_task(_close_opened(opening))
        if self._closing is not None:  # by this call, or by another one
            await asyncio.wait((self._closing,))

    def refuse(self) -> None:
        """Take nothing more; what waits is still done."""
        self._waiting.close()

    async def close(self) -> None:
        """Let what waits be done, then close the connection. For the background loop only."""
        self.refuse()
        while self.draining:
            if self._drain_task is None:
                await asyncio.sleep(0)
            else:
                await asyncio.wait((self._drain_task,))
                await asyncio.sleep(0)
        await self._disconnect()

    # --- the connection's thread -----------------------------------------------------------

    def run_waiting(self, connection: GroupConnection) -> None:
        """Run groups until the queue is closed or the connection is to be opened anew."""
        group: list[Member[Any]] = []
        pause = pauses()
        while group or not self._broken:
            if self._log is not None and self._log.torn:
                # A connection that is closed moves the log into the database: saved before that.
                with self.running:
                    self._log.save(connection, self._timeout)
                self._broken = True
                break
            waits = not (group or self._unfinished)
            group = [*group, *self._take_waiting(waits=waits)]
            if not group and waits and self._waiting.end_if_closed():
                return
            obstacle = None
            if group:
                with self.running:
                    obstacle = self._run(connection, group)
            self._make_step()
            if obstacle is None:
                group = []
                pause = pauses()
                continue
            now = time.monotonic()
            self._settle([member for member in group if member.deadline <= now], obstacle)
            group = [member for member in group if member.deadline > now and not member.alone]
            pause()

    def _run(
        self, connection: GroupConnection, group: Sequence[Member[Any]]
    ) -> sqlite3.Error | None:
        """Run what waits, or return what another process holds up."""
        together = [member for member in group if not member.alone]
        if together:
            obstacle = self._run_group(connection, together)
            if obstacle is not None:
                return obstacle
        for member in group:
            if member.alone:
                self._run_alone(connection, member)
        return None

    def _run_alone(self, connection: GroupConnection, member: Member[Any]) -> None:
        try:
            member.keep(member.work(connection))
        except Exception as error:
            self._note(error)
            member.error = error
        self._settle_when_finished([member])

    def _make_step(self) -> None:
        """Make one step of a result that is not finished; all of them in turn."""
        if self._unfinished:
            self._settle_when_finished([self._unfinished.popleft()])

    def _settle_when_finished(self, members: Sequence[Member[Any]]) -> None:
        finished: list[Member[Any]] = []
        for member in members:
            (self._unfinished if member.advance() else finished).append(member)
        self._settle(finished)

    def _run_group(
        self, connection: GroupConnection, group: Sequence[Member[Any]]
    ) -> sqlite3.Error | None:
        """Run and commit the group and settle it, or return what another process holds up."""
        full = any(member.durability is Durability.FLUSHED for member in group)
        changes = connection.total_changes
        try:
            self._check_file()
            connection.begin(self._begin, "FULL" if full else "NORMAL")
            if not run_members(connection, group):
                connection.execute("ROLLBACK")
                connection.execute(self._begin)
                run_members(connection, group, apart=True)
            changed = connection.total_changes - changes
            if full and self.flushes.owed and not changed:
                connection.execute(self._flush)  # SQLite flushes for no commit that writes nothing
            began = time.monotonic()
            connection.execute("COMMIT")
            log_size = 0 if self._file is None else self._file.check_with_log()
        except BaseException as error:
            with suppress(sqlite3.Error):  # the connection is renewed below where this fails
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and is_transient(error):
                return error
            self._note(error)
            self._broken = self._file is not None and not isinstance(error, MemoryUnavailable)
            if self._log is not None and self._log.torn:
                self._broken = False
            self._settle(group, error)
            return None
        if full and (changed or self.flushes.owed):
            self.flushes.made(time.monotonic() - began)
            self.counts.synced += 1
        elif changed:
            self.flushes.owed = True
        self.counts.groups += 1
        self.counts.members += len(group)
        self._settle_when_finished(group)
        self._tend_log(connection, changed, log_size)
        return None

    def _check_file(self) -> None:
        if self._file is not None:
            self._file.check()

    # --- the log, in the connection's thread --------------------------------------------------

    def _note(self, error: BaseException) -> None:
        """Note that the log may be torn by this error; the next thing to do is to save it."""
        if self._log is not None:
            self._log.note(error)

    def _tend_log(self, connection: GroupConnection, changes: int, size: int) -> None:
        if self._log is None:
            return
        try:
            self._log.tend(connection, changes, size)
        except (sqlite3.Error, OSError) as error:
            self._note(error)

    def before_close(self, connection: GroupConnection) -> None:
        """Save a torn log, as far as the disk lets it be saved."""
        if self._log is not None and self._log.torn:
            with suppress(sqlite3.Error, OSError):
                self._log.save(connection, self._timeout)

    # --- forks -----------------------------------------------------------------------------

    def start_anew_in_child(self) -> None:
        """Begin with nothing; the parent's connection is neither used nor closed."""
        for inherited in (self._opening, self._drain_task):
            if inherited is not None:
                _keep_for_ever(inherited)
        self._forget()

    # --- both ------------------------------------------------------------------------------

    def _take_waiting(self, *, waits: bool) -> list[Member[Any]]:
        """What runs next; with ``waits``, wait until there is something.

        A group admits few throttled members: turns that have begun end first, so that of many
        turns the first end before the last begin, and none of them takes longer. On a slow disk
        all turns share each flush instead.
        """
        log = self._log
        late = waits and self._waiting.wait(IDLE if log is not None and log.used else None)
        group = self._waiting.take(admit=None if self.flushes.slow else _STARTS)
        if log is not None and late and not group:
            deadline = time.monotonic() + self._timeout
            work = Member(log.empty_or_erase, Durability.UNFLUSHED, deadline, None, alone=True)
            return [work]
        return group

    def _give_up(self) -> list[Member[Any]]:
        """Everything that waits; the drain is over."""
        group = [*self._unfinished, *self._waiting.give_up()]
        self._unfinished.clear()
        return group

    def _settle(self, group: Sequence[Member[Any]], error: BaseException | None = None) -> None:
        """Give everybody in the group its result, or this error."""
        for member in group:
            if error is not None:
                member.error = error
            if member.error is not None:
                member.error = as_memory_error(member.error, self._path)
        deliver(group)


async def _close_opened(opening: asyncio.Task[aiosqlite.Connection]) -> None:
    with suppress(Exception):  # it never opened, or is of no use any more
        await (await opening).close()


def _keep_for_ever(inherited: object) -> None:
    """Hold what is the parent's past interpreter shutdown: a child must never close it."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
