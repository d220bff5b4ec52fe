"""The memory on a Redis server beside the SDK's RedisSession on the same server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import redis.asyncio as redis_asyncio
from agents import Runner
from agents.extensions.memory import RedisSession

from session_middleware import RedisSessionMemory, with_session_memory
from tests.support.valkey import own_prefix, valkey_server

from .contenders import Contender, Keeper, OurKeeper, SDKKeeper
from .measuring import OURS, Row, Target, in_turns, ratios
from .subjects import null_agent, one_turn


class OursOnRedis(Contender):
    """``RedisSessionMemory``, and ``with_session_memory(Runner.run)``."""

    name = OURS

    def __init__(self, url: str) -> None:
        self.memory = RedisSessionMemory(url, key_prefix=own_prefix())
        self._run = with_session_memory(Runner.run, memory=self.memory)

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


async def beside_redis_session(folder: Path, quick: bool) -> list[Row]:
    """Loads and appends, and whole runs, of 64 sessions at once."""
    rounds = 3 if quick else 9
    agent = null_agent()

    async def pair(keeper: Keeper, turn: int) -> None:
        await keeper.load()
        await keeper.append(one_turn(turn))

    async def run(keeper: Keeper, turn: int) -> None:
        await keeper.run(agent, f"What is the weather in town {turn}?")

    with valkey_server() as server:
        return [
            await _side_by_side(
                server.url,
                "64 sessions at once on a Redis server load the history and append 4 items.",
                ("pairs/s", 1.7),
                pair,
                (10, rounds),
            ),
            await _side_by_side(
                server.url,
                "64 sessions at once on a Redis server ask a model that answers at once.",
                ("runs/s", 1),
                run,
                (4, rounds),
            ),
        ]


async def _side_by_side(
    url: str,
    what: str,
    words: tuple[str, float],
    work: Callable[[Keeper, int], Awaitable[None]],
    times: tuple[int, int],
) -> Row:
    unit, target = words
    each, rounds = times
    spent: dict[str, list[float]] = {}

    def of(contender: Contender) -> Callable[[int], Awaitable[float]]:
        async def measured(number: int) -> float:
            async def use(keeper: Keeper) -> None:
                for turn in range(each):
                    await work(keeper, turn)

            keepers = [contender.keeper(f"{what} {number} {at}") for at in range(64)]
            await asyncio.gather(*(keeper.load() for keeper in keepers))
            began, worked = perf_counter(), process_time()
            await asyncio.gather(*map(use, keepers))
            seconds, processor = perf_counter() - began, process_time() - worked
            if number >= 0:
                spent.setdefault(contender.name, []).append(processor * 1000 / (64 * each))
            return 64 * each / seconds

        return measured

    async with AsyncExitStack() as stack:
        contenders: list[Any] = [OursOnRedis(url), SDKRedis(url)]
        for contender in contenders:
            stack.push_async_callback(contender.close)
            await of(contender)(-1)
        figures = await in_turns({each.name: of(each) for each in contenders}, rounds)
    bound = Target("at least", target)
    return Row("redis", what, unit, figures, ratios(figures), bound, processor=spent)
