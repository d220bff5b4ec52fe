"""The connections of one event loop to one server, or to the servers of a cluster.

A client sends commands once and returns their answers: no second attempt, no deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import redis.asyncio as redis_asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.client import NEVER_DECODE
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - the driver's, which is no builtin one
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,  # noqa: A004 - as above
    TryAgainError,
)

Command = tuple[Any, ...]

Where = Any
"""A server, as a client knows it; the name of a key that it has; or None."""

PASSING = (
    ConnectionError,
    TimeoutError,
    OSError,
    EOFError,
    BusyLoadingError,
    ReadOnlyError,
    ClusterDownError,
    TryAgainError,
    MovedError,
    RedisClusterException,
)
"""Errors after which the same may succeed a moment later."""


class Client(Protocol):
    """The connections of one event loop to the server or servers."""

    one_server: bool
    """One server has every key."""

    async def exchange(self, where: Where, commands: Sequence[Command]) -> list[Any]:
        """Send the commands at once, on one connection for each server that they go to.

        ``where`` is a server, a key that one has, or None: each command goes where its key is.
        Returns their answers; an error that a command was answered with stands in its place.
        """
        ...

    async def primaries(self) -> Sequence[Where]:
        """The servers that have keys."""
        ...

    def pool(self) -> ConnectionPool | None:
        """Where a connection to listen on comes from; None: there is none."""
        ...

    async def close(self) -> None:
        """Close what was opened here."""
        ...


class SingleClient:
    """One server, or the one that a Sentinel names.

    Args:
        pool: where connections come from.
        owned: the pool is ours, so its connections are kept out of it and it is closed.
        most: so many connections are in use at once; who needs one more waits.
    """

    one_server = True

    def __init__(self, pool: ConnectionPool, *, owned: bool, most: int) -> None:
        self._pool = pool
        self._owned = owned
        self._free: list[AbstractConnection] = []
        self._room = asyncio.Semaphore(most)

    async def exchange(self, where: Where, commands: Sequence[Command]) -> list[Any]:
        async with self._room:
            connection = self._free.pop() if self._free else await self._pool.get_connection()
            try:
                packed = (
                    connection.pack_command(*commands[0])
                    if len(commands) == 1
                    else connection.pack_commands(commands)
                )
                await connection.send_packed_command(packed)
                answers = [await _answer(connection) for _ in commands]
            except BaseException:
                # What is still on its way would be taken for the answer to the next command.
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
                raise
            if any(isinstance(answer, ReadOnlyError) for answer in answers):
                await self._disconnect(connection)  # a primary no more
            elif self._owned:
                self._free.append(connection)
            else:
                await self._pool.release(connection)
            return answers

    async def _disconnect(self, connection: AbstractConnection) -> None:
        others, self._free = self._free, []
        for each in (connection, *others):
            await each.disconnect(nowait=True)
            await self._pool.release(each)

    async def primaries(self) -> Sequence[Where]:
        return [None]

    def pool(self) -> ConnectionPool | None:
        return self._pool

    async def close(self) -> None:
        if self._owned:
            self._free.clear()
            await self._pool.disconnect()


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


class ClusterClient:
    """Several servers that share the keys by hash slots; redis-py finds the right one."""

    one_server = False

    def __init__(self, cluster: redis_asyncio.RedisCluster, *, owned: bool, most: int) -> None:
        self._cluster = cluster
        self._owned = owned
        self._room = asyncio.Semaphore(most)

    async def exchange(self, where: Where, commands: Sequence[Command]) -> list[Any]:
        async with self._room:
            await self._cluster.initialize()
            try:
                return await self._exchange(where, commands)
            except (ConnectionError, TimeoutError, OSError, ClusterDownError, MovedError):
                # Its server may have died, and another have its slots by now.
                await self._cluster.nodes_manager.initialize()
                raise

    async def _exchange(self, where: Where, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            return [await self._one(where, commands[0])]
        pipeline = self._cluster.pipeline()
        for command in commands:
            options: dict[str, Any] = {NEVER_DECODE: True}
            if command[0] == "WAIT":  # has no key, and must go the way of the write before it
                options["target_nodes"] = [self._cluster.get_node_from_key(where)]
            pipeline.execute_command(*command, **options)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, PASSING):
                raise answer
        return answers

    async def _one(self, where: Where, command: Command) -> Any:
        to = where if isinstance(where, ClusterNode) else self._cluster
        try:
            return await to.execute_command(*command, **{NEVER_DECODE: True})
        except ResponseError as error:
            if isinstance(error, PASSING):
                raise
            return error

    async def primaries(self) -> Sequence[Where]:
        await self._cluster.initialize()
        return self._cluster.get_primaries()

    def pool(self) -> ConnectionPool | None:
        return None

    async def close(self) -> None:
        if self._owned:
            await self._cluster.aclose()
