"""Where the time of one run goes, by what its session is: nothing, a list, the SDK's, or ours.

python -m tests.benchmarks.where

The list is the memory of the process and nothing more, so what it adds is the SDK's own work on a
history: no session can add less. Steps are timed from call to answer, in the same process and in
turns; medians in ms. Processor time is told apart by thread, and the calls of Python and C in the
thread of the loop are counted.
"""

from __future__ import annotations

import asyncio
import cProfile
import functools
import gc
import pstats
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any

from agents import Runner, SQLiteSession, set_trace_processors, set_tracing_disabled

from session_middleware import SQLiteSessionMemory, history
from session_middleware._turns import run_session as _run

from .contenders import ListSession, Ours, SDKSQLite
from .subjects import QUESTION, null_agent
from .subjects import history as items_of

SESSIONS, SHARED_ROUNDS = 64, 10
ROUNDS = {0: 200, 100: 100, 1_000: 30}
PACES = {0.0: 200, 0.3: 40}
COUNTED = 20

Runs = dict[str, Callable[[], Awaitable[Any]]]
"""The run of each contender."""

STEPS: list[tuple[str, Any, str]] = [
    ("SQLiteSession.get_items", SQLiteSession, "get_items"),
    ("SQLiteSession.add_items", SQLiteSession, "add_items"),
    ("acquire: input stored, short history read", SQLiteSessionMemory, "acquire"),
    ("load of a longer one", SQLiteSessionMemory, "load_turns"),
    ("store the answer, end the turn", SQLiteSessionMemory, "write_turn"),
    ("look for faults when it is loaded", history, "repair"),
    ("look for faults before the model", _run, "repair"),
]


