"""The two servers that are measured: started, filled with sessions, and asked what they used."""

from __future__ import annotations

import os
import zlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import asyncpg
import redis.asyncio as redis_asyncio

from session_middleware import last_turns, open_memory
from session_middleware.stores.items import encode_items
from session_middleware.stores.postgres.names import Names
from session_middleware.stores.postgres.schema import script
from session_middleware.stores.records import AcquireRequest, ReadRequest, RunItems, TurnEnd
from session_middleware.stores.redis.keys import SHARDS, Keys
from tests.support.postgres import PostgresServer, make_database
from tests.support.valkey import ValkeyServer, valkey_server

from ..subjects import one_turn

WINDOW = 20
"""Turns of history that a turn reads, at most."""
LENGTHS = ((0.8, 1), (0.15, 2), (0.045, 5), (0.0049, 20), (0.0001, 200))
"""The share of the sessions that have so many turns: most have one, a few have very many."""
_TICKS = os.sysconf("SC_CLK_TCK")
_CHUNK = 20_000


def name_of(number: int) -> str:
    """The id of a session that was filled in."""
    return f"user-{number:07}"


class Turn:
    """A turn of the four items of a tool call: input stored and history read, answer stored."""

    def __init__(self, memory: Any, session_id: str) -> None:
        self._memory, self._session_id = memory, session_id
        self._items = encode_items(one_turn(7))

    async def begin(self) -> None:
        """The first round trip."""
        asked = RunItems(1, 0, self._items[:1], "d")
        read = ReadRequest(newest=last_turns(WINDOW))
        request = AcquireRequest(self._session_id, datetime.now(UTC), read=read, input=asked)
        self._acquired = await self._memory.acquire(request)

    async def end(self) -> None:
        """The second."""
        answer = [RunItems(1, 1, self._items[1:])]
        end = TurnEnd("completed", datetime.now(UTC), runs={1: "completed"})
        await self._memory.write_turn(self._acquired.lease, answer, end)


class Subject:
    """A server, and the memory on it."""

    name: ClassVar[str]

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = urlsplit(url).port or 0

    def memory(self, port: int | None = None, **options: Any) -> Any:
        """A memory on it, or on a proxy to it."""
        url = self.url if port is None else self.url.replace(f":{self.port}", f":{port}", 1)
        return open_memory(url, operation_timeout=120, **options)

    @abstractmethod
    def pids(self) -> list[int]:
        """Its processes."""

    def processor(self) -> float:
        """Seconds of processor time that it has used, with those of its processes that ended."""
        first, *others = self.pids()
        return _processor(first, ended=True) + sum(map(_processor, others))

    @abstractmethod
    async def stored(self) -> int:
        """Bytes that its sessions take, with indexes."""

    @abstractmethod
    async def fill(self, numbers: range) -> None:
        """Have sessions of these numbers, of LENGTHS: copies of conversations that were written."""

    async def _templates(self, numbers: range) -> AsyncIterator[tuple[str, range]]:
        """A session of each length, and chunks of the numbers of those that are to be like it."""
        first = numbers.start
        async with self.memory() as memory:
            for share, turns in LENGTHS:
                template = f"template-{turns} of {numbers.start}"
                for _ in range(turns):
                    turn = Turn(memory, template)
                    await turn.begin()
                    await turn.end()
                last = first + round(share * len(numbers))
                for chunk in range(first, last, _CHUNK):
                    yield template, range(chunk, min(chunk + _CHUNK, last))
                first = last


