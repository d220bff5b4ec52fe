"""The memory in PostgreSQL: its surface and its life.

Leases are in ``acquire``, statements in ``writes``, ``ends``, ``reads`` and ``tickets``, and how
they get to the server is in ``connection``. No SQL here, and no asyncpg: ``opening`` imports it
when a memory is made.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Collection, Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any

from session_middleware import _background
from session_middleware.errors import InvalidOption
from session_middleware.history import LastItems, LastTurns, up_to_last_output
from session_middleware.memory import check_session_id
from session_middleware.stores import rules
from session_middleware.stores.items import decode_items, decode_joined
from session_middleware.stores.numbers import MOST, seconds
from session_middleware.stores.postgres import acquire as leasing
from session_middleware.stores.postgres import ends, tickets
from session_middleware.stores.postgres import reads as reading
from session_middleware.stores.postgres import writes as writing
from session_middleware.stores.postgres.managed import ManagedTables
from session_middleware.stores.postgres.managing import SERVER_TIME
from session_middleware.stores.postgres.names import Names
from session_middleware.stores.postgres.opening import abandon, close, open_server
from session_middleware.stores.postgres.url import Database, check_sizes, settled
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
from session_middleware.stores.sweeps import Expiry
from session_middleware.stores.tickets import poll


class PostgresSessionMemory(ManagedTables):
    """Keep conversations in a PostgreSQL database, for any number of processes and machines.

    One object serves any number of sessions, threads and event loops; each loop has a pool of
    connections of its own. The tables are made when the memory is first used.

    Args:
        url: ``postgresql://user:password@host/database``, with TLS and several hosts as libpq
            has them. The options below may be parameters of the URL, as in ``?schema=agents``.
        pool: an ``asyncpg`` pool of your own, which is never closed here. Other event loops than
            the pool's get connections to the same server.
        lease: seconds for which a session stays held when the process that holds it dies.
        operation_timeout: seconds for an operation, connecting and trying again included.
        schema: the schema of the tables; it is made where it is not there.
        table_prefix: what the names of the tables begin with.
        migrate: make the tables, and change those of an older version. With False they must be
            there: ``session-middleware schema`` prints the SQL.
        pgbouncer: the URL names a PgBouncer in transaction mode: no prepared statements.
        min_size, max_size: how many connections a loop has, from the first use and at most.
        ttl: seconds without activity after which a session is deleted, soon; None: never.

    Raises:
        InvalidOption: an option has a wrong value, or url and pool are both missing.
        InvalidMemoryUrl: the URL is not one of PostgreSQL's.
        MissingExtra: asyncpg is not installed.

    Example:
        memory = PostgresSessionMemory("postgresql://app@db.example.com/chat", schema="agents")
    """

    backend = "postgresql"
    capabilities = frozenset(
        {
            *(TURNS, WRITE_TURN, READ_WITH_ACQUIRE, STORE_WITH_ACQUIRE, LOOK_UP),
            *(TICKETS, MANIFEST, JOURNAL, FIGURES, COMPACTION, MANAGE, TTL),
        }
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: Any = None,
        lease: float = 30.0,
        operation_timeout: float = 10.0,
        schema: str = "public",
        table_prefix: str = "session_middleware_",
        migrate: bool = True,
        pgbouncer: bool = False,
        min_size: int = 1,
        max_size: int = 10,
        ttl: float | None = None,
    ) -> None:
        if url is None and pool is None:
            raise InvalidOption(
                "PostgresSessionMemory needs a url, such as 'postgresql://user@host/database', or "
                "a pool of asyncpg"
            )
        database = None if url is None else Database.of(url)
        options = settled(
            url,
            {
                "lease": lease,
                "operation_timeout": operation_timeout,
                "schema": schema,
                "table_prefix": table_prefix,
                "migrate": migrate,
                "pgbouncer": pgbouncer,
                "min_size": min_size,
                "max_size": max_size,
                "ttl": ttl,
            },
        )
        super().__init__(seconds("lease", options["lease"]))
        seconds("operation_timeout", options["operation_timeout"])
        check_sizes(options["min_size"], options["max_size"])
        names = Names(options["schema"], options["table_prefix"])
        self._expiry = Expiry(self, options["ttl"], _server_time)
        self._server, self._listener = open_server(database, pool, names, options)
        place = pool if database is None else database.place
        self._identity: Hashable = ("postgresql", place, names)
        # A memory nobody refers to any more closes its connections; at exit they just end.
        weakref.finalize(self, abandon, self._server, self._listener).atexit = False

    # --- TurnStore -------------------------------------------------------------------------

    @property
    def identity(self) -> Hashable:
        """Equal for two memories on the same tables."""
        return self._identity

    async def _acquire(self, request: AcquireRequest, token: int) -> Acquired:
        self._expiry.begin()
        arguments = leasing.arguments(request, token, self.lease_seconds)
        row = await self._server.fetch_row(leasing.ACQUIRE, *arguments)
        refusal = leasing.refusal(request, row)
        if refusal is not None:
            raise refusal
        return leasing.acquired(request, token, row)

    async def look_up(self, request: AcquireRequest) -> None:
        """Raise what ``acquire`` would, if the request's work was done before."""
        check_session_id(request.session_id)
        arguments = leasing.arguments(request, None, self.lease_seconds)
        row = await self._server.fetch_row(leasing.ACQUIRE, *arguments)
        if row["outcome"] != rules.Outcome.BUSY:
            refusal = leasing.refusal(request, row)
            if refusal is not None:
                raise refusal

    async def wait_for_session(self, session_id: str, ticket: int, seconds: float) -> None:
        """Return when the ticket may be the first of a free session, or after so many seconds."""

        async def is_next() -> bool:
            row = await self._server.fetch_row(tickets.MAY_BE_NEXT, session_id, ticket)
            return bool(row["free"])

        if self._listener is None or not await self._listener.wait(ticket, seconds):
            await poll(is_next, seconds)

    async def withdraw_ticket(self, session_id: str, ticket: int) -> None:
        """Wait no longer: let those behind the ticket move up."""
        await _background.finish(self._server.fetch(tickets.WITHDRAW, session_id, ticket))

    async def _load_turns(
        self,
        session_id: str,
        newest: LastTurns | LastItems | None,
        hide: tuple[int, Collection[int]] | None,
        texts: bool,
    ) -> Loaded:
        arguments = reading.load_arguments(session_id, newest, hide, texts)
        loaded = reading.loaded(await self._server.fetch_row(reading.LOAD_TURNS, *arguments))
        if loaded is not None:
            return loaded
        # An item cannot be read: each is looked at for itself.
        one_by_one = reading.load_arguments(session_id, newest, hide, True)
        found = reading.loaded(await self._server.fetch_row(reading.LOAD_TURNS, *one_by_one))
        return reading.without_texts(found or Loaded([]))

    async def _load_items(self, session_id: str, turn: int | None, limit: int | None) -> list[Item]:
        wanted = None if limit is not None and limit < 0 else limit
        if turn is None and wanted is None:
            row = await self._server.fetch_row(reading.LOAD_ITEMS, session_id)
            items = decode_joined(row["joined"], row["items"])
            if items is not None:
                return items
        newest_first: list[Item] = []
        most = reading.at_most(wanted)
        seen = 0
        while len(newest_first) < most:
            missing = most - len(newest_first)
            rows = await self._server.fetch(reading.NEWEST_ITEMS, session_id, turn, missing, seen)
            seen += len(rows)
            newest_first += reading.items_of([row["item"] for row in rows])
            if len(rows) < missing:
                break
        return newest_first[::-1]

    async def _store(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        arguments = writing.write_arguments(lease, items, end)
        try:
            await self._write(lease, writing.WRITE, *arguments, told=True)
        finally:
            if end is not None:
                self._leases.drop(lease.token)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over what ``failed`` left; returns how many items it starts with."""
        place = (lease.session_id, lease.turn, failed)
        rows = await self._server.fetch(writing.RUN_ITEMS, *place)
        kept = up_to_last_output(decode_items([row["item"] for row in rows])[0])
        await self._write(lease, writing.RETRY, *place[:2], lease.token, failed, run, kept)
        return kept

    async def journal(
        self, lease: Lease, entries: Sequence[JournalEntry], *, durable: bool
    ) -> None:
        """Keep these entries of the turn's journal; ``durable``: flushed before this returns."""
        arguments = ends.journal_arguments(lease, entries, durable)
        await self._write(lease, ends.JOURNAL, *arguments)

    async def _pop(self, session_id: str, lease: Lease | None) -> Item | None:
        unreadable = 0
        while True:
            rows = await self._server.fetch(writing.NEWEST, session_id, unreadable)
            if not rows and lease is None:
                return None
            place = (rows[0]["turn"], rows[0]["run"], rows[0]["position"]) if rows else (0, 0, 0)
            item = decode_items([rows[0]["item"]])[0][0] if rows else None
            if rows and item is None:
                unreadable += 1
                continue
            token = None if lease is None else lease.token
            outcome = await self._write(lease, writing.POP, session_id, token, *place, told=True)
            if outcome == "stored" or not rows:
                return item

    async def _release(self, session_id: str) -> bool:
        row = await _background.finish(
            self._server.fetch_row(leasing.RELEASE, session_id, told=True)
        )
        return bool(row["released"])

    async def _records(
        self, session_id: str, limit: int | None, before: int | None
    ) -> list[TurnRecord]:
        first = MOST + 1 if before is None else before
        rows = await self._server.fetch(reading.RECORDS, session_id, first, reading.at_most(limit))
        return [reading.record(row) for row in rows]

    async def figures(self) -> dict[str, float]:
        """Tell figures of the tables for a dashboard: see ``TurnStore.figures``."""
        row = await self._server.fetch_row(reading.PARKED)
        figures: dict[str, float] = {"turn.parked": row["parked"]}
        if row["since"] is not None:
            figures["turn.parked.age"] = row["since"]
        return figures

    # --- histories and sessions ------------------------------------------------------------

    async def _append_turn(self, session_id: str, texts: Sequence[str]) -> None:
        mark = secrets.randbits(63)
        await self._write(None, writing.APPEND_TURN, session_id, mark, texts, told=True)

    async def _replace(
        self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None
    ) -> None:
        arguments = writing.replace_arguments(session_id, turns, lease)
        await self._write(lease, writing.REPLACE, *arguments)

    async def _forget(self, session_id: str, lease: Lease | None) -> None:
        arguments = writing.lease_arguments(lease)
        await self._write(lease, writing.FORGET, session_id, *arguments)

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions that something was stored or saved in, oldest first."""
        rows = await self._server.fetch(reading.IDS)
        return [row["session_id"] for row in rows]

    async def _exists(self, session_id: str) -> bool:
        row = await self._server.fetch_row(reading.EXISTS, session_id)
        return bool(row["found"])

    # --- life ------------------------------------------------------------------------------

    async def ping(self) -> None:
        """See that the server answers now and has our tables.

        Raises:
            MemoryUnavailable, UnsupportedSchema: it does not.
            MemoryClosed: after ``cleanup``.
        """
        await self._server.fetch_row(reading.EXISTS, "")

    async def _close_connections(self) -> None:
        self._server.refuse()
        await close(self._server, self._listener)

    async def _renew(self, held: Mapping[str, int]) -> Collection[int]:
        rows = await self._server.fetch(
            leasing.RENEW, list(held), list(held.values()), self.lease_seconds
        )
        return [row["token"] for row in rows]

    async def _end(self, leases: Mapping[int, str]) -> Collection[int]:
        rows = await self._server.fetch(
            leasing.RELEASE_ALL, list(leases.values()), list(leases.keys())
        )
        return [row["token"] for row in rows]


async def _server_time(memory: PostgresSessionMemory) -> datetime:
    """The moment by the server's clock, which dates what happens in the sessions."""
    row = await memory._server.fetch_row(SERVER_TIME)
    moment: datetime = row["now"]
    return moment
