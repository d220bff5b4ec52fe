"""Many sessions at once, and one: runs, loads and appends for each second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from . import processes
from .contenders import (
    SDK_CONTENDERS,
    Contender,
    Keeper,
    Lists,
    Ours,
    SDKKeeper,
    SDKSQLite,
    missing_package,
)
from .measuring import LIST, OURS, SDK, Row, Target, in_turns, ratios
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
        contenders = [Lists(), SDKSQLite(folder), Ours(folder)]
        figures = await _measure(stack, contenders, runs, rounds)
    return [
        Row(
            "runs",
            "64 sessions at once ask a model that answers at once: runs for each second, over a "
            "list.",
            "runs/s",
            figures,
            ratios(figures, LIST),
            Target("at least", 0.85),
            processor=processor,
            drawn="runs, 64 sessions at once",
        ),
        Row(
            "runs",
            "The same: what 99 of 100 runs take at most.",
            "ms",
            slowest,
            ratios(slowest, SDK),
            Target("at most", 0.8),
        ),
    ]


async def runs_of_processes(folder: Path, quick: bool) -> list[Row]:
    """Four processes on one file, 16 sessions each: runs for each second, and errors."""
    rounds, each = (3, 4) if quick else (7, 8)
    rates: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    kinds = (SDKSQLite.name, OURS)
    for number in range(rounds):
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            place = folder / f"{kind}-{number}"
            place.mkdir()
            done, seconds, failed = await processes.race(kind, place, each)
            rates.setdefault(kind, []).append(done / seconds)
            errors.setdefault(kind, []).append(failed)
    what = "Four processes on one file, 16 sessions each, a model that answers at once"
    return [
        Row(
            *("processes", f"{what}: runs for each second.", "runs/s", rates, ratios(rates, SDK)),
            Target("at least", 1.5),
        ),
        Row(
            *("processes", f"{what}: runs that failed.", "", errors, errors[OURS]),
            Target("at most", 0, ""),
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
        f"{'64 sessions at once load' if sessions > 1 else 'One session loads'} the history and "
        f"{'append' if sessions > 1 else 'appends'} 4 items, by the memory's own methods.",
        "pairs/s",
        figures,
        ratios(figures),
        Target("at least", target),
        notes=missing + (notes if SDKKeeper.locked > locked else []),
        drawn=f"load and append of 4 items, {sessions} session{'s at once' * (sessions > 1)}",
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
        figures = await _measure(stack, [SDKSQLite(folder), Ours(folder)], loads, rounds)
    return [
        Row(
            "load-1000",
            "A history of 1,000 items is loaded, by the memory's own method.",
            "loads/s",
            figures,
            ratios(figures),
            Target("at least", 2.5),
            drawn="load of 1,000 items",
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