class Postgres(Subject):
    name = "PostgreSQL"

    def __init__(self, url: str, server: PostgresServer) -> None:
        super().__init__(url)
        self._server = server

    def pids(self) -> list[int]:
        return self._server.pids()

    async def _ask(self, statement: str, *arguments: object) -> Any:
        connection: Any = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(statement, *arguments, timeout=3600)
        finally:
            await connection.close()

    async def make_tables(self, partitions: int) -> None:
        connection: Any = await asyncpg.connect(self.url)
        await connection.execute(script(Names(), partitions=partitions))
        await connection.close()

    async def stored(self) -> int:
        return int(
            await self._ask(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
                " WHERE relkind = 'r' AND relname LIKE 'session_middleware_%'"
            )
        )

    async def fill(self, numbers: range) -> None:
        columns = {table: await self._ask(_COLUMNS, f"{_PREFIX}{table}") for table in _FILLED}
        async for template, chunk in self._templates(numbers):
            for table, names in columns.items():
                await self._ask(
                    f"INSERT INTO {_PREFIX}{table} (session_id, {names})"
                    f" SELECT 'user-' || lpad(n::text, 7, '0'), {names}"
                    f" FROM generate_series($2::bigint, $3) n, {_PREFIX}{table} t"
                    " WHERE t.session_id = $1",
                    template,
                    chunk[0],
                    chunk[-1],
                )
        await self._ask("VACUUM ANALYZE")
        await self._ask("CHECKPOINT")


_PREFIX = "session_middleware_"
_FILLED = ("session", "turn", "run", "item")
_COLUMNS = """
    SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
    WHERE attrelid = $1::regclass AND attnum > 0 AND attname <> 'session_id'
"""


class Valkey(Subject):
    name = "Valkey"

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__(server.url)
        assert server.process is not None
        self._pid = server.process.pid

    def pids(self) -> list[int]:
        return [self._pid]

    async def stored(self) -> int:
        async with redis_asyncio.from_url(self.url) as client:
            return int((await client.info("memory"))["used_memory_dataset"])

    async def fill(self, numbers: range) -> None:
        keys = Keys("session_middleware")
        async with redis_asyncio.from_url(self.url, socket_timeout=600) as client:
            copy = client.register_script(_COPY)
            async for template, chunk in self._templates(numbers):
                parts: list[Any] = []
                for key in keys.of_session(template):
                    if await client.ttl(key) == -1:  # there, and not to expire
                        parts += [key.rpartition(":")[2], await client.dump(key)]
                await copy(args=[keys.prefix, chunk[0], chunk[-1], *parts])
                await _index(client, keys, chunk)


async def _index(client: Any, keys: Keys, numbers: range) -> None:
    shards: dict[int, list[str]] = {shard: [] for shard in range(SHARDS)}
    for number in numbers:
        name = name_of(number)
        shards[zlib.crc32(name.encode()) % SHARDS].append(name)
    async with client.pipeline(transaction=False) as pipeline:
        for shard, names in shards.items():
            if not names:
                continue
            indexes = keys.indexes(shard)
            for key in (indexes.recent, indexes.created):
                pipeline.zadd(key, dict.fromkeys(names, 1700000000000000))
            pipeline.zadd(indexes.names, dict.fromkeys(names, 0))
        await pipeline.execute()


_COPY = """
for number = ARGV[2], ARGV[3] do
  local key = ARGV[1] .. ':{' .. string.format('user-%07d', number) .. '}:'
  for part = 4, #ARGV, 2 do
    redis.call('RESTORE', key .. ARGV[part], 0, ARGV[part + 1])
  end
end
"""


def _processor(pid: int, *, ended: bool = False) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11 : 15 if ended else 13])) / _TICKS


@asynccontextmanager
async def started(name: str, partitions: int = 1) -> AsyncIterator[Subject]:
    """A server with the durability of production: fsync, or a log written each second."""
    if name == "valkey":
        log = {"appendonly": "yes", "appendfsync": "everysec", "auto_aof_rewrite_percentage": "0"}
        with valkey_server(**log) as server:
            yield Valkey(server)
        return
    postgres = PostgresServer("fsync = on", "shared_buffers = 1GB", "max_wal_size = 8GB")
    try:
        subject = Postgres(await make_database(postgres.url), postgres)
        await subject.make_tables(partitions)
        yield subject
    finally:
        postgres.remove()
