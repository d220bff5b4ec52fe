"""What a memory adds to one run: with it minus without, by the length of the history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from agents import Agent, Runner
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from session_middleware import last_items
from session_middleware.telemetry import Telemetry

from .contenders import Keeper, Ours, SDKSQLite
from .measuring import OURS, Row, Target, in_turns, processor_times, ratios
from .subjects import history, null_agent
from .test_bench_telemetry import Nowhere

QUESTION = "What is the weather in town 7?"


async def gains(folder: Path, quick: bool) -> list[Row]:
    """The cost that a run gains from a memory, by the length of its history."""
    return [
        await _gain(folder, length, quick, telemetry=None, most=0.8) for length in (0, 100, 1_000)
    ]


async def gains_recording(folder: Path, quick: bool) -> list[Row]:
    """The same while telemetry records every span and metric of ours."""
    with _recording() as telemetry:
        return [
            await _gain(folder, length, quick, telemetry=telemetry, most=1)
            for length in (0, 100, 1_000)
        ]


async def _gain(
    folder: Path, length: int, quick: bool, *, telemetry: Telemetry | None, most: float
) -> Row:
    each, rounds = (3, 10) if quick else (9, 25)
    agent = null_agent()
    processor: dict[str, list[float]] = {}

    async def without(number: int) -> float:
        spent = processor.setdefault("no memory", [])
        return await _median_of(each, lambda: Runner.run(agent, QUESTION), spent=spent)

    async with AsyncExitStack() as stack:
        measured: dict[str, Callable[[int], Awaitable[float]]] = {"no memory": without}
        for contender in (Ours(folder, telemetry=telemetry), SDKSQLite(folder)):
            stack.push_async_callback(contender.close)
            keeper = contender.keeper(f"gain-{length}-{telemetry is not None}")
            if length:
                await keeper.append(history(length))
            await _run_of(agent, keeper, 3)
            spent = processor.setdefault(contender.name, [])
            measured[contender.name] = _again(agent, keeper, each, spent)
        figures = await in_turns(measured, rounds)
    least = figures["no memory"]
    gained = {name: _gained(figures[name], least) for name in figures if name != "no memory"}
    return Row(
        "gain-recording" if telemetry else "gain",
        f"cost a run gains{' while telemetry records' if telemetry else ''}, {length:,} items",
        "ms",
        gained,
        ratios(gained),
        Target("at most", most),
        notes=[f"a run without memory: {median(least):.2f} ms", processor_times(processor)],
    )


async def window_on_20000(folder: Path, quick: bool) -> list[Row]:
    """A run that sees the last 48 items of 20,000, and one that sees those of 100."""
    each, rounds = (3, 5) if quick else (8, 11)
    agent = null_agent()
    async with AsyncExitStack() as stack:
        memory = Ours(folder, window=last_items(48))
        stack.push_async_callback(memory.close)
        measured: dict[str, Callable[[int], Awaitable[float]]] = {}
        for name, length in ((OURS, 20_000), ("the same on 100 items", 100)):
            keeper = memory.keeper(f"window-{length}")
            for start in range(0, length, 100):
                await keeper.append(history(100)[: length - start])
            measured[name] = _again(agent, keeper, each)
            await measured[name](-1)
        figures = await in_turns(measured, rounds)
    return [
        Row(
            "window",
            "run with last_items(48) on 20,000 items, over one on 100",
            "ms",
            figures,
            ratios(figures),
            Target("at most", 1.15),
        )
    ]


def _gained(series: Sequence[float], least: Sequence[float]) -> list[float]:
    """What the medians of five stretches of rounds have more than those without a memory.

    Single runs differ by more than what is looked for.
    """
    size = len(series) // 5
    starts = range(0, size * 5, size)
    return [median(series[at : at + size]) - median(least[at : at + size]) for at in starts]


def _again(
    agent: Agent[Any], keeper: Keeper, each: int, spent: list[float] | None = None
) -> Callable[[int], Awaitable[float]]:
    async def measure(number: int) -> float:
        return await _run_of(agent, keeper, each, spent)

    return measure


async def _run_of(
    agent: Agent[Any], keeper: Keeper, each: int, spent: list[float] | None = None
) -> float:
    """The median of some runs, in ms, each on a history of the same length."""

    async def forget_the_run() -> None:
        await keeper.pop()
        await keeper.pop()

    return await _median_of(each, lambda: keeper.run(agent, QUESTION), forget_the_run, spent)


async def _median_of(
    each: int,
    run: Callable[[], Awaitable[Any]],
    after: Callable[[], Awaitable[None]] | None = None,
    spent: list[float] | None = None,
) -> float:
    took = []
    for _ in range(each):
        began, worked = perf_counter(), process_time()
        await run()
        took.append((perf_counter() - began) * 1000)
        if spent is not None:
            spent.append((process_time() - worked) * 1000)
        if after is not None:
            await after()
    return median(took)


@contextmanager
def _recording() -> Iterator[Telemetry]:
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(Nowhere()))
    metering = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    try:
        yield Telemetry(tracing, metering)
    finally:
        tracing.shutdown()
        metering.shutdown()
