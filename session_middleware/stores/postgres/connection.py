"""How statements get to the server: pools, time limits, and what to do when a connection breaks.

Each event loop has a pool of its own, made at its first use and closed with the loop. A statement
is sent once; where the connection breaks it is sent again, within the time limit, and told that it
may have been carried out before. Nothing here knows what the statements do.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from session_middleware._fork import Step, forgetting_at_fork
from session_middleware.errors import MemoryClosed, UnsupportedSchema
from session_middleware.stores.postgres import driver, hosts, schema
from session_middleware.stores.postgres.names import Names
from session_middleware.stores.postgres.url import Database

_PAUSES = (0.01, 0.5)  # seconds between two tries: from, to
_OF_POOLS = ("min_size", "max_size", "reset", "connect", "loop")
"""Options of a pool that one connection does not have."""
_CLOSING = 2.0  # seconds for the connections of a pool to say goodbye


class Server:
    """A database, as far as one memory uses it.

    Args:
        database: where it is; None: where the pool's connections go.
        pool: a pool that somebody else owns, for the loop it was made in.
        names: where our tables are.
        options: the checked options of the memory.
    """

    def __init__(
        self, database: Database | None, pool: Any, names: Names, options: Mapping[str, Any]
    ) -> None:
        self.where = "the database of the pool" if database is None else database.shown
        self.names = names
        self.closed = False
        self._given = pool
        self._timeout: float = options["operation_timeout"]
        self._migrate: bool = options["migrate"]
        self._least: int = options["min_size"]
        self._pool_options = _pool_options(database, pool, options)
        self.forget_all()
        _servers.add(self)

    def forget_all(self) -> None:
        """Have no connection: as new, or in a forked child, whose parent has them."""
        self._lock = threading.Lock()
        self._pools: dict[asyncio.AbstractEventLoop, _LoopPool] = {}
        self._ready = False

    # --- statements ------------------------------------------------------------------------

    async def fetch(self, statement: str, *arguments: object) -> list[Any]:
        """The rows of a statement that changes nothing, or the same when it is repeated."""
        filled = self.names.fill(statement)

        async def send(connection: Any, again: bool) -> Any:
            return await connection.fetch(filled, *arguments)

        rows: list[Any] = await self._carry_out(send)
        return rows

    async def fetch_row(self, statement: str, *arguments: object, told: bool = False) -> Any:
        """The row of a statement of one row.

        Args:
            told: its last argument, which is added here, says whether an earlier try of it may
                have been carried out.
        """
        filled = self.names.fill(statement)

        async def send(connection: Any, again: bool) -> Any:
            if told:
                return await connection.fetchrow(filled, *arguments, again)
            return await connection.fetchrow(filled, *arguments)

        return await self._carry_out(send)

    async def _carry_out(self, send: Callable[[Any, bool], Any]) -> Any:
        """Send until it is answered, at most for the time limit."""
        failure: BaseException | None = None
        sent = _Sent()
        pauses = _pauses()
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await self._try(send, sent)
                    except BaseException as error:
                        if not (driver.breaks_connection(error) or driver.was_rolled_back(error)):
                            raise
                        failure = error
                    await asyncio.sleep(next(pauses))
        except Exception as error:
            # A time limit that ends a row of failures is told as the last of them.
            cause = failure if failure is not None and isinstance(error, TimeoutError) else error
            known = driver.as_memory_error(cause, self.where)
            if known is None:
                raise
            raise known from cause

    async def _try(self, send: Callable[[Any, bool], Any], sent: _Sent) -> Any:
        """Send once; a connection that may have half an answer in it is not used again."""
        pool = await self._pool()
        connection = await pool.acquire()
        again, sent.maybe = sent.maybe, True
        try:
            return await send(connection, again)
        except BaseException as error:
            if driver.was_rolled_back(error):
                sent.maybe = again
            elif driver.leaves_in_doubt(error):
                with suppress(asyncpg.InterfaceError):  # it was given back when it broke
                    connection.terminate()
            raise
        finally:
            await pool.release(connection)

    async def connect(self) -> Any:
        """A connection of its own, outside of the pools; the caller closes it."""
        options = {
            name: value for name, value in self._pool_options.items() if name not in _OF_POOLS
        }
        return await hosts.connect(**options)

    # --- pools -----------------------------------------------------------------------------

    async def _pool(self) -> Any:
        """The pool of the running loop, on a database that has our tables."""
        loop = asyncio.get_running_loop()
        mine = self._pools.get(loop)
        if mine is not None and mine.ready:
            return mine.pool
        if self.closed:
            raise MemoryClosed(
                f"the memory in {self.where} was closed by cleanup(): make a new one"
            )
        with self._lock:
            for other in [other for other in self._pools if other.is_closed()]:
                del self._pools[other]
            mine = self._pools.get(loop)
            if mine is None:
                mine = self._pools[loop] = _LoopPool(self._pool_options, self._given, loop)
        await mine.open()
        if not self._ready:
            await self._make_ready(mine.pool)
        await mine.warm(self._least)
        mine.ready = True
        return mine.pool

    async def _make_ready(self, pool: Any) -> None:
        """See that our tables are there and of a version this code can use."""
        pauses = _pauses()
        while not self._ready:
            async with pool.acquire() as connection:
                encoding = connection.get_settings().server_encoding
                if encoding.upper() not in ("UTF8", "UNICODE"):
                    raise UnsupportedSchema(
                        f"{self.where} has the encoding {encoding}, which cannot store every item: "
                        "create a database WITH ENCODING 'UTF8' TEMPLATE template0"
                    )
                version = await self._version(connection)
                if version >= schema.VERSION:
                    self._ready = True
                    return
                if not self._migrate:
                    raise UnsupportedSchema(
                        f"{self.where} does not have the tables of this version (layout {version}, "
                        f"this one needs {schema.VERSION}), and migrate is False: let somebody who "
                        "may change tables run the SQL of 'session-middleware schema'"
                    )
                try:
                    async with connection.transaction():
                        for statement in schema.steps(self.names, version):
                            await connection.execute(statement)
                except asyncpg.PostgresError as error:
                    if driver.sqlstate(error) not in driver.RACES:
                        raise
            await asyncio.sleep(next(pauses))

    async def _version(self, connection: Any) -> int:
        """The layout that the database has; 0: none."""
        try:
            row = await connection.fetchrow(self.names.fill(schema.LAYOUT))
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return 0
        if row is None:
            return 0
        if row["readable_from"] > schema.VERSION:
            raise UnsupportedSchema(
                f"{self.where} was written by a newer version of session-middleware (layout "
                f"{row['version']}, this one knows {schema.VERSION}) and was left as it is: "
                "upgrade session-middleware"
            )
        return int(row["version"])

    # --- life ------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Take no more statements."""
        self.closed = True

    async def close(self) -> None:
        """Close every connection, in whatever loop it is."""
        self.closed = True
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        await asyncio.gather(*(pool.close_from_anywhere() for pool in pools))

    @property
    def opened(self) -> bool:
        """Whether there are any connections."""
        return bool(self._pools)


