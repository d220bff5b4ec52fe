"""What a run pays for what a memory may do beside: telemetry, the journal, a window."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from agents import Runner, set_trace_processors, set_tracing_disabled
from agents.tracing.processor_interface import TracingProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from session_middleware import SQLiteSessionMemory, last_items, with_session_memory
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.sessions import counted

from .contenders import Ours
from .measuring import OURS, Row, Target, Timed, ratios
from .subjects import QUESTION, history, null_agent
from .test_bench_telemetry import Nowhere


async def recording(folder: Path, quick: bool) -> list[Row]:
    """The processor time that recording telemetry adds where the SDK traces anyway."""
    agent = null_agent()
    (folder / "plain").mkdir()
    with _recording() as telemetry:
        memories = {
            "telemetry that nobody records": Ours(folder / "plain"),
            OURS: Ours(folder, telemetry=telemetry),
        }
        sessions = {name: map(str, count()) for name in memories}

        async def run(name: str) -> None:
            await memories[name].keeper(next(sessions[name])).run(agent, QUESTION)

        async with AsyncExitStack() as stack:
            for memory in memories.values():
                stack.push_async_callback(memory.close)
            timed = await Timed({name: partial(run, name) for name in memories}).measure(
                50 if quick else 200
            )
    plain, recorded = timed.processor.values()
    what = (
        "A first run in a session, the SDK's own tracing on: the processor time that recording "
        "every span and metric of ours adds."
    )
    more = [mine - without for mine, without in zip(recorded, plain, strict=True)]
    target = Target("at most", 0.5, "ms")
    return [Row("recording", what, "ms", timed.processor, [median(more)], target)]


async def journal(folder: Path, quick: bool) -> list[Row]:
    """Runs with one tool call, with an idempotency key and without."""
    numbers = count()
    synced: dict[str, list[float]] = {}
    async with SQLiteSessionMemory(folder / "journal.db") as memory:

        async def run(name: str, **options: Any) -> None:
            agent = scripted_agent(call("pay"), assistant("paid"), tools=[counted("pay", [])])
            remembers = with_session_memory(Runner.run, memory=memory)
            before = memory.stats()["synced"]
            await remembers(agent, "Pay", session_id=f"s{next(numbers)}", **options)
            synced.setdefault(name, []).append(memory.stats()["synced"] - before)

        timed = await Timed(
            {
                "without a key": partial(run, "without a key"),
                OURS: partial(run, OURS, idempotency_key="k"),
            }
        ).measure(30 if quick else 150)
    what = (
        "A run with one tool call and an idempotency key, so that its journal is on the disk, over "
        "the same run without a key."
    )
    flushed = ", ".join(f"{name} {median(series):g}" for name, series in synced.items())
    return [
        Row(
            *("journal", what, "ms", timed.wall, _of_medians(timed.wall), Target("at most", 1.25)),
            notes=[f"flushed commits of a run: {flushed}"],
            processor=timed.processor,
        )
    ]


async def window_on_20000(folder: Path, quick: bool) -> list[Row]:
    """A run that sees the last 48 items of 20,000, and one that sees those of 100."""
    agent = null_agent()
    async with AsyncExitStack() as stack:
        memory = Ours(folder, window=last_items(48))
        stack.push_async_callback(memory.close)
        work: dict[str, Callable[[], Awaitable[Any]]] = {}
        after: dict[str, Callable[[], Awaitable[Any]]] = {}
        for name, length in ((OURS, 20_000), ("the same on 100 items", 100)):
            keeper = memory.keeper(f"window-{length}")
            for start in range(0, length, 100):
                await keeper.append(history(100)[: length - start])

            async def forget(keeper: Any = keeper) -> None:
                await keeper.pop()
                await keeper.pop()

            work[name], after[name] = partial(keeper.run, agent, QUESTION), forget
        timed = await Timed(work, after).measure(20 if quick else 100)
    what = "A run with last_items(48) in a session of 20,000 items, over one in a session of 100."
    target = Target("at most", 1.1)
    return [
        Row(
            *("window", what, "ms", timed.wall, _of_medians(timed.wall), target),
            processor=timed.processor,
        )
    ]


def _of_medians(series: dict[str, list[float]]) -> list[float]:
    """Ours by the other, by the medians of five stretches of rounds."""
    size = len(series[OURS]) // 5
    return ratios(
        {
            name: [median(own[at : at + size]) for at in range(0, 5 * size, size)]
            for name, own in series.items()
        }
    )


class _Unheard(TracingProcessor):
    """Hears what the SDK traces, and does nothing."""

    def on_trace_start(self, trace: Any) -> None: ...
    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...
    def on_span_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


@contextmanager
def _recording() -> Iterator[Telemetry]:
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(Nowhere()))
    metering = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    set_trace_processors([_Unheard()])
    set_tracing_disabled(False)
    try:
        yield Telemetry(tracing, metering)
    finally:
        set_tracing_disabled(True)
        set_trace_processors([])
        tracing.shutdown()
        metering.shutdown()
