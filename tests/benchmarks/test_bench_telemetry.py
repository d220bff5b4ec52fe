"""What telemetry costs a turn: its whole life under four kinds of provider.

    python tests/benchmarks/test_bench_telemetry.py

One life is start, attached, one search, two creates and the end, as the core tells them. The
figures are processor time, the best of several rounds; the last column compares with no provider
at all.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from time import process_time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from session_middleware.telemetry import Telemetry, TurnTelemetry

LIVES = 2_000
ROUNDS = 7


class Nowhere(SpanExporter):
    """Takes every span and keeps none, so that recording alone is measured."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def one_life(settings: Telemetry) -> None:
    """Tell one turn, as the core does."""
    turn = TurnTelemetry(settings, "chat", "user_alice", "sqlite")
    turn.start()
    with turn.attached():
        turn.acquired(1)
        with turn.operation("search_memory") as operation:
            operation.count = 20
        turn.history(20, None, None)
        for _ in range(2):
            with turn.operation("create_memory") as operation:
                operation.count = 2
            turn.event("items_saved", count=2, run=1)
    turn.end("completed", new_items=4)


def seconds_per_life(settings: Telemetry) -> float:
    """The best mean of several rounds."""
    one_life(settings)
    best = float("inf")
    for _ in range(ROUNDS):
        gc.collect()
        began = process_time()
        for _ in range(LIVES):
            one_life(settings)
        best = min(best, (process_time() - began) / LIVES)
    return best


def measure() -> dict[str, float]:
    """Seconds for one life, by kind of provider."""
    dropping = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    recording = TracerProvider(shutdown_on_exit=False)
    recording.add_span_processor(SimpleSpanProcessor(Nowhere()))
    metering = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    kinds: dict[str, Callable[[], Telemetry]] = {
        "no provider": Telemetry,
        "a sampler that drops": lambda: Telemetry(tracer_provider=dropping),
        "recording spans": lambda: Telemetry(tracer_provider=recording),
        "recording spans and metrics": lambda: Telemetry(recording, metering),
    }
    try:
        return {kind: seconds_per_life(make()) for kind, make in kinds.items()}
    finally:
        for provider in (dropping, recording, metering):
            provider.shutdown()


def report(figures: dict[str, float]) -> str:
    """The figures as a table: microseconds, and how many times no provider."""
    least = figures["no provider"]
    return "\n".join(
        f"{kind:30}{seconds * 1e6:9.1f} us{seconds / least:8.1f} x"
        for kind, seconds in figures.items()
    )


@pytest.mark.benchmark
def test_the_cost_of_telemetry(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what a turn's telemetry costs under each kind of provider."""
    figures = measure()
    with capsys.disabled():
        print(f"\n{report(figures)}")
    assert all(seconds > 0 for seconds in figures.values())


if __name__ == "__main__":
    logging.getLogger("session_middleware").setLevel(logging.WARNING)
    print(report(measure()))
