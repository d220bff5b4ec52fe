"""Conversations on a Redis or Valkey server: one, behind Sentinels, or a cluster.

This module is the memory's surface and its life. What is asked of the server is in ``calls``, what
it decides in ``lua``, how commands get there in ``connections``.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from session_middleware import _background
from session_middleware.errors import InvalidOption
from session_middleware.history import LastItems, LastTurns
from session_middleware.memory import check_session_id
from session_middleware.stores.numbers import seconds, whole_number
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
from session_middleware.stores.redis.calls import Calls
from session_middleware.stores.redis.connections import Connections
from session_middleware.stores.redis.index import Index
from session_middleware.stores.redis.keys import Keys
from session_middleware.stores.redis.line import Line
from session_middleware.stores.redis.managed import ManagedKeys
from session_middleware.stores.redis.managing import Managing
from session_middleware.stores.redis.server import AnyClient, Server, checked_client
from session_middleware.stores.redis.sweeping import PAUSE, Sweeping
from session_middleware.stores.redis.url import ServerUrl, read
from session_middleware.stores.sweeps import Sweep


class RedisSessionMemory(ManagedKeys):
    """Keep conversations on a Redis or Valkey server.

    One object serves any number of sessions, threads and event loops. Nothing is opened before
    the first use. Redis 7 and Valkey 8 or newer; a cluster is recognised, Sentinels are named by
    ``?sentinel=NAME`` in the URL or by a client.

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``valkey://`` or ``valkeys://``, with redis-py's
            options and those below as parameters; default ``redis://localhost:6379/0``.
        client: a ``redis.asyncio.Redis`` or ``RedisCluster`` instead of a URL. It is used as it
            is, and never closed.
        lease: seconds for which a session stays held when the process that holds it dies.
        operation_timeout: seconds for an operation, with all new attempts and connections.
        key_prefix: every key begins with it; no other key is ever touched.
        ttl: seconds after its last turn for which a session is kept; None: for ever.
        replicas: so many replicas must confirm each write, or it raises MemoryUnavailable.
        max_connections: connections for each event loop; an operation waits for a free one.

    Raises:
        InvalidOption, InvalidMemoryUrl: an option or the URL is wrong.

    Example:
        memory = RedisSessionMemory("redis://localhost:6379/0", ttl=30 * 86400)
    """

    backend = "redis"
    capabilities = frozenset(
        {
            TURNS,
            WRITE_TURN,
            READ_WITH_ACQUIRE,
            STORE_WITH_ACQUIRE,
            LOOK_UP,
            MANIFEST,
            JOURNAL,
            TICKETS,
            FIGURES,
            COMPACTION,
            MANAGE,
            TTL,
        }
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        lease: float = 30.0,
        operation_timeout: float = 10.0,
        key_prefix: str = "session_middleware",
        ttl: float | None = None,
        replicas: int = 0,
        max_connections: int = 50,
    ) -> None:
        options: dict[str, Any] = {
            "lease": lease,
            "operation_timeout": operation_timeout,
            "key_prefix": key_prefix,
            "ttl": ttl,
            "replicas": replicas,
            "max_connections": max_connections,
        }
        where: ServerUrl | AnyClient
        if client is None:
            where, said = read("redis://localhost:6379/0" if url is None else url, {})
            options = _together(options, said)
        elif url is not None:
            raise InvalidOption("url and client were both given: leave one out")
        else:
            where = checked_client(client)
        super().__init__(seconds("lease", options["lease"]))
        timeout = seconds("operation_timeout", options["operation_timeout"])
        life = None if options["ttl"] is None else seconds("ttl", options["ttl"])
        most = whole_number("max_connections", options["max_connections"], at_least=1)
        confirmed = whole_number("replicas", options["replicas"], at_least=0)
        keys = Keys(_prefix(options["key_prefix"]))
        server = Server(where, timeout=timeout, most=most)
        self._identity = ("redis", server.identity, keys.prefix)
        self._connections = Connections(server.connect, timeout=timeout, replicas=confirmed)
        self._index = index = Index(self._connections, keys)
        self._calls = Calls(self._connections, keys, index, lease=self.lease_seconds, ttl=life)
        self._managing = Managing(self._connections, keys, self._calls, index)
        self._sweeping = Sweeping(self._connections, keys, self._calls, index, ttl=life is not None)
        self._sweep = Sweep(self, _sweep, PAUSE)
        self._line = Line(self._connections, self._calls, keys.channel)
        # A memory nobody refers to any more closes its connections; at exit ``_leave`` does that.
        weakref.finalize(self, _abandon, self._connections, index).atexit = False

    # --- TurnStore -------------------------------------------------------------------------

    @property
    def identity(self) -> Hashable:
        """Equal for two memories on the same server, database and prefix."""
        return self._identity

    async def _acquire(self, request: AcquireRequest, token: int) -> Acquired:
        if READ_WITH_ACQUIRE not in self.capabilities:
            request = replace(request, read=None)  # a subclass reads in its own way
        acquired = await self._calls.acquire(request, token)
        if self._sweeping.is_needed:
            self._sweep.begin()
        return acquired

    async def look_up(self, request: AcquireRequest) -> None:
        """Raise what acquiring the session would, if the request's work was done before."""
        check_session_id(request.session_id)
        await self._calls.look_up(request)

    async def wait_for_session(self, session_id: str, ticket: int, seconds: float) -> None:
        """Return when the ticket may be first at a free session, or after ``seconds``."""
        check_session_id(session_id)
        await self._line.wait(session_id, ticket, seconds)

    async def withdraw_ticket(self, session_id: str, ticket: int) -> None:
        """Wait no longer: let those behind the ticket move up."""
        check_session_id(session_id)
        await _background.finish(self._calls.withdraw_ticket(session_id, ticket))

    async def _load_turns(
        self,
        session_id: str,
        newest: LastTurns | LastItems | None,
        hide: tuple[int, Collection[int]] | None,
        texts: bool,
    ) -> Loaded:
        return await self._calls.load_turns(session_id, newest, hide, texts)

    async def _load_items(self, session_id: str, turn: int | None, limit: int | None) -> list[Item]:
        return await self._calls.load_items(session_id, turn, limit)

    async def journal(
        self, lease: Lease, entries: Sequence[JournalEntry], *, durable: bool
    ) -> None:
        """Keep these entries of the turn's journal, in place of those with the same names."""
        await _background.finish(self._calls.journal(lease, entries, durable=durable))

    async def _store(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        try:
            await _background.finish(self._calls.write(lease, items, end))
        finally:
            if end is not None:
                self._leases.drop(lease.token)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over what ``failed`` left; returns how many items it starts with."""
        return await _background.finish(self._calls.retry(lease, failed, run))

    async def _pop(self, session_id: str, lease: Lease | None) -> Item | None:
        return await _background.finish(self._calls.pop(session_id, lease))

    async def _release(self, session_id: str) -> bool:
        return await _background.finish(self._calls.release(session_id))

    async def _records(
        self, session_id: str, limit: int | None, before: int | None
    ) -> list[TurnRecord]:
        return await self._calls.records(session_id, limit, before)

    # --- histories and sessions ------------------------------------------------------------

    async def _append_turn(self, session_id: str, texts: Sequence[str]) -> None:
        await _background.finish(self._calls.change(session_id, "append", [texts]))

    async def _replace(
        self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None
    ) -> None:
        await _background.finish(self._calls.change(session_id, "replace", turns, lease))

    async def _forget(self, session_id: str, lease: Lease | None) -> None:
        await _background.finish(self._calls.change(session_id, "forget", (), lease))

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions that something was stored or saved in, oldest first."""
        return await self._calls.session_ids()

    async def _exists(self, session_id: str) -> bool:
        return await self._calls.exists(session_id)

    # --- life ------------------------------------------------------------------------------

    async def ping(self) -> None:
        """See that the server answers now.

        Raises:
            MemoryUnavailable: it does not.
            MemoryClosed: after ``cleanup``.
        """
        await self._connections.commands([("PING",)])

    async def _renew(self, held: Mapping[str, int]) -> Collection[int]:
        tokens = {token: session_id for session_id, token in held.items()}
        return tokens.keys() - await self._calls.renew(tokens)

    async def _end(self, leases: Mapping[int, str]) -> Collection[int]:
        return [
            token
            for token, session_id in leases.items()
            if await self._calls.release(session_id, token)
        ]

    async def _close_connections(self) -> None:
        await _close(self._connections, self._index)

    async def _leave(self) -> None:
        await super()._leave()
        await self._close_connections()


def _together(given: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The options given by keyword and those in the URL."""
    defaults = RedisSessionMemory.__init__.__kwdefaults__ or {}
    for name in said:
        if given[name] != defaults[name]:
            raise InvalidOption(f"{name} is given by keyword and in the URL: leave one out")
    return given | said


def _prefix(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or set(value) & set("{}\0"):
        raise InvalidOption(f"key_prefix must be a text without braces, got {value!r}")
    return value


async def _close(connections: Connections, index: Index) -> None:
    """Finish what is under way, then close every connection."""
    await index.settled()
    await connections.close()


def _abandon(connections: Connections, index: Index) -> None:
    """Close every connection some time: the memory is gone."""
    if connections.opened:
        _background.submit(_close(connections, index))


async def _sweep(memory: RedisSessionMemory) -> bool:
    await memory._sweeping.step()
    return False
