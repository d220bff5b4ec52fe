"""What a memory adds to a run: at the pace of real models first, then with one that costs nothing.

The contenders make one run each in turn, so that each run comes after a pause, as those of a
conversation do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from agents import Agent, Runner

from session_middleware import last_turns

from .contenders import Contender, Keeper, Lists, ListSession, Ours, SDKKeeper, SDKSQLite
from .measuring import LIST, NOTHING, OURS, SDK, Row, Target, Timed, gained, ratios
from .subjects import QUESTION, history, null_agent

SECONDS = 0.3
SHORTER = 0.15
TURNS, ITEMS = 3, 6


async def at_a_models_pace(folder: Path, quick: bool) -> list[Row]:
    """One session whose model takes 0.3 s, with no history and with 100 items."""
    rows = []
    for length in (0, 100):
        timed = await _alone(folder, length, null_agent(SECONDS), 10 if quick else 40)
        what = (
            f"One session of {length} items asks a model that takes {SECONDS} s: the time that a "
            "run gains over one without memory"
        )
        walls, processors = gained(timed.wall), gained(timed.processor)
        notes = [_without(timed)]
        at_most = partial(Target, "at most")
        rows += [
            Row(
                *("pace", f"{what}.", "ms", walls, ratios(walls, SDK), at_most(0.8)),
                notes=notes,
                processor=timed.processor,
            ),
            Row(
                *("pace", f"{what}, of the processor.", "ms", processors),
                *(ratios(processors, SDK), at_most(1.0)),
            ),
        ]
    return rows


async def several_at_a_models_pace(folder: Path, quick: bool) -> list[Row]:
    """Eight sessions at once, each run of which sees the last three turns."""
    agent = null_agent(SHORTER)
    contenders: list[Contender] = [
        Lists(limit=ITEMS),
        SDKSQLite(folder, limit=ITEMS),
        Ours(folder, window=last_turns(TURNS)),
    ]
    async with AsyncExitStack() as stack:
        work: dict[str, Callable[[], Awaitable[Any]]] = {
            NOTHING: lambda: asyncio.gather(*(Runner.run(agent, QUESTION) for _ in range(8)))
        }
        for contender in contenders:
            stack.push_async_callback(contender.close)
            keepers = [contender.keeper(f"several-{at}") for at in range(8)]
            work[contender.name] = partial(_all_run, keepers, agent)
        timed = await Timed(work).measure(10 if quick else 40, warm=4)
    each = {name: [one / 8 for one in series] for name, series in timed.processor.items()}
    more = gained(each)
    what = (
        f"Eight sessions at once ask a model that takes {SHORTER} s and see the last {TURNS} turns "
        f"(SQLiteSession: a limit of {ITEMS} items): the processor time that a run gains."
    )
    target = Target("at most", 1)
    return [Row("several", what, "ms", more, ratios(more, SDK), target, [_without(timed, each)])]


async def _all_run(keepers: list[Keeper], agent: Agent[Any]) -> None:
    await asyncio.gather(*(keeper.run(agent, QUESTION) for keeper in keepers))


async def alone(folder: Path, quick: bool) -> list[Row]:
    """One session whose model answers at once, by the length of its history."""
    rows = []
    for length, most in ((0, 0.8), (100, 0.85), (1_000, 0.95)):
        timed = await _alone(folder, length, null_agent(), 30 if quick else 150)
        more = gained(timed.wall)
        what = (
            f"One session of {length:,} items asks a model that answers at once: the time that a "
            "run gains over one without memory."
        )
        rows.append(
            Row(
                *("alone", what, "ms", more, ratios(more, SDK), Target("at most", most)),
                notes=[_without(timed)],
                processor=timed.processor,
            )
        )
    return rows


async def _alone(folder: Path, length: int, agent: Agent[Any], rounds: int) -> Timed:
    """Runs in turn, each on a history of the same length."""
    folder = folder / f"{length}-{rounds}"
    folder.mkdir()
    given = history(length)
    async with AsyncExitStack() as stack:
        keepers: dict[str, Keeper] = {LIST: SDKKeeper(ListSession(given))}
        for contender in (SDKSQLite(folder), Ours(folder)):
            stack.push_async_callback(contender.close)
            keepers[contender.name] = contender.keeper("alone")
            if given:
                await keepers[contender.name].append(given)
        work: dict[str, Callable[[], Awaitable[Any]]] = {
            NOTHING: lambda: Runner.run(agent, QUESTION),
            **{name: partial(keeper.run, agent, QUESTION) for name, keeper in keepers.items()},
        }
        after = {name: partial(_forget_the_run, keepers[name]) for name in (SDK, OURS)}
        return await Timed(work, after).measure(rounds)


async def _forget_the_run(keeper: Keeper) -> None:
    await keeper.pop()
    await keeper.pop()


def _without(timed: Timed, processor: dict[str, list[float]] | None = None) -> str:
    """What a run without a memory takes, for a note."""
    wall = median(timed.wall[NOTHING])
    spent = median((processor or timed.processor)[NOTHING])
    return f"without memory a run takes {wall:.2f} ms, and {spent:.2f} ms of the processor"
