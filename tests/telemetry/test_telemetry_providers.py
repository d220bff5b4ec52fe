"""Where telemetry goes: the global providers at the time of the turn; and that it never raises."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from session_middleware.telemetry import Telemetry, TurnTelemetry
from tests.support.programs import Programs


def test_the_global_providers_are_found_at_run_time(programs: Programs) -> None:
    """Providers set after the import, and after a first turn without any, get the next turns."""
    program = """
import json
from session_middleware.telemetry import Telemetry, TurnTelemetry

def turn(session_id):
    turn = TurnTelemetry(Telemetry(), "chat", session_id, "sqlite")
    turn.start()
    with turn.attached(), turn.operation("search_memory"):
        pass
    turn.end("completed")

turn("before")
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
turn("after")
(resource,) = reader.get_metrics_data().resource_metrics
print(json.dumps({
    "spans": [(s.name, s.attributes["session.id"]) for s in spans.get_finished_spans()],
    "metrics": sorted(m.name for scope in resource.scope_metrics for m in scope.metrics),
}))
"""
    done = programs.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "spans": [["search_memory", "after"], ["session_turn chat", "after"]],
        "metrics": [
            "session_middleware.memory.operation.duration",
            "session_middleware.turn.active",
            "session_middleware.turn.duration",
        ],
    }


def test_importing_needs_the_api_only() -> None:
    """The package's telemetry imports and runs where opentelemetry-sdk is not installed."""
    program = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.sdk.trace"] = None
from session_middleware import telemetry
turn = telemetry.TurnTelemetry(telemetry.Telemetry(), "chat", "alice", "sqlite")
turn.start()
turn.end("completed")
try:
    telemetry.SessionSpanProcessor
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MissingExtra ")
    assert "pip install 'session-middleware[otel]'" in done.stdout


def test_a_provider_is_asked_once_for_all_turns(otel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracers and instruments are made with the first turn, because providers remember each."""
    asked: list[str] = []
    for provider, name in (
        (otel.tracer_provider, "get_tracer"),
        (otel.meter_provider, "get_meter"),
    ):
        made = getattr(provider, name)

        def get(*args: Any, _made: Any = made, _name: str = name) -> Any:
            asked.append(_name)
            return _made(*args)

        monkeypatch.setattr(provider, name, get)
    for _ in range(3):
        settings = Telemetry(otel.tracer_provider, otel.meter_provider)
        turn = TurnTelemetry(settings, "chat", "alice", "sqlite")
        turn.start()
        turn.end("completed")
    assert sorted(asked) == ["get_meter", "get_tracer"]
    assert len(otel.spans) == 3


def test_a_provider_that_is_done_with_is_let_go() -> None:
    """What is kept per provider does not keep the provider."""
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    meter_provider = MeterProvider(shutdown_on_exit=False)
    settings = Telemetry(tracer_provider=tracer_provider, meter_provider=meter_provider)
    turn = TurnTelemetry(settings, "chat", "alice", "sqlite")
    turn.start()
    turn.end("completed")
    gone = weakref.ref(tracer_provider), weakref.ref(meter_provider)
    meter_provider.shutdown()
    del turn, settings, tracer_provider, meter_provider
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


@dataclass
class Delegating:
    """A provider that hands on to another; a dataclass, so it compares and cannot be hashed."""

    provider: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.provider, name)


def test_a_provider_that_cannot_be_hashed_is_a_provider(otel: Any) -> None:
    """Some libraries put such a one in front of the SDK's: its turns are traced and measured."""
    settings = Telemetry(Delegating(otel.tracer_provider), Delegating(otel.meter_provider))
    for _ in range(2):
        turn = TurnTelemetry(settings, "chat", "alice", "sqlite")
        turn.start()
        turn.end("completed")
    assert [span.name for span in otel.spans] == ["session_turn chat"] * 2
    (duration,) = otel.metrics["session_middleware.turn.duration"]
    assert duration.count == 2


# --- failures ------------------------------------------------------------------------------


class Broken:
    """Anything of OpenTelemetry, after ``good`` calls of which every one raises."""

    def __init__(self, good: int = 0) -> None:
        self.calls = good

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls -= 1
            if self.calls < 0:
                raise RuntimeError(f"{name} is broken")
            return self

        return call


def tell_everything(turn: TurnTelemetry) -> None:
    turn.start()
    with turn.attached():
        with turn.waiting():
            turn.contended(1)
        turn.acquired(2)
        with turn.operation("search_memory") as operation:
            operation.count = 1
        turn.history(1, 2, "d")
        turn.trimmed(1)
        turn.repaired({"orphan_output": 1})
        turn.sdk_trace("trace_1", None)
        turn.sdk_trace("trace_2", None)
        turn.event("no_run_intercepted")
        turn.reported("tool_call", tool="t")
        with pytest.raises(LookupError), turn.operation("create_memory"):
            raise LookupError
    turn.recording  # noqa: B018 - asking must not raise either
    assert turn.trace_metadata()["session_id"] == "alice"
    turn.end("failed", RuntimeError("x"))


@pytest.mark.parametrize("good", range(12))
def test_a_broken_provider_never_reaches_the_run(events: list[dict[str, Any]], good: int) -> None:
    """Wherever a provider begins to raise, the turn goes on and the fault is logged at debug."""
    settings = Telemetry(tracer_provider=Broken(good), meter_provider=Broken(good))
    tell_everything(TurnTelemetry(settings, "chat", "alice", "sqlite"))
    failed = [event for event in events if event["event"] == "telemetry_failed"]
    assert failed
    assert {event["log_level"] for event in failed} == {"debug"}
    assert "turn_completed" in {event["event"] for event in events}


def test_broken_tracing_leaves_metrics_whole(otel: Any) -> None:
    """One half that fails does not take the other with it."""
    settings = Telemetry(tracer_provider=Broken(), meter_provider=otel.meter_provider)
    tell_everything(TurnTelemetry(settings, "chat", "alice", "sqlite"))
    assert [p.value for p in otel.metrics["session_middleware.turn.active"]] == [0, 0]
    assert [p.count for p in otel.metrics["session_middleware.lock.wait.duration"]] == [1]
    assert [p.count for p in otel.metrics["session_middleware.turn.duration"]] == [1]
    assert len(otel.metrics["session_middleware.memory.operation.duration"]) == 2


def test_broken_metrics_leave_tracing_whole(otel: Any) -> None:
    """And the other way round: the tree is complete."""
    settings = Telemetry(tracer_provider=otel.tracer_provider, meter_provider=Broken(10))
    tell_everything(TurnTelemetry(settings, "chat", "alice", "sqlite"))
    assert [span.name for span in otel.spans] == [
        "wait_for_session",
        "search_memory",
        "create_memory",
        "session_turn chat",
    ]


def test_a_broken_log_never_reaches_the_run(
    make_turn: Callable[..., TurnTelemetry], otel: Any
) -> None:
    """An application whose log processor raises still gets its answer and its spans."""

    def broken(logger: Any, method: str, event: Any) -> Any:
        raise RuntimeError("no log today")

    structlog.configure(processors=[broken])
    try:
        tell_everything(make_turn("alice"))
    finally:
        structlog.reset_defaults()
    root = otel.span("session_turn chat")
    assert root.attributes["session_middleware.turn"] == 2
    assert root.attributes["session_middleware.history.item_count"] == 1
