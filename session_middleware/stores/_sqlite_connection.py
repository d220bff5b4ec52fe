"""One SQLite connection and everything that waits for it, run in groups.

Whatever waits together is one transaction: one hop to the connection's thread, one commit. A
member of a group is a plain function of the connection; its own error undoes it alone, an error
of the transaction reaches every member. Nothing here knows what the members do.

The connection is aiosqlite's, opened and driven from the background loop: its thread inherits
daemon status there, so an open connection never keeps a process alive, and no event loop of a
user's can stall or end it. A group runs through ``commit()``, the one method that aiosqlite
passes on without arguments and whose meaning fits: run what waits, and commit it.
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import aiosqlite

from session_middleware import _background
from session_middleware._background import Outcome
from session_middleware.errors import MemoryClosed
from session_middleware.stores._sqlite_driver import (
    as_memory_error,
    is_transient,
    pauses,
    readable,
)

T = TypeVar("T")

_FORK_PATIENCE = 1.0
_STARTS = 4
_FLUSHES = 16  # the quickest of them tells how quick the disk is: others waited for the interpreter
_SLOW_FLUSH = 0.0005  # seconds
_FLUSH_PATIENCE = 1.0  # seconds
_NEXT = math.inf
_LINGER = 0.05  # seconds; operations come in bursts, and a hop through two threads costs more


@dataclass(slots=True, eq=False)
class _Member(Generic[T]):
    """One function to run in a group, and who waits for what it returns."""

    work: Callable[[sqlite3.Connection], T]
    keep: bool
    deadline: float
    waiter: asyncio.Future[T] | None
    soon: bool = False
    result: T | None = None
    error: BaseException | None = None


@dataclass(slots=True)
class Counts:
    """What a queue did so far.

    Attributes:
        groups: groups that were committed.
        members: functions that ran in them.
        synced: commits that changed something and were flushed to the disk before they returned.
    """

    groups: int = 0
    members: int = 0
    synced: int = 0


class GroupConnection(sqlite3.Connection):
    """An sqlite3 connection whose ``commit()`` runs and commits what waits in its queue."""

    def __init__(self, queue: ConnectionQueue, *args: Any, **kwargs: Any) -> None:
        self._queue = queue
        self._synchronous = ""
        with queue.running:
            queue.create()
            super().__init__(*args, **kwargs)
            self.text_factory = readable
            try:
                queue.prepare(self)
            except BaseException:
                super().close()
                raise

    def commit(self) -> None:
        self._queue.run_waiting(self)

    def close(self) -> None:
        with self._queue.running:
            super().close()

    def begin(self, statement: str, synchronous: str) -> None:
        """Begin a transaction that will be committed with this ``synchronous`` setting."""
        if synchronous != self._synchronous:
            self.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        self.execute(statement)


class ConnectionQueue:
    """Functions waiting for one connection, which is opened when the first of them comes.

    Args:
        path: the database file, or ``:memory:``.
        begin: the statement that begins a group.
        flush: a statement that writes a page and changes nothing, so that a commit flushes.
        timeout: seconds for which a locked database is waited for.
        create: called before a connection is made, in its thread.
        prepare: called with the new connection, in its thread, before anything else.
        after: another queue whose connection is opened first.
    """

    def __init__(
        self,
        path: str,
        *,
        begin: str,
        flush: str = "",
        timeout: float,
        create: Callable[[], None],
        prepare: Callable[[GroupConnection], None],
        after: ConnectionQueue | None = None,
    ) -> None:
        self._path = path
        self._begin = begin
        self._flush = flush
        self._timeout = timeout
        self._after = after
        self.create = create
        self.prepare = prepare
        self.counts = Counts()
        self._closed = False
        self._forget()
        _queues.add(self)

    def _forget(self) -> None:
        """Begin with nothing: as new, or in a forked child."""
        self._arrival = threading.Condition()
        self.running = threading.Lock()  # held whenever SQLite is inside a call
        self._waiting: deque[_Member[Any]] = deque()
        self._starting: deque[_Member[Any]] = deque()
        self._draining = False
        self._drain_task: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[aiosqlite.Connection] | None = None
        self._broken = False
        # When what was committed must be on the disk; _NEXT: with what is kept next, None: it is.
        self._flush_by: float | None = None
        self._flushes: deque[float] = deque(maxlen=_FLUSHES)  # how long the newest took, in seconds

    # --- any thread ------------------------------------------------------------------------

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        keep: bool = False,
        soon: bool = False,
        starts: bool = False,
        timeout: float | None = None,
    ) -> Outcome[T]:
        """Let ``work`` run in the next group; the future is of the caller's running loop.

        A write that has begun is not torn: a cancellation waits for its outcome.

        Args:
            keep: what it writes must survive a power failure once the future is done.
            soon: it must a moment later: with what is kept next, or by itself.
            starts: it starts something that will write more, and waits where many do.
            timeout: seconds to wait for a locked database, when not the queue's own.

        Raises:
            MemoryClosed: the queue is closed.
        """
        patience = self._timeout if timeout is None else timeout
        waiter: Outcome[T] = Outcome(loop=asyncio.get_running_loop())
        self._add(_Member(work, keep, time.monotonic() + patience, waiter, soon), starts)
        return waiter

    def submit_read(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """The same for work that writes nothing; whoever awaits it can be cancelled at once."""
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._add(_Member(work, False, time.monotonic() + self._timeout, waiter))
        return waiter

    def _add(self, member: _Member[Any], starts: bool = False) -> None:
        with self._arrival:
            if self._closed:
                raise MemoryClosed(
                    f"the memory in {self._path} was closed by cleanup(): make a new one"
                )
            (self._starting if starts else self._waiting).append(member)
            if self._draining:
                self._arrival.notify()
                return
            self._draining = True
        _background.loop().call_soon_threadsafe(self._start_drain)

    @property
    def opened(self) -> bool:
        """Whether a connection was ever asked for."""
        return self._opening is not None or self._draining

    # --- the background loop ---------------------------------------------------------------

    def _start_drain(self) -> None:
        self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await (await self._connection()).commit()
            while self._broken:
                self._broken = False
                await self._disconnect()
                await (await self._connection()).commit()
        except BaseException as error:
            self._settle(self._give_up(), error)

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
            self._path,
            factory=partial(GroupConnection, self),
            isolation_level=None,
            timeout=0,
            cached_statements=256,
        )

    async def _disconnect(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            with suppress(Exception):  # it never opened, or is of no use any more
                await (await opening).close()

    def refuse(self) -> None:
        """Take nothing more; what waits is still done."""
        with self._arrival:
            self._closed = True
            self._arrival.notify()

    async def close(self) -> None:
        """Let what waits be done, then close the connection. For the background loop only."""
        self.refuse()
        while self._draining:
            if self._drain_task is None:
                await asyncio.sleep(0)
            else:
                await asyncio.wait((self._drain_task,))
                await asyncio.sleep(0)
        await self._disconnect()

    # --- the connection's thread -----------------------------------------------------------

    def run_waiting(self, connection: GroupConnection) -> None:
        """Run groups until nothing has come for a while."""
        group: list[_Member[Any]] = []
        pause = pauses()
        while not self._broken and (group := [*group, *self._take_waiting(last=not group)]):
            with self.running:
                obstacle = self._run_group(connection, group)
            if obstacle is None:
                group = []
                pause = pauses()
                continue
            now = time.monotonic()
            self._settle([member for member in group if member.deadline <= now], obstacle)
            group = [member for member in group if member.deadline > now]
            pause()

    def _run_group(
        self, connection: GroupConnection, group: Sequence[_Member[Any]]
    ) -> sqlite3.Error | None:
        """Run and commit the group and settle it, or return what another process holds up."""
        owed = self._flush_by is not None
        overdue = self._flush_by is not None and self._flush_by <= time.monotonic()
        full = overdue or any(member.keep for member in group)
        synchronous = "FULL" if full else "NORMAL"
        changes = connection.total_changes
        try:
            connection.begin(self._begin, synchronous)
            if not self._run_members(connection, group):
                connection.execute("ROLLBACK")
                connection.execute(self._begin)
                self._run_members(connection, group, apart=True)
            if full and owed:
                connection.execute(self._flush)
            began = time.monotonic()
            connection.execute("COMMIT")
            flushed = full and (owed or connection.total_changes != changes)
            if flushed:
                self._flushes.append(time.monotonic() - began)
        except BaseException as error:
            with suppress(sqlite3.Error):  # the connection is renewed below where this fails
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and is_transient(error):
                return error
            self._broken = self._path != ":memory:"
            self._settle(group, error)
            return None
        self.counts.groups += 1
        self.counts.members += len(group)
        self.counts.synced += flushed
        if full:
            self._flush_by = None
        elif not owed and any(member.soon and member.error is None for member in group):
            self._flush_by = time.monotonic() + _LINGER
        self._settle(group)
        return None

    def _run_members(
        self, connection: GroupConnection, group: Sequence[_Member[Any]], *, apart: bool = False
    ) -> bool:
        """Run each; False where one failed halfway, so that what it changed is to be undone.

        That is rare: a fence comes before any change. So the savepoints that can undo one member
        alone are set only ``apart``, in a second attempt, and cost the usual group nothing.
        """
        for member in group:
            member.error = None
            changes = connection.total_changes
            if apart:
                connection.execute("SAVEPOINT member")
            try:
                member.result = member.work(connection)
            except Exception as error:
                if is_transient(error) or not connection.in_transaction:
                    raise  # SQLite has undone the whole transaction, or will have to begin again
                if not apart and connection.total_changes != changes:
                    return False
                member.error = error
                if apart:
                    connection.execute("ROLLBACK TO member")
            if apart:
                connection.execute("RELEASE member")
        return True

    # --- both ------------------------------------------------------------------------------

    def _take_waiting(self, *, last: bool) -> list[_Member[Any]]:
        """What runs next; with ``last`` and nothing there for a while, the drain is over.

        Of what starts only a few at a time: what has begun is finished first, so that with many
        at once the first are done before the last have begun, and none of them takes longer. A
        disk that is slow is rather shared by all.
        """
        with self._arrival:
            if last and not (self._waiting or self._starting or self._closed):
                self._arrival.wait(_LINGER)
            idle = last and not (self._waiting or self._starting)
            if idle and self._flush_by not in (None, _NEXT):
                return [_Member(_nothing, True, time.monotonic() + _FLUSH_PATIENCE, None)]
            group = list(self._waiting)
            self._waiting.clear()
            starts = len(self._starting)
            if min(self._flushes, default=0) < _SLOW_FLUSH:
                starts = min(starts, _STARTS)
            for member in [self._starting.popleft() for _ in range(starts)]:
                # Waiting here was no waiting for a locked file.
                member.deadline = max(member.deadline, time.monotonic() + self._timeout)
                group.append(member)
            if last and not group:
                self._draining = False
            return group

    def _give_up(self) -> list[_Member[Any]]:
        """Everything that waits; the drain is over."""
        with self._arrival:
            group = [*self._waiting, *self._starting]
            self._waiting.clear()
            self._starting.clear()
            self._draining = False
            return group

    def _settle(self, group: Sequence[_Member[Any]], error: BaseException | None = None) -> None:
        """Tell everybody in the group, with one call into each event loop."""
        loops: dict[asyncio.AbstractEventLoop, list[_Member[Any]]] = {}
        for member in group:
            if error is not None:
                member.error = error
                if member.waiter is None:  # a flush; where it makes sense it is tried again
                    again = is_transient(error) and not self._closed
                    self._flush_by = time.monotonic() + _LINGER if again else _NEXT
            if member.error is not None:
                member.error = as_memory_error(member.error, self._path)
            if member.waiter is not None:
                loops.setdefault(member.waiter.get_loop(), []).append(member)
        for loop, members in loops.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(_set_outcomes, members)


def _nothing(connection: sqlite3.Connection) -> None:
    """What a member does that nobody waits for, and whose commit is all that is wanted."""


def _set_outcomes(members: Sequence[_Member[Any]]) -> None:
    for member in members:
        if member.waiter is None or member.waiter.cancelled():
            continue
        if member.error is not None:
            member.waiter.set_exception(member.error)
        else:
            member.waiter.set_result(member.result)


# --- forks -----------------------------------------------------------------------------------

_queues: weakref.WeakSet[ConnectionQueue] = weakref.WeakSet()
_paused: list[threading.Lock] = []


def _pause_before_fork() -> None:
    # A child forked inside a call of SQLite would inherit SQLite's own mutexes as locked.
    for queue in list(_queues):
        if queue.running.acquire(timeout=_FORK_PATIENCE):
            _paused.append(queue.running)


def _resume_after_fork() -> None:
    while _paused:
        _paused.pop().release()


def _start_anew_in_child() -> None:
    _paused.clear()
    for queue in list(_queues):
        if queue._opening is not None:
            _keep_for_ever(queue._opening)
        queue._forget()


def _keep_for_ever(inherited: object) -> None:
    """Hold the parent's connection past interpreter shutdown: a child must never close it."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_pause_before_fork,
        after_in_parent=_resume_after_fork,
        after_in_child=_start_anew_in_child,
    )