@dataclass(slots=True)
class _Sent:
    """Whether an earlier try of a statement may have been carried out."""

    maybe: bool = False


def _pauses() -> Iterator[float]:
    """Seconds between one try and the next: growing, and different for each client."""
    pause = _PAUSES[0]
    while True:
        yield pause * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        pause = min(2 * pause, _PAUSES[1])


class _LoopPool:
    """The connections of one event loop.

    ``asyncio.run`` ends the asynchronous generators of its loop before it closes the loop; one
    that waits there closes the pool in time.
    """

    def __init__(
        self, options: Mapping[str, Any], given: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        # asyncpg has no public way to ask a pool for its loop.
        self._owned = given is None or given._loop is not loop
        self.pool: Any = given if not self._owned else asyncpg.create_pool(**options, loop=loop)
        self._closing: AsyncGenerator[None, None] | None = None
        self.ready = False

    async def open(self) -> None:
        """Make the pool usable; it connects when a connection is needed."""
        if self._owned and self._closing is None:
            await self.pool
            self._closing = self._until_the_loop_ends()
            await anext(self._closing)

    async def warm(self, connections: int) -> None:
        """Have at least so many connections."""
        if self._owned and connections > 1:
            async with AsyncExitStack() as opened:
                await asyncio.gather(
                    *(opened.enter_async_context(self.pool.acquire()) for _ in range(connections))
                )

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSING):
                await self.pool.close()
        except (Exception, asyncio.CancelledError):
            self.pool.terminate()

    async def close_from_anywhere(self) -> None:
        """Close the pool in its own loop; connections of a loop that was closed just end."""
        closing, self._closing = self._closing, None
        if closing is None or self._loop.is_closed():
            return
        if self._loop is asyncio.get_running_loop():
            await closing.aclose()
        elif self._loop.is_running():
            with suppress(RuntimeError):  # it stops at this moment, and closes the pool itself
                future = asyncio.run_coroutine_threadsafe(closing.aclose(), self._loop)
                await asyncio.wait((asyncio.wrap_future(future),), timeout=_CLOSING)


def _pool_options(
    database: Database | None, given: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``asyncpg.create_pool`` is called with for the pools of our own."""
    made: dict[str, Any] = {
        "min_size": 0,  # asyncpg would log where it cannot keep the number up
        "max_size": options["max_size"],
        "timeout": options["operation_timeout"],
        "reset": _keep_state,
        "connect": hosts.connect,
        "target_session_attrs": "primary",
    }
    if database is not None:
        made["dsn"] = database.url
        if "target_session_attrs=" in database.url:
            del made["target_session_attrs"]
    elif given is not None:
        # asyncpg has no public way to open one more connection as a pool would.
        made.update(given._connect_kwargs)
        if given._connect_args:
            made["dsn"] = given._connect_args[0]
    if options["pgbouncer"]:
        made["statement_cache_size"] = 0
    return made


async def _keep_state(connection: Any) -> None:
    """Do nothing when a connection is given back: our statements leave nothing to reset.

    asyncpg would send a statement of its own at each release, which is a second round trip.
    """


_servers = forgetting_at_fork(
    Step.CONNECTIONS, Server.forget_all, keeps=lambda server: server._pools
)
