"""What must not grow: with the length of a session, with their number, with what is imported."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from .contenders import Ours
from .measuring import OURS, Row, Target, in_turns, ratios
from .subjects import null_agent, one_turn
from .very_long import fill

_ROOT = Path(__file__).parents[2]


async def append_to_a_million(folder: Path, quick: bool) -> list[Row]:
    """An append to a session of a million items, and to one of ten."""
    length, each, rounds = (100_000, 20, 5) if quick else (1_000_000, 40, 11)
    memory = Ours(folder)
    short, long = memory.keeper("short"), memory.keeper("long")
    await short.append(one_turn(1) + one_turn(2) + one_turn(3)[:2])
    fill(folder / "ours.db", "long", length)

    def appends(keeper: Any) -> Callable[[int], Awaitable[float]]:
        async def measure(number: int) -> float:
            began = perf_counter()
            for turn in range(each):
                await keeper.append(one_turn(turn))
            seconds = perf_counter() - began
            return seconds / each * 1000

        return measure

    measured = {OURS: appends(long), "the same on 10 items": appends(short)}
    for measure in measured.values():
        await measure(-1)
    figures = await in_turns(measured, rounds)
    await memory.close()
    what = f"4 items are appended to a session of {length:,} items, over one of 10."
    return [Row("append-long", what, "ms", figures, ratios(figures), Target("at most", 1.15))]


async def syncs_of_a_run(folder: Path, quick: bool) -> list[Row]:
    """How often one run flushes the file: counted, for a run of one model turn."""
    memory = Ours(folder)
    keeper = memory.keeper("counted")
    rows = []
    for answers, seconds in (("at once", 0.0), ("after a tenth of a second", 0.1)):
        counts = []
        for _ in range(5):
            before = memory.memory.stats()["synced"]
            await keeper.run(null_agent(seconds), "How often?")
            counts.append(float(memory.memory.stats()["synced"] - before))
        what = f"A run of one model turn that answers {answers}: commits that are flushed."
        rows.append(Row("syncs", what, "", {OURS: counts}, counts, Target("at most", 2, "")))
    await memory.close()
    return rows


async def many_sessions(folder: Path, quick: bool) -> list[Row]:
    """10,000 sessions used at once from one memory: what they take above 10 sessions."""
    number = 2_000 if quick else 10_000
    few, many = await _in_a_process(10), await _in_a_process(number)
    what = f"{number:,} sessions at once, above 10 of them: the peak of the process's "
    rows = []
    for name, unit, most in (("threads", "", 4), ("files", "", 20), ("memory", "MB", 50)):
        # Of threads and files all are counted; for memory only what many take above a few.
        value = many[name] - (few[name] if name == "memory" else 0)
        of = what if name == "memory" else f"{number:,} sessions at once: the process's "
        target = Target("at most", most, unit)
        rows.append(Row("many", f"{of}{name}.", unit, {OURS: [value]}, [value], target))
    rows[-1].notes.append(f"as many idle tasks of asyncio: {many['tasks']:.0f} MB")
    return rows


async def _in_a_process(number: int) -> dict[str, float]:
    counted: dict[str, float] = json.loads(
        await _python("-m", "tests.benchmarks.many", str(number))
    )
    return counted


async def importing(folder: Path, quick: bool) -> list[Row]:
    """What ``import session_middleware`` takes when ``agents`` is there already."""
    script = (
        "import agents, sys, time; before = set(sys.modules); began = time.perf_counter()\n"
        "import session_middleware; print((time.perf_counter() - began) * 1000)\n"
        "drivers = {'asyncpg', 'redis', 'sqlite3', 'aiosqlite'} & (set(sys.modules) - before)\n"
        "print(' '.join(sorted(drivers)))\n"
    )
    # As an installed package, whose modules were compiled before.
    compiled = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    compiled.pop("PYTHONDONTWRITEBYTECODE", None)
    await _python("-c", script, environment=compiled)
    took, drivers = [], ""
    for _ in range(3 if quick else 11):
        first, _, drivers = (await _python("-c", script, environment=compiled)).partition("\n")
        took.append(float(first))
    return [
        Row(
            "import",
            "`import session_middleware` after `import agents`.",
            "ms",
            {OURS: took},
            took,
            Target("at most", 50, "ms"),
            notes=[f"drivers imported with it: {drivers.strip() or 'none'}"],
        )
    ]


async def _python(*arguments: str, environment: Mapping[str, str] = os.environ) -> str:
    command = [sys.executable, *arguments]
    ran = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=_ROOT,
        env={**environment, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(arguments[:2])} failed: {ran.stderr}")
    return ran.stdout
