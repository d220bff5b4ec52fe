"""Several processes whose sessions share one file: ``python -m tests.benchmarks.processes ...``.

A process opens the memory, makes one run in each of its sessions, and says "ready". Told to go, it
makes the runs and prints JSON: how many were made, the seconds, and how many failed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from time import perf_counter

from agents import set_trace_processors, set_tracing_disabled

from .contenders import Keeper, Ours, SDKSQLite
from .measuring import OURS
from .subjects import QUESTION, null_agent

PROCESSES, SESSIONS = 4, 16


async def race(kind: str, folder: Path, each: int) -> tuple[int, float, int]:
    """Let the processes run at once; returns the runs made, the seconds, and those that failed."""
    command = (sys.executable, "-m", "tests.benchmarks.processes", kind, str(folder), str(each))
    pipe = asyncio.subprocess.PIPE
    racers = [
        await asyncio.create_subprocess_exec(
            *command, str(number), stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[2]
        )
        for number in range(PROCESSES)
    ]
    for racer in racers:
        if racer.stdout is None or (await racer.stdout.readline()).strip() != b"ready":
            raise RuntimeError(f"a process with {kind} did not start")
    began = perf_counter()
    said = await asyncio.gather(*(racer.communicate(b"go\n") for racer in racers))
    results = [json.loads(out) for out, _ in said]
    seconds = max(result["seconds"] for result in results)
    assert seconds <= perf_counter() - began
    return sum(one["made"] for one in results), seconds, sum(one["failed"] for one in results)


async def main(kind: str, folder: Path, each: int, number: str) -> None:
    agent = null_agent()
    contender = Ours(folder) if kind == OURS else SDKSQLite(folder)
    keepers = [contender.keeper(f"{number}-{at}") for at in range(SESSIONS)]
    made = failed = 0

    async def converse(keeper: Keeper, runs: int) -> None:
        nonlocal made, failed
        for _ in range(runs):
            try:
                await keeper.run(agent, QUESTION)
            except Exception:  # "database is locked": counted, and the next run is made
                failed += 1
            else:
                made += 1

    for keeper in keepers:
        await converse(keeper, 1)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    made = failed = 0
    began = perf_counter()
    await asyncio.gather(*(converse(keeper, each) for keeper in keepers))
    print(json.dumps({"made": made, "failed": failed, "seconds": perf_counter() - began}))
    await contender.close()


if __name__ == "__main__":
    set_trace_processors([])
    set_tracing_disabled(True)
    logging.getLogger("session_middleware").setLevel(logging.ERROR)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
