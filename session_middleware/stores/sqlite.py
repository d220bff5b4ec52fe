"""The embedded default: every session in one SQLite file, for any number of local processes.

This module is the memory's surface and its life: opened by the first use, closed by ``cleanup``,
by the last reference or by the exit of the process. Who holds a session is in
``_sqlite_taking``, what is written and read in ``_sqlite_turns`` and ``_sqlite_reads``, how it
gets to the file in ``_sqlite_connection``.
"""

from __future__ import annotations

import asyncio
import math
import os
import weakref
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

from session_middleware import _background
from session_middleware.errors import InvalidOption, SessionMemoryError
from session_middleware.history import LastItems, LastTurns
from session_middleware.memory import (
    Item,
    Lease,
    Loaded,
    RunItems,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnRecord,
    check_session_id,
    tell_released,
)
from session_middleware.stores import _sqlite_reads as reading
from session_middleware.stores import _sqlite_taking as taking
from session_middleware.stores import _sqlite_turns as writing
from session_middleware.stores._base import TurnMemory, encode_items
from session_middleware.stores._sqlite_connection import ConnectionQueue, GroupConnection
from session_middleware.stores._sqlite_file import create_file, make_ready
from session_middleware.stores._sqlite_leases import HeldLeases
from session_middleware.stores._sqlite_schema import FLUSH, check_sqlite

T = TypeVar("T")

_EXIT_PATIENCE = _background.EXIT_SECONDS / 2


