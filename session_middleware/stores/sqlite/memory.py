"""The embedded default: every session in one SQLite file, for any number of local processes.

This module is the memory's surface and its life: opened by the first use, closed by ``cleanup``,
by the last reference or by the exit of the process. Leases are in ``acquire`` and ``leases``,
statements in ``writes`` and ``reads``, the file and its connections in ``database``.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from session_middleware.errors import DuplicateTurn, InvalidOption, SessionBusy
from session_middleware.history import LastItems, LastTurns, up_to_last_output
from session_middleware.memory import check_session_id, tell_released
from session_middleware.stores.items import decode_items
from session_middleware.stores.numbers import seconds
from session_middleware.stores.passwords import names_a_server
from session_middleware.stores.protocol import (
    COMPACTION,
    FIGURES,
    JOURNAL,
    LOOK_UP,
    MANAGE,
    MANIFEST,
    READ_WITH_ACQUIRE,
    STORE_WITH_ACQUIRE,
    TICKETS,
    TTL,
    TURNS,
    WRITE_TURN,
)
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    JournalEntry,
    Lease,
    Loaded,
    RunItems,
    TurnEnd,
    TurnRecord,
)
from session_middleware.stores.sql import journal_values
from session_middleware.stores.sqlite import acquire as leasing
from session_middleware.stores.sqlite import reads as reading
from session_middleware.stores.sqlite import tickets
from session_middleware.stores.sqlite import writes as writing
from session_middleware.stores.sqlite.database import Database
from session_middleware.stores.sqlite.group import Durability, Steps
from session_middleware.stores.sqlite.journal import Ending
from session_middleware.stores.sqlite.managed import ManagedFile
from session_middleware.stores.sweeps import Expiry
from session_middleware.stores.tickets import poll

T = TypeVar("T")


class SQLiteSessionMemory(ManagedFile):
    """Keep conversations in an SQLite file.

    One object serves any number of sessions, threads and event loops, with two connections. The
    file is created, readable for its owner only, when it is first used; its folder must exist.

    Runs read and write through ``load_turns``, ``load_items`` and ``append_items``: a subclass that
    changes what is kept overrides those, as ``load_session`` and its like serve direct calls only.

    Args:
        db_path: the file; a relative path means the folder that is current now. ``:memory:``
            keeps everything in this object.
        lease: seconds for which a session stays held when the process that holds it dies.
        synchronous: "FULL" flushes what was stored to the disk before a write, or the run that
            it is of, returns; with "NORMAL" a power failure, though no crash, may lose the newest
            writes.
        operation_timeout: seconds to wait for other processes that keep the file locked.
        ttl: seconds without activity after which a session is deleted, soon; None: never.

    Raises:
        InvalidOption: an option has a wrong value.

    Example:
        memory = SQLiteSessionMemory("chat.db")
        await memory.append_to_session("user-42", [{"role": "user", "content": "Hi"}])
    """

    backend = "sqlite"
    networked = False
    capabilities = frozenset(
        {
            *(TURNS, WRITE_TURN, READ_WITH_ACQUIRE, STORE_WITH_ACQUIRE, LOOK_UP),
            *(TICKETS, MANIFEST, JOURNAL, FIGURES, COMPACTION, MANAGE, TTL),
        }
    )

    def __init__(
        self,
        db_path: str | os.PathLike[str] = "agent_sessions.db",
        *,
        lease: float = 30.0,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        operation_timeout: float = 10.0,
        ttl: float | None = None,
    ) -> None:
        path = os.fspath(db_path)
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise InvalidOption("db_path must be a file, such as 'chat.db'")
        if path != ":memory:" and names_a_server(path):
            raise InvalidOption(
                "db_path must be a file, got what looks like a URL: pass that to open_memory(), "
                "or begin a path with ./"
            )
        if synchronous not in ("FULL", "NORMAL"):
            raise InvalidOption(f"synchronous is {synchronous!r}: it is 'FULL' or 'NORMAL'")
        self.path = path if path == ":memory:" else os.path.abspath(path)
        self.lease_seconds = seconds("lease", lease)
        self._durability = Durability.FLUSHED if synchronous == "FULL" else Durability.UNFLUSHED
        self._operation_timeout = seconds("operation_timeout", operation_timeout)
        self._expiry = Expiry(self, ttl)
        self._database = Database(self.path, self.lease_seconds, self._operation_timeout)
        self._identity: Hashable = ("sqlite", os.path.realpath(self.path))
        if path == ":memory:":
            self._identity = ("sqlite", self._database)
        # A memory nobody refers to any more lets its file go; at exit the database does that.
        weakref.finalize(self, self._database.abandon).atexit = False

    def __reduce__(self) -> Any:
        if type(self) is not SQLiteSessionMemory or self.path == ":memory:":
            return super().__reduce__()
        again = partial(
            SQLiteSessionMemory,
            lease=self.lease_seconds,
            synchronous="FULL" if self._durability is Durability.FLUSHED else "NORMAL",
            operation_timeout=self._operation_timeout,
            ttl=self._expiry.ttl,
        )
        return again, (self.path,)

    # --- TurnStore -------------------------------------------------------------------------

    @property
    def identity(self) -> Hashable:
        """Equal for two memories on the same file."""
        return self._identity

    async def acquire(self, request: AcquireRequest) -> Acquired:
        """Acquire the session, or raise why not; never wait for its holder."""
        check_session_id(request.session_id)
        self._expiry.begin()
        work = partial(leasing.acquire, request=request, lease=self.lease_seconds)
        outcome = self._database.writes.submit(work, throttled=True)
        try:
            granted = await outcome
        except DuplicateTurn as duplicate:
            await self._add_items(request.session_id, duplicate)
            raise
        except asyncio.CancelledError:
            if outcome.exception() is None:  # acquired, and nobody will ever end this turn
                granted = outcome.result()
                if isinstance(granted, leasing.Granted):
                    await self._undo(request, granted.acquired)
            raise
        if isinstance(granted, SessionBusy):
            raise granted
        token = granted.acquired.lease.token
        lost = partial(tell_released, self.identity, request.session_id)
        self._database.leases.add(token, granted.key, lost)
        return granted.decoded()

    async def look_up(self, request: AcquireRequest) -> None:
        """Raise what ``acquire`` would, if the request's work was done before."""
        check_session_id(request.session_id)
        try:
            await self._read(partial(leasing.look_up, request=request))
        except DuplicateTurn as duplicate:
            await self._add_items(request.session_id, duplicate)
            raise

    async def _add_items(self, session_id: str, duplicate: DuplicateTurn) -> None:
        duplicate.items = await self.load_items(session_id, turn=duplicate.turn)

    async def wait_for_session(self, session_id: str, ticket: int, seconds: float) -> None:
        """Return when the ticket may be the first of a free session, or after so many seconds."""
        look = partial(leasing.may_be_next, session_id=session_id, ticket=ticket)
        await poll(lambda: self._read(look), seconds)

    async def withdraw_ticket(self, session_id: str, ticket: int) -> None:
        """Wait no longer: let those behind the ticket move up."""
        await self._write(partial(tickets.withdraw, session_id=session_id, ticket=ticket))

    async def _load_turns(
        self,
        session_id: str,
        newest: LastTurns | LastItems | None,
        hide: tuple[int, Collection[int]] | None,
        texts: bool,
    ) -> Loaded:
        read = partial(
            reading.load_turns, session_id=session_id, newest=newest, hide=hide, texts=texts
        )
        return await self._read_closely_if_needed(read)

    async def _load_items(self, session_id: str, turn: int | None, limit: int | None) -> list[Item]:
        read = partial(reading.load_items, session_id=session_id, turn=turn, limit=limit)
        return await self._read_closely_if_needed(read)

    async def _store(
        self,
        lease: Lease,
        items: Sequence[RunItems],
        end: TurnEnd | None = None,
    ) -> None:
        durability = self._durability if items or _discards(end) else Durability.UNFLUSHED
        if end is not None and (end.durable or end.park or end.settles):
            durability = Durability.FLUSHED
        ending = None if end is None else Ending.of(end)
        work = partial(writing.write, lease=lease, items=items, ending=ending)
        try:
            await self._write(work, durability)
            if _discards(end) or any(new.instead for new in items):
                self._database.erase_when_idle()
        finally:
            if end is not None:
                self._database.leases.drop(lease.token)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over from ``failed``; returns how many items it starts with."""
        read = partial(reading.run_items, lease=lease, run=failed)
        items: Sequence[Item | None] = await self._read(read)
        kept = up_to_last_output(items)
        work = partial(writing.retry, lease=lease, failed=failed, run=run, kept=kept)
        await self._write(work, self._durability)
        self._database.erase_when_idle()
        return kept

    async def journal(
        self, lease: Lease, entries: Sequence[JournalEntry], *, durable: bool
    ) -> None:
        """Keep these entries of the turn's journal; ``durable``: flushed before this returns."""
        rows = [journal_values(entry) for entry in entries]
        work = partial(writing.journal, lease=lease, entries=rows)
        await self._write(work, self._durability if durable else Durability.UNFLUSHED)

    async def _pop(self, session_id: str, lease: Lease | None) -> Item | None:
        unreadable = 0
        while True:
            found = await self._read(
                partial(reading.newest_item, session_id=session_id, unreadable=unreadable)
            )
            if found is None:
                return None
            (item,), corrupt = decode_items([found.text])
            if corrupt:
                unreadable += 1
                continue
            work = partial(writing.pop, session_id=session_id, lease=lease, newest=found)
            if await self._write(work, self._durability):
                self._database.erase_when_idle()
                return item
            unreadable = 0  # somebody stored an item meanwhile, or removed this one

    async def _release(self, session_id: str) -> bool:
        return await self._write(partial(leasing.release, session_id=session_id))

    async def _records(
        self, session_id: str, limit: int | None, before: int | None
    ) -> list[TurnRecord]:
        return await self._read(
            partial(reading.records, session_id=session_id, limit=limit, before=before)
        )

    async def figures(self) -> dict[str, float]:
        """Tell figures of the file for a dashboard: see ``TurnStore.figures``."""
        figures = await self._read(reading.figures)
        writes = self._database.writes
        figures["memory.queue.length"] = writes.length
        figures["memory.write.groups"] = writes.counts.groups
        figures["memory.write.members"] = writes.counts.members
        return figures

    # --- histories and sessions ------------------------------------------------------------

    async def _append_turn(self, session_id: str, texts: Sequence[str]) -> None:
        await self._write(
            partial(writing.append_turn, session_id=session_id, texts=texts), self._durability
        )

    async def _replace(
        self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None
    ) -> None:
        await self._write(
            partial(writing.replace, session_id=session_id, turns=turns, lease=lease),
            self._durability,
        )
        await self._database.erase()

    async def _forget(self, session_id: str, lease: Lease | None) -> None:
        await self._write(
            partial(writing.forget, session_id=session_id, lease=lease), self._durability
        )
        await self._database.erase()

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions that something was stored or saved in, oldest first."""
        return await self._read(reading.session_ids)

    async def _exists(self, session_id: str) -> bool:
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
            await self._database.leases.wait_until_none(drain)
        self.closed = True
        await self._database.close_from_anywhere()

    def stats(self) -> dict[str, int]:
        """How many groups of writes were committed, with how many members, how many flushed."""
        counts = self._database.writes.counts
        return {"commits": counts.groups, "writes": counts.members, "synced": counts.synced}

    async def _write(
        self, work: Callable[[Any], T], durability: Durability = Durability.UNFLUSHED
    ) -> T:
        """Do ``work`` in the next group; a cancellation waits for its outcome."""
        self._expiry.begin()
        outcome = self._database.writes.submit(work, durability)
        try:
            return await outcome
        except asyncio.CancelledError:
            outcome.exception()  # looked at, so that nobody warns of it
            raise

    async def _read(self, work: Callable[[Any], T | Steps[T]]) -> T:
        self._expiry.begin()
        return await self._database.reads.submit_read(work)

    async def _read_closely_if_needed(self, read: Callable[..., Steps[T | None]]) -> T:
        """Read again, item by item, where one of them cannot be decoded."""
        found: T | None = await self._database.reads.submit_read(read)
        if found is None:
            found = await self._database.reads.submit_read(partial(read, closely=True))
        assert found is not None  # noqa: S101 - closely, what cannot be decoded is left out
        return found


def _discards(end: TurnEnd | None) -> bool:
    return end is not None and end.discard
