"""Which server a memory is on: named by a URL, or by a client that the caller owns.

A client of the caller's serves the event loop that uses it first; every other loop, ours among
them, gets connections of the same kind. No commands but the one that tells a cluster apart.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Hashable
from contextlib import suppress
from typing import Any, TypeAlias

import redis.asyncio as redis_asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004 - the driver's

from session_middleware import _background
from session_middleware.errors import InvalidOption, MemoryUnavailable
from session_middleware.stores.redis.clients import Client, ClusterClient, SingleClient
from session_middleware.stores.redis.url import ServerUrl

AnyClient: TypeAlias = redis_asyncio.Redis | redis_asyncio.RedisCluster


class Server:
    """What makes the connections of a memory.

    Args:
        where: a URL, or a client of redis-py's asyncio, which is never closed.
        timeout: seconds to wait for a connection.
        most: connections for each event loop.
    """

    def __init__(self, where: ServerUrl | AnyClient, *, timeout: float, most: int) -> None:
        self._url = where if isinstance(where, ServerUrl) else None
        self._client = None if isinstance(where, ServerUrl) else where
        self._client_loop: asyncio.AbstractEventLoop | None = None
        self._timeout = timeout
        self._most = most

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Equal for two memories on the same database, as far as its names tell."""
        if self._url is not None:
            return (self._url.hosts, self._url.database, self._url.sentinel)
        if isinstance(self._client, redis_asyncio.Redis):
            kwargs = self._client.connection_pool.connection_kwargs
            if "host" in kwargs:
                host = (kwargs["host"], int(kwargs.get("port", 6379)))
                return ((host,), int(kwargs.get("db") or 0), None)
        return ("client", id(self._client))

    async def connect(self) -> Client:
        """Make the client of the running event loop; nobody has connected before it does."""
        if self._client is not None:
            return self._from_client(self._client)
        assert self._url is not None  # noqa: S101 - or there is a client
        if self._url.sentinel is not None:
            return self._by_sentinel(self._url, self._url.sentinel)
        return await self._by_url(self._url)

    # --- by URL ----------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        return {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # an operation has its own new attempts
            "socket_connect_timeout": self._timeout,
            "socket_timeout": None,
            "decode_responses": False,
        }

    async def _by_url(self, url: ServerUrl) -> Client:
        """The first of the hosts that answers, or the cluster that it is one of."""
        for driver in url.drivers[:-1]:
            with suppress(ConnectionError, TimeoutError, OSError):
                return await self._at(driver)
        return await self._at(url.drivers[-1])

    async def _at(self, driver: str) -> Client:
        pool = ConnectionPool.from_url(driver, **self._options())
        client = SingleClient(pool, owned=True, most=self._most)
        try:
            (answer,) = await client.exchange(None, [("INFO", "server")])
        except BaseException:
            await client.close()
            raise
        mode = _field(answer, b"_mode:")
        if mode == b"standalone" or mode is None:
            return client
        await client.close()
        if mode == b"sentinel":
            raise MemoryUnavailable(
                "the server is a Sentinel: add ?sentinel=NAME to the URL, with the name under "
                "which it knows the primary"
            )
        options = self._options() | {"max_connections": self._most + 1}
        cluster = redis_asyncio.RedisCluster.from_url(driver, **options)
        return ClusterClient(cluster, owned=True, most=self._most)

    def _by_sentinel(self, url: ServerUrl, name: str) -> Client:
        kwargs = dict(ConnectionPool.from_url(url.drivers[0], **self._options()).connection_kwargs)
        kwargs.pop("host", None)
        kwargs.pop("port", None)
        own = {key: kwargs[key] for key in kwargs if key.startswith(("socket_", "ssl"))}
        sentinel = redis_asyncio.Sentinel(
            url.hosts, sentinel_kwargs=own | {"retry": Retry(NoBackoff(), 0)}, **kwargs
        )
        primary = sentinel.master_for(name)
        return _SentinelClient(primary.connection_pool, sentinel, most=self._most)

    # --- by the caller's client ------------------------------------------------------------

    def _from_client(self, client: AnyClient) -> Client:
        loop = asyncio.get_running_loop()
        if self._client_loop is None and loop is not _background.loop():
            self._client_loop = loop
        theirs = loop is self._client_loop
        if isinstance(client, redis_asyncio.RedisCluster):
            cluster = client if theirs else _same_cluster(client)
            return ClusterClient(cluster, owned=not theirs, most=self._most)
        pool = client.connection_pool
        if theirs:
            return SingleClient(pool, owned=False, most=self._most)
        if isinstance(pool, SentinelConnectionPool):
            manager = pool.sentinel_manager
            sentinel = redis_asyncio.Sentinel(
                [_place(each) for each in manager.sentinels],
                sentinel_kwargs=manager.sentinel_kwargs,
                **manager.connection_kwargs,
            )
            primary = sentinel.master_for(pool.service_name)
            return _SentinelClient(primary.connection_pool, sentinel, most=self._most)
        same = ConnectionPool(
            connection_class=pool.connection_class, **dict(pool.connection_kwargs)
        )
        return SingleClient(same, owned=True, most=self._most)


class _SentinelClient(SingleClient):
    """One server, as Sentinels name it, whose connections are closed as well."""

    def __init__(self, pool: ConnectionPool, sentinel: Any, *, most: int) -> None:
        super().__init__(pool, owned=True, most=most)
        self._sentinel = sentinel

    async def close(self) -> None:
        await super().close()
        await self._sentinel.aclose()


def checked_client(client: object) -> AnyClient:
    """The client, if it is one of redis-py's asyncio.

    Raises:
        InvalidOption: it is another library's, or the synchronous one.
    """
    if isinstance(client, (redis_asyncio.Redis, redis_asyncio.RedisCluster)):
        return client
    raise InvalidOption(
        "client must be a redis.asyncio.Redis or a redis.asyncio.RedisCluster, got "
        f"{type(client).__module__}.{type(client).__name__}"
    )


def _same_cluster(cluster: redis_asyncio.RedisCluster) -> redis_asyncio.RedisCluster:
    known = inspect.signature(redis_asyncio.RedisCluster.__init__).parameters
    kwargs = {name: cluster.connection_kwargs[name] for name in cluster.connection_kwargs}
    secure = kwargs.get("connection_class") is SSLConnection
    nodes = cluster.get_nodes() or list(cluster.nodes_manager.startup_nodes.values())
    options: dict[str, Any] = {name: kwargs[name] for name in kwargs if name in known}
    options["ssl"] = secure
    options["startup_nodes"] = [ClusterNode(node.host, node.port) for node in nodes]
    return redis_asyncio.RedisCluster(**options)


def _place(client: Any) -> tuple[str, int]:
    kwargs = client.connection_pool.connection_kwargs
    return kwargs["host"], kwargs["port"]


def _field(answer: Any, name: bytes) -> bytes | None:
    """The value of a field such as redis_mode or server_mode; None where it is not told."""
    if not isinstance(answer, bytes):
        return None
    for line in answer.splitlines():
        head, mark, value = line.partition(name)
        if mark and head in (b"redis", b"server", b"valkey"):
            return value
    return None