class SQLiteSessionMemory(TurnMemory):
    """Keep conversations in an SQLite file.

    One object serves any number of sessions, threads and event loops, with two connections. The
    file is created, readable for its owner only, when it is first used; its folder must exist.

    Runs read and write through ``load_turns``, ``load_items`` and ``append_items``: a subclass that
    changes what is kept overrides those, as ``load_session`` and its like serve direct calls only.

    Args:
        db_path: the file; a relative path means the folder that is current now. ``:memory:``
            keeps everything in this object.
        lease: seconds for which a session stays taken when the process that holds it dies.
        synchronous: "FULL" flushes what was stored to the disk before a write, or the run that
            it is of, returns; with "NORMAL" a power failure, though no crash, may lose the newest
            writes.
        operation_timeout: seconds to wait for other processes that keep the file locked.

    Raises:
        InvalidOption: an option has a wrong value.

    Example:
        memory = SQLiteSessionMemory("chat.db")
        await memory.append_to_session("user-42", [{"role": "user", "content": "Hi"}])
    """

    backend = "sqlite"
    networked = False
    reads_with_taking = True
    stores_with_taking = True

    def __init__(
        self,
        db_path: str | os.PathLike[str] = "agent_sessions.db",
        *,
        lease: float = 30.0,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        operation_timeout: float = 10.0,
    ) -> None:
        path = os.fspath(db_path)
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise InvalidOption(f"db_path is {db_path!r}: name a file, such as 'chat.db'")
        if synchronous not in ("FULL", "NORMAL"):
            raise InvalidOption(f"synchronous is {synchronous!r}: it is 'FULL' or 'NORMAL'")
        self.path = path if path == ":memory:" else os.path.abspath(path)
        self.lease_seconds = _seconds("lease", lease)
        self._keep = synchronous == "FULL"
        self._file = _File(
            self.path, self.lease_seconds, _seconds("operation_timeout", operation_timeout)
        )
        self._opened: set[int] = set()  # tokens of takings by whose input alone a session exists
        self._identity: Hashable = ("sqlite", os.path.realpath(self.path))
        if path == ":memory:":
            self._identity = ("sqlite", self._file)
        # A memory nobody refers to any more lets its file go; at exit _close_files does that.
        weakref.finalize(self, self._file.abandon).atexit = False

    # --- SupportsTurns ---------------------------------------------------------------------

    @property
    def identity(self) -> Hashable:
        """Equal for two memories on the same file."""
        return self._identity

    async def take_turn(self, request: TakeTurn) -> Taken:
        """Take the session, or say why not; never wait for its holder."""
        check_session_id(request.session_id)
        if type(self).load_turns is not SQLiteSessionMemory.load_turns:
            request = replace(request, read=None)  # a subclass reads in its own way
        work = partial(taking.take, request=request, lease=self.lease_seconds)
        keeps = self._keep and request.input is not None
        outcome = self._file.writes.submit(work, starts=True, soon=keeps)
        try:
            taken, key, opened = await outcome
        except asyncio.CancelledError:
            if outcome.exception() is None:  # it is taken, and nobody will ever end this turn
                taken, _, opened = outcome.result()
                items, end = taken.undone(request, request.started_at)
                with suppress(SessionMemoryError):  # otherwise the lease ends by itself
                    await self._store(taken.lease, items, end, opened=opened)
            raise
        if opened:
            self._opened.add(taken.lease.token)
        self._file.leases.add(taken.lease.token, key)
        return taken

    async def look_up(self, request: TakeTurn) -> None:
        """Raise what taking the session would, if the request's work was done before."""
        check_session_id(request.session_id)
        await self._read(partial(taking.look_up, request=request))

    async def load_turns(
        self,
        session_id: str,
        *,
        newest: LastTurns | LastItems | None = None,
        hide: tuple[int, Collection[int]] | None = None,
        texts: bool = False,
    ) -> Loaded:
        """Read the history in whole turns, oldest first."""
        check_session_id(session_id)
        return await self._read(
            partial(
                reading.load_turns, session_id=session_id, newest=newest, hide=hide, texts=texts
            )
        )

    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]:
        """Read raw items, oldest first."""
        check_session_id(session_id)
        return await self._read(
            partial(reading.load_items, session_id=session_id, turn=turn, limit=limit)
        )

    async def append_items(
        self,
        lease: Lease,
        run: int,
        position: int,
        items: Sequence[Item],
        *,
        input_digest: str | None = None,
    ) -> None:
        """Store items as (session, turn, run, position ...); all of them or none."""
        await self._store(lease, [RunItems(run, position, encode_items(items), input_digest)])

    async def write_turn(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        """Store items, and the turn's end if it is given: all of it or nothing."""
        await self._store(lease, items, end)

    async def _store(
        self,
        lease: Lease,
        items: Sequence[RunItems],
        end: TurnEnd | None = None,
        *,
        opened: bool = False,
    ) -> None:
        keep = self._keep and bool(items)
        if end is not None:
            keep = keep or end.durable or (end.discard and self._keep)
        opened = opened or lease.token in self._opened
        work = partial(writing.write, lease=lease, items=items, how=end, opened=opened)
        try:
            await self._write(work, keep=keep)
        finally:
            self._opened.discard(lease.token)
            if end is not None:
                self._file.leases.drop(lease.token)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over what ``failed`` left; returns how many items it starts with."""
        return await self._write(
            partial(writing.retry, lease=lease, failed=failed, run=run), keep=self._keep
        )

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        """Write the turn's end and let the session go."""
        await self._store(lease, (), end)

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none.

        Raises:
            TurnLost: the current turn of this context no longer holds the session.
        """
        lease = await self._lease(check_session_id(session_id))
        return await self._write(
            partial(writing.pop, session_id=session_id, lease=lease), keep=self._keep
        )

    async def release(self, session_id: str) -> bool:
        """Take the session away from whoever holds it; returns whether anybody did."""
        check_session_id(session_id)
        released = await self._write(partial(taking.release, session_id=session_id))
        tell_released(self.identity, session_id)
        return released

    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items.

        Args:
            session_id: the session.
            limit: at most this many.
            before: only turns with a smaller number; pass the last one seen to page on.
        """
        await self._held(check_session_id(session_id))
        return await self._read(
            partial(reading.records, session_id=session_id, limit=limit, before=before)
        )

    # --- SessionMemory, as far as the base leaves it open ----------------------------------

    async def append_turn(self, session_id: str, items: Sequence[Item]) -> None:
        """Store items as a completed turn of their own, after every turn there is."""
        check_session_id(session_id)
        texts = encode_items(items)
        await self._write(
            partial(writing.append_turn, session_id=session_id, texts=texts), keep=self._keep
        )

    async def replace_history(
        self, session_id: str, turns: Sequence[Sequence[Item]], lease: Lease | None
    ) -> None:
        """Put these turns in place of the history."""
        check_session_id(session_id)
        texts = [encode_items(items) for items in turns]
        await self._write(
            partial(writing.replace, session_id=session_id, turns=texts, lease=lease),
            keep=self._keep,
        )

    async def forget_session(self, session_id: str, lease: Lease | None) -> None:
        """Remove the session; with a lease, all but the current turn, which goes on empty."""
        check_session_id(session_id)
        await self._write(
            partial(writing.forget, session_id=session_id, lease=lease), keep=self._keep
        )

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions that something was stored or saved in, oldest first."""
        return await self._read(reading.session_ids)

    async def session_exists(self, session_id: str) -> bool:
        """Return whether something was stored or saved in a session of this id."""
        check_session_id(session_id)
        return await self._read(partial(reading.exists, session_id=session_id))

    # --- life ------------------------------------------------------------------------------

    async def ping(self) -> None:
        """See that the file can be read and written now.

        Raises:
            MemoryUnavailable, NotADatabase, UnsupportedSchema: it cannot.
            MemoryClosed: after ``cleanup``.
        """
        await self._write(lambda connection: None)
        await self._read(lambda connection: None)

    async def cleanup(self, drain: float | None = None) -> None:
        """Close the file; whatever is asked of the memory afterwards is MemoryClosed.

        What was asked before is done. Turns that this object still holds become abandoned, and
        their sessions are free at once.

        Args:
            drain: first wait for those turns to end, for at most this many seconds.
        """
        if drain and not self.closed:
            await self._file.leases.wait_until_none(drain)
        self.closed = True
        await self._file.close_from_anywhere()

    def stats(self) -> dict[str, int]:
        """How many groups of writes were committed, with how many members, how many flushed."""
        counts = self._file.writes.counts
        return {"commits": counts.groups, "writes": counts.members, "synced": counts.synced}

    async def _write(self, work: Callable[[Any], T], *, keep: bool = False) -> T:
        """Do ``work`` in the next group; a cancellation waits for its outcome."""
        outcome = self._file.writes.submit(work, keep=keep)
        try:
            return await outcome
        except asyncio.CancelledError:
            outcome.exception()  # looked at, so that nobody warns of it
            raise

    async def _read(self, work: Callable[[Any], T]) -> T:
        return await self._file.reads.submit_read(work)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidOption(f"{name} is {value!r}: it is a number of seconds, such as 10")
    if not (value > 0 and math.isfinite(value)):
        raise InvalidOption(f"{name} is {value!r}: it is more than 0 seconds, and finite")
    return float(value)


class _File:
    """The connections to one file and the leases held through them; outlives its memory."""

    def __init__(self, path: str, lease: float, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self.writes = ConnectionQueue(
            path,
            begin="BEGIN IMMEDIATE",
            flush=FLUSH,
            timeout=timeout,
            create=self._create,
            prepare=self._prepare_writes,
        )
        self.reads = self.writes
        if path != ":memory:":
            self.reads = ConnectionQueue(
                path,
                begin="BEGIN",
                timeout=timeout,
                create=check_sqlite,
                prepare=_prepare_reads,
                after=self.writes,
            )
        self.leases = HeldLeases(self.writes, lease)
        _files.add(self)
        _background.at_exit(_close_files)

    def _create(self) -> None:
        check_sqlite()
        if self._path != ":memory:":
            create_file(self._path)

    def _prepare_writes(self, connection: GroupConnection) -> None:
        make_ready(connection, self._path, self._timeout)

    async def close(self, patience: float | None = None) -> None:
        """Let the held sessions go and close the connections. For the background loop only."""
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
        """The memory is gone: close the connections, some time."""
        if self._opened:
            _background.submit(self.close())


def _prepare_reads(connection: GroupConnection) -> None:
    connection.execute("PRAGMA query_only = ON")


_files: weakref.WeakSet[_File] = weakref.WeakSet()


async def _close_files() -> None:
    await asyncio.gather(*(file.close(_EXIT_PATIENCE) for file in list(_files)))


def _forget_leases_after_fork() -> None:
    for file in list(_files):
        file.leases.forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_leases_after_fork)
