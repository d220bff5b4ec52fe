"""The memories on servers beside the SDK's sessions on the same server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import redis.asyncio as redis_asyncio
from agents import Runner
from agents.extensions.memory import RedisSession

from session_middleware import PostgresSessionMemory, RedisSessionMemory, with_session_memory
from tests.support.postgres import PostgresServer, make_database
from tests.support.postgres_proxy import PostgresProxy
from tests.support.valkey import own_prefix, valkey_server

from .contenders import Contender, Keeper, Lists, OurKeeper, SDKKeeper
from .measuring import LIST, OURS, Row, Target, in_turns, ratios
from .subjects import null_agent, one_turn

SESSIONS = 64
CONNECTIONS = 20
ROUND_TRIPS = 4  # runs whose round trips are counted

Contenders = Callable[[], list[Contender]]


class Ours(Contender):
    """One of our memories, and ``with_session_memory(Runner.run)``."""

    name = OURS

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self._run = with_session_memory(Runner.run, memory=memory)

    def keeper(self, session_id: str) -> Keeper:
        return OurKeeper(self.memory, self._run, session_id)

    async def close(self) -> None:
        await self.memory.cleanup()


class SDKRedis(Contender):
    """``agents.extensions.memory.RedisSession``; all share one client."""

    name = "RedisSession"

    def __init__(self, url: str) -> None:
        self._client = redis_asyncio.from_url(url)
        self._prefix = own_prefix()

    def keeper(self, session_id: str) -> Keeper:
        return SDKKeeper(
            RedisSession(session_id, redis_client=self._client, key_prefix=self._prefix)
        )

    async def close(self) -> None:
        await self._client.aclose()


class SDKPostgres(Contender):
    """``agents.extensions.memory.SQLAlchemySession`` on asyncpg; all share one engine."""

    name = "SQLAlchemySession"

    def __init__(self, url: str) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        self._engine = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://"),
            pool_size=CONNECTIONS,
            max_overflow=0,
        )

    async def prepare(self) -> None:
        """Make the tables."""
        await self._session("first", create_tables=True).get_items()

    def keeper(self, session_id: str) -> Keeper:
        return SDKKeeper(self._session(session_id))

    def _session(self, session_id: str, *, create_tables: bool = False) -> Any:
        from agents.extensions.memory import SQLAlchemySession

        return SQLAlchemySession(session_id, engine=self._engine, create_tables=create_tables)

    async def close(self) -> None:
        await self._engine.dispose()


async def beside_redis_session(folder: Path, quick: bool) -> list[Row]:
    """Loads and appends, and whole runs, of 64 sessions at once."""
    with valkey_server() as server:

        def contenders() -> list[Contender]:
            return [
                Ours(RedisSessionMemory(server.url, key_prefix=own_prefix())),
                SDKRedis(server.url),
            ]

        return await _rows("redis", "a Redis server", contenders, 1.7, 3 if quick else 9)


async def beside_sqlalchemy_session(folder: Path, quick: bool) -> list[Row]:
    """The same on PostgreSQL, which flushes every commit, and the round trips of a run."""
    server = PostgresServer("fsync = on")
    try:
        url = await make_database(server.url)
        first = SDKPostgres(url)
        await first.prepare()
        await first.close()

        def contenders() -> list[Contender]:
            return [Ours(PostgresSessionMemory(url, max_size=CONNECTIONS)), SDKPostgres(url)]

        rows = await _rows("postgres", "a PostgreSQL server", contenders, 5, 3 if quick else 9)
        return [*rows, await _round_trips(url)]
    finally:
        server.remove()


async def _rows(
    name: str, place: str, contenders: Contenders, target: float, rounds: int
) -> list[Row]:
    agent = null_agent()

    async def pair(keeper: Keeper, turn: int) -> None:
        await keeper.load()
        await keeper.append(one_turn(turn))

    async def run(keeper: Keeper, turn: int) -> None:
        await keeper.run(agent, f"What is the weather in town {turn}?")

    beside = f"{SESSIONS} sessions at once on {place}"
    return [
        await _side_by_side(
            Row(
                name,
                f"{beside} load the history and append 4 items.",
                "pairs/s",
                {},
                (),
                Target("at least", target),
            ),
            contenders,
            pair,
            (10, rounds),
        ),
        await _side_by_side(
            Row(
                name,
                f"{beside} ask a model that answers at once.",
                "runs/s",
                {},
                (),
                Target("at least", 1),
            ),
            lambda: [*contenders(), Lists()],
            run,
            (4, rounds),
        ),
    ]


async def _side_by_side(
    row: Row,
    contenders: Contenders,
    work: Callable[[Keeper, int], Awaitable[None]],
    times: tuple[int, int],
) -> Row:
    """The row with its figures; the ratio is over the SDK's session."""
    each, rounds = times
    spent: dict[str, list[float]] = {}

    def of(contender: Contender) -> Callable[[int], Awaitable[float]]:
        async def measured(number: int) -> float:
            async def use(keeper: Keeper) -> None:
                for turn in range(each):
                    await work(keeper, turn)

            keepers = [contender.keeper(f"{row.what} {number} {at}") for at in range(SESSIONS)]
            await asyncio.gather(*(keeper.load() for keeper in keepers))
            began, worked = perf_counter(), process_time()
            await asyncio.gather(*map(use, keepers))
            seconds, processor = perf_counter() - began, process_time() - worked
            if number >= 0:
                spent.setdefault(contender.name, []).append(processor * 1000 / (SESSIONS * each))
            return SESSIONS * each / seconds

        return measured

    async with AsyncExitStack() as stack:
        made = contenders()
        for contender in made:
            stack.push_async_callback(contender.close)
            await of(contender)(-1)
        figures = await in_turns({one.name: of(one) for one in made}, rounds)
    (theirs,) = figures.keys() - {OURS, LIST}
    row.figures, row.values, row.processor = figures, ratios(figures, theirs), spent
    return row


async def _round_trips(url: str) -> Row:
    """How often a run sends something to the server and waits for the answer."""
    figures: dict[str, list[float]] = {}
    with closing(PostgresProxy(url)) as proxy:
        memory = PostgresSessionMemory(proxy.url, max_size=1)
        for contender in (Ours(memory), SDKPostgres(proxy.url)):
            keeper = contender.keeper("round trips")
            await keeper.run(null_agent(), "What is the weather?")  # connected, and prepared
            proxy.count_anew()
            for turn in range(ROUND_TRIPS):
                await keeper.run(null_agent(), f"What is the weather in town {turn}?")
            figures[contender.name] = [proxy.asks / ROUND_TRIPS]
            await contender.close()
    what = "A run of one model turn on a PostgreSQL server: round trips."
    return Row("postgres", what, "", figures, figures[OURS], Target("at most", 2, ""))
