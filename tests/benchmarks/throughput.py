"""Many sessions at once, and one: runs, loads and appends for each second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from .contenders import (
    SDK_CONTENDERS,
    Contender,
    Keeper,
    Ours,
    SDKKeeper,
    SDKSQLite,
    missing_package,
)
from .measuring import Row, Target, in_turns, processor_times, ratios
from .subjects import history, null_agent, one_turn


async def runs_at_once(folder: Path, quick: bool) -> list[Row]:
    """Runs of 64 sessions at once, and how long the slowest of them take."""
    sessions, each, rounds = (64, 2, 3) if quick else (64, 6, 9)
    agent = null_agent()
    slowest: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}

    async def runs(contender: Contender, number: int) -> float:
        took: list[float] = []

        async def converse(keeper: Keeper) -> None:
            for turn in range(each):
                began = perf_counter()
                await keeper.run(agent, f"What is the weather in town {turn}?")
                took.append(perf_counter() - began)

        keepers = [contender.keeper(f"{number}-{at}") for at in range(sessions)]
        began, worked = perf_counter(), process_time()
        await asyncio.gather(*map(converse, keepers))
        seconds, work = perf_counter() - began, process_time() - worked
        if number >= 0:
            took.sort()
            slowest.setdefault(contender.name, []).append(took[int(len(took) * 0.99)] * 1000)
            spent = processor.setdefault(contender.name, [])
            spent.append(work * 1000 / (sessions * each))
        return sessions * each / seconds

    async with AsyncExitStack() as stack:
        contenders = [Ours(folder), SDKSQLite(folder)]
        figures = await _measure(stack, contenders, runs, rounds)
    return [
        Row(
            "runs",
            "runs, 64 sessions at once",
            "runs/s",
            figures,
            ratios(figures),
            Target("at least", 2),
            notes=[processor_times(processor)],
            drawn=True,
        ),
        Row(
            "runs",
            "the same, 99th percentile of a run",
            "ms",
            slowest,
            ratios(slowest),
            Target("at most", 1),
        ),
    ]


async def loads_and_appends(folder: Path, quick: bool) -> list[Row]:
    """A load and an append of 4 items by the memory's own methods, 64 sessions at once and 1."""
    return [
        await _loads_and_appends(folder, 64, 4 if quick else 10, 3 if quick else 7, 6),
        await _loads_and_appends(folder, 1, 40 if quick else 150, 3 if quick else 7, 1),
    ]


async def _loads_and_appends(
    folder: Path, sessions: int, each: int, rounds: int, target: float
) -> Row:
    async def pairs(contender: Contender, number: int) -> float:
        async def use(keeper: Keeper) -> None:
            for turn in range(each):
                await keeper.load()
                await keeper.append(one_turn(turn))

        keepers = [contender.keeper(f"{sessions}-{number}-{at}") for at in range(sessions)]
        await asyncio.gather(*(keeper.load() for keeper in keepers))
        began = perf_counter()
        await asyncio.gather(*map(use, keepers))
        return sessions * each / (perf_counter() - began)

    missing = [
        f"{kind.name}: not installed ({package})"
        for kind in SDK_CONTENDERS
        if (package := missing_package(kind)) is not None
    ]
    locked = SDKKeeper.locked
    async with AsyncExitStack() as stack:
        contenders: list[Contender] = [Ours(folder)]
        contenders += [kind(folder) for kind in SDK_CONTENDERS if missing_package(kind) is None]
        figures = await _measure(stack, contenders, pairs, rounds)
    notes = [f"{SDKKeeper.locked - locked} appends of the SDK's sessions met a locked database"]
    return Row(
        "load-append",
        f"load and append of 4 items, {sessions} session{'s at once' if sessions > 1 else ''}",
        "pairs/s",
        figures,
        ratios(figures),
        Target("at least", target),
        notes=missing + (notes if SDKKeeper.locked > locked else []),
        drawn=True,
    )


async def load_of_1000(folder: Path, quick: bool) -> list[Row]:
    """Loading a history of 1,000 items."""
    each, rounds = (5, 3) if quick else (20, 9)

    async def loads(contender: Contender, number: int) -> float:
        keeper = contender.keeper("long")
        if number < 0:
            await keeper.append(history(1_000))
        await keeper.load()
        began = perf_counter()
        for _ in range(each):
            await keeper.load()
        return each / (perf_counter() - began)

    async with AsyncExitStack() as stack:
        figures = await _measure(stack, [Ours(folder), SDKSQLite(folder)], loads, rounds)
    return [
        Row(
            "load-1000",
            "load of 1,000 items",
            "loads/s",
            figures,
            ratios(figures),
            Target("at least", 2.5),
            drawn=True,
        )
    ]


async def _measure(
    stack: AsyncExitStack,
    contenders: list[Contender],
    measure: Callable[[Any, int], Awaitable[float]],
    rounds: int,
) -> dict[str, list[float]]:
    """One round (-1) that does not count, for files, threads and caches; then those that do."""

    def of(contender: Contender) -> Callable[[int], Awaitable[float]]:
        return lambda number: measure(contender, number)

    for contender in contenders:
        stack.push_async_callback(contender.close)
        await measure(contender, -1)
    return await in_turns({contender.name: of(contender) for contender in contenders}, rounds)