@contextmanager
def timed(found: dict[str, list[float]]) -> Iterator[None]:
    """Every step's times, by its name, for the length of the block."""
    originals = [(owner, name, getattr(owner, name)) for _, owner, name in STEPS]
    for (what, owner, name), (_, _, original) in zip(STEPS, originals, strict=True):
        setattr(owner, name, _timing(original, found.setdefault(what, [])))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _timing(step: Callable[..., Any], took: list[float]) -> Callable[..., Any]:
    if not asyncio.iscoroutinefunction(step):

        @functools.wraps(step)
        def plain(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            try:
                return step(*args, **kwargs)
            finally:
                took.append((perf_counter() - began) * 1000)

        return plain

    @functools.wraps(step)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            return await step(*args, **kwargs)
        finally:
            took.append((perf_counter() - began) * 1000)

    return awaited


@asynccontextmanager
async def contenders(
    folder: Path, length: int, seconds: float = 0.0
) -> AsyncIterator[tuple[Runs, Callable[[str], Awaitable[None]]]]:
    """A run of each on a history of that length, and what takes back what a run has stored.

    Args:
        seconds: how long the model takes.
    """
    agent = null_agent(seconds)
    ours, sdk = Ours(folder), SDKSQLite(folder)
    session_id = f"{length} {seconds}"
    keepers = {"ours": ours.keeper(session_id), "SQLiteSession": sdk.keeper(session_id)}
    given = items_of(length)
    for keeper in keepers.values():
        if given:
            await keeper.append(given)

    async def take_back(name: str) -> None:
        if name in keepers:
            await keepers[name].pop()
            await keepers[name].pop()

    yield (
        {
            "no session": lambda: Runner.run(agent, QUESTION),
            "list": lambda: Runner.run(agent, QUESTION, session=ListSession(given)),
            **{name: functools.partial(keepers[name].run, agent, QUESTION) for name in keepers},
        },
        take_back,
    )
    await ours.close()
    await sdk.close()


async def measure(folder: Path, length: int) -> dict[str, float]:
    """What runs on a history of that length gain, and the steps of which."""
    took: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    async with contenders(folder, length) as (runs, take_back):
        for _ in range(ROUNDS[length]):
            for name, run in runs.items():
                with timed(steps):
                    began = perf_counter()
                    await run()
                    took.setdefault(name, []).append((perf_counter() - began) * 1000)
                await take_back(name)
    least = median(took.pop("no session"))
    gained = {f"a run gains: {name}": median(series) - least for name, series in took.items()}
    return {
        "a run without a session": least,
        **gained,
        **{what: median(series) for what, series in steps.items() if series},
    }


async def by_thread(folder: Path, seconds: float) -> dict[str, tuple[float, float]]:
    """The processor time that a run gains in the loop's thread, and in the others, in ms."""
    spent: dict[str, list[tuple[float, float]]] = {}
    async with contenders(folder, 0, seconds) as (runs, take_back):
        for _ in range(PACES[seconds]):
            for name, run in runs.items():
                whole, own = process_time(), thread_time()
                await run()
                own = thread_time() - own
                spent.setdefault(name, []).append((own, process_time() - whole - own))
                await take_back(name)
    found = {
        name: [median(series) * 1000 for series in zip(*both, strict=True)]
        for name, both in spent.items()
    }
    here, others = found.pop("no session")
    return {name: (both[0] - here, both[1] - others) for name, both in found.items()}


async def calls(folder: Path) -> dict[str, float]:
    """The calls of Python and C functions in the loop's thread that a run makes beyond a list's."""
    counted: dict[str, float] = {}
    async with contenders(folder, 0) as (runs, take_back):
        for name, run in runs.items():
            await run()  # what is made once is made
            await take_back(name)
            profile = cProfile.Profile()
            for _ in range(COUNTED):
                with profile:
                    await run()
                await take_back(name)
            found: Any = pstats.Stats(profile)
            counted[name] = found.total_calls / COUNTED
    return {name: counted[name] - counted["list"] for name in ("ours", "SQLiteSession")}


async def at_once(folder: Path) -> dict[str, float]:
    """What a run takes of the wall clock where 64 sessions make runs at once, in ms."""
    agent = null_agent()
    ours, sdk = Ours(folder), SDKSQLite(folder)
    took: dict[str, list[float]] = {}
    for number in range(SHARED_ROUNDS):
        names = [f"{number}-{at}" for at in range(SESSIONS)]
        lists = [ListSession([], keeps=True) for _ in names]
        all_runs: dict[str, list[Callable[[], Awaitable[Any]]]] = {
            "no session": [lambda: Runner.run(agent, QUESTION) for _ in names],
            "list": [
                functools.partial(Runner.run, agent, QUESTION, session=one)  # type: ignore[arg-type]
                for one in lists
            ],
            "ours": [functools.partial(ours.keeper(name).run, agent, QUESTION) for name in names],
            "SQLiteSession": [
                functools.partial(sdk.keeper(name).run, agent, QUESTION) for name in names
            ],
        }
        for name, runs in all_runs.items():
            gc.collect()
            began = perf_counter()
            await asyncio.gather(*(_six_times(run) for run in runs))
            spent = (perf_counter() - began) * 1000 / (SESSIONS * 6)
            if number:  # in the first of them connections are opened
                took.setdefault(name, []).append(spent)
    await ours.close()
    await sdk.close()
    return {name: median(series) for name, series in took.items()}


async def _six_times(run: Callable[[], Awaitable[Any]]) -> None:
    for _ in range(6):
        await run()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shared = await at_once(Path(folder))
    print(f"| {SESSIONS} sessions at once | " + " | ".join(shared) + " |")
    print("|---|" + "---|" * len(shared))
    print("| ms a run | " + " | ".join(f"{spent:.2f}" for spent in shared.values()) + " |")
    best = shared["SQLiteSession"]
    print("| runs/s, over SQLiteSession | ", end="")
    print(" | ".join(f"{best / spent:.2f}" for spent in shared.values()) + " |\n")
    with tempfile.TemporaryDirectory() as folder:
        columns = {length: await measure(Path(folder), length) for length in ROUNDS}
    print("| ms | " + " | ".join(f"{length:,} items" for length in columns) + " |")
    print("|---|" + "---|" * len(columns))
    rows = dict.fromkeys(what for column in columns.values() for what in column)
    for what in sorted(rows, key=lambda what: (what not in columns[0], 0)):
        cells = [f"{column[what]:.2f}" if what in column else "-" for column in columns.values()]
        print(f"| {what} | {' | '.join(cells)} |")
    print("\n| a run on no history gains, ms of the processor | list | ours | SQLiteSession |")
    print("|---|---|---|---|")
    for seconds in PACES:
        with tempfile.TemporaryDirectory() as folder:
            gains = await by_thread(Path(folder), seconds)
        for at, where in enumerate(("the loop's thread", "other threads")):
            cells = [f"{gain[at]:.2f}" for gain in gains.values()]
            print(f"| a model of {seconds} s, {where} | {' | '.join(cells)} |")
    with tempfile.TemporaryDirectory() as folder:
        counted = await calls(Path(folder))
    cells = [f"{count:,.0f}" for count in counted.values()]
    print(f"| calls in the loop's thread beyond a list's | 0 | {' | '.join(cells)} |")


if __name__ == "__main__":
    set_trace_processors([])
    set_tracing_disabled(True)
    asyncio.run(main())
