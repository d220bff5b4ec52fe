"""For how long the event loop stalls at most, while a memory does what takes long.

A probe sleeps for a millisecond again and again: what it oversleeps, other tasks could not run.
Other processes delay it as well, so the longest stall is told beside one of an idle loop, and
beside the longest time for which the loop's thread itself was at work between two looks. Python's
garbage collector is switched off meanwhile: one full collection looks at every object of the
process, with the interpreter held, whoever made them. How long one takes is told, and for turns
that wait also how long it takes with as many tasks that wait for an ``asyncio.Lock``.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter, thread_time

from session_middleware import SQLiteSessionMemory, session_scope

from .measuring import OURS, Row, Target
from .subjects import history

PAUSE = 0.001
MOST = 50


class Probe:
    """The longest stall, the longest work of the loop's thread, and how long it looked; in ms."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.worked = 0.0
        self.looked = 0.0

    async def look(self) -> None:
        began = woke = perf_counter()
        spent = thread_time()
        while True:
            await asyncio.sleep(PAUSE)
            before, woke = woke, perf_counter()
            spent_before, spent = spent, thread_time()
            self.longest = max(self.longest, (woke - before - PAUSE) * 1000)
            self.worked = max(self.worked, (spent - spent_before) * 1000)
            self.looked = (woke - began) * 1000


@asynccontextmanager
async def probed() -> AsyncIterator[Probe]:
    """Look for stalls for the length of the block."""
    probe = Probe()
    gc.collect()
    gc.disable()
    looking = asyncio.ensure_future(probe.look())
    await asyncio.sleep(0)
    try:
        yield probe
        await asyncio.sleep(2 * PAUSE)  # until the probe has looked after the last piece
    finally:
        gc.enable()
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def stalls(folder: Path, quick: bool) -> list[Row]:
    """50,000 items saved and loaded; a session that 10,000 turns wait for is handed on."""
    rounds = 2 if quick else 5
    items, waiters = history(50_000), 2_000 if quick else 10_000
    found: dict[str, list[Probe]] = {}
    async with SQLiteSessionMemory(folder / "stalls.db") as memory:
        for _ in range(rounds):
            async with probed() as idle:
                await asyncio.sleep(0.5)
            async with probed() as saving:
                await memory.save_session("long", items)
            async with probed() as loading:
                loaded = await memory.load_session("long")
            found.setdefault("50,000 items are saved", []).append(saving)
            found.setdefault("50,000 items are loaded", []).append(loading)
            found.setdefault("idle", []).append(idle)
        waiting = f"{waiters:,} turns wait for a session, and 200 of them get it in turn"
        collections = dict.fromkeys(found, f"a full collection takes {_collection():.0f} ms")
        del loaded
        least = _collection()
        handed_on, with_turns = await _handed_on(memory, waiters)
        found[waiting] = [handed_on]
        with_tasks = await _wait_for_a_lock(waiters)
        collections[waiting] = (
            f"a full collection takes {with_turns:.0f} ms while they wait, {with_tasks:.0f} ms "
            f"with as many tasks that wait for an asyncio.Lock, and {least:.0f} ms with none"
        )
    idle_for = [probe.longest for probe in found.pop("idle")]
    rows = []
    for what, probes in found.items():
        longest = [probe.longest for probe in probes]
        worked = max(probe.worked for probe in probes)
        whole = max(probe.looked for probe in probes)
        row = Row(
            "stalls",
            f"{what}: the longest for which the event loop stalls.",
            "ms",
            {OURS: longest, "an idle loop": idle_for},
            longest,
            Target("at most", MOST, "ms"),
            notes=[
                f"the loop's thread worked for {worked:.1f} ms at most in one piece, of "
                f"{whole:,.0f} ms in all; {collections[what]}"
            ],
        )
        rows.append(row)
    return rows


def _collection() -> float:
    """How long a full collection takes now, in ms; the second, when nothing is left to free."""
    gc.collect()
    began = perf_counter()
    gc.collect()
    return (perf_counter() - began) * 1000


async def _wait_for_a_lock(waiters: int) -> float:
    """How long a full collection takes while so many tasks wait for a lock of asyncio's, in ms."""
    lock = asyncio.Lock()

    async def wait() -> None:
        async with lock:
            pass

    async with lock:
        tasks = [asyncio.ensure_future(wait()) for _ in range(waiters)]
        await asyncio.sleep(0)
        took = _collection()
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return took


async def _handed_on(memory: SQLiteSessionMemory, waiters: int) -> tuple[Probe, float]:
    """Look while 200 of so many turns get their session; also a collection before that, in ms."""
    served = 0
    enough = asyncio.Event()

    async def wait() -> None:
        nonlocal served
        async with session_scope(
            "popular", memory=memory, max_waiting=waiters + 1, wait_timeout=600
        ):
            served += 1
            if served >= 200:
                enough.set()
                await asyncio.sleep(600)  # until it is cancelled: nobody else is served

    async with AsyncExitStack() as held:
        await held.enter_async_context(session_scope("popular", memory=memory))
        tasks = []
        for number in range(waiters):
            tasks.append(asyncio.ensure_future(wait()))
            if number % 20 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)  # off the clock: what was started has come to rest
        collection = _collection()
        async with probed() as probe:
            await held.aclose()
            await enough.wait()
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return probe, collection
