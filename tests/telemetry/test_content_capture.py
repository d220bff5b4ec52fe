"""Content leaves on opt-in only, and to where the opt-in says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from session_middleware.telemetry import TurnTelemetry

MakeTurn = Callable[..., TurnTelemetry]
VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
MESSAGES = {
    "gen_ai.input.messages": [
        {"role": "user", "parts": [{"type": "text", "content": "Hi, I'm Älice"}]}
    ],
    "gen_ai.output.messages": [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Hello"}],
            "finish_reason": "stop",
        }
    ],
}


def never() -> str:
    raise AssertionError("content was asked for")


@pytest.mark.parametrize("mode", [None, "", "NO_CONTENT", "true", "SPANS"])
def test_no_content_without_opt_in(
    make_turn: MakeTurn,
    otel: Any,
    events: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    mode: str | None,
) -> None:
    """Unset, off, or a word nobody knows: content is not even asked for."""
    if mode is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, mode)
    turn = make_turn()
    turn.start()
    turn.end("completed", input_text=never, output_text=never)
    attributes = otel.span("session_turn chat").attributes
    assert not {"input.value", "output.value", *MESSAGES} & set(attributes)
    assert "telemetry_failed" not in {event["event"] for event in events}


@pytest.mark.parametrize("mode", ["SPAN_ONLY", "SPAN_AND_EVENT", "span_only"])
def test_content_on_the_root_span(
    make_turn: MakeTurn, otel: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The root span has the texts, plain and as messages, and errors their message."""
    monkeypatch.setenv(VARIABLE, mode)
    turn = make_turn()
    turn.start()
    turn.end(
        "failed",
        ValueError("it said so"),
        input_text=lambda: "Hi, I'm Älice",
        output_text=lambda: "Hello",
    )
    root = otel.span("session_turn chat")
    assert root.attributes["input.value"] == "Hi, I'm Älice"
    assert root.attributes["output.value"] == "Hello"
    assert {key: json.loads(root.attributes[key]) for key in MESSAGES} == MESSAGES
    (exception,) = root.events
    assert exception.attributes["exception.message"] == "it said so"


def test_what_there_is_not_is_left_out(
    make_turn: MakeTurn, otel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that failed before it had an output has no output."""
    monkeypatch.setenv(VARIABLE, "SPAN_ONLY")
    turn = make_turn()
    turn.start()
    turn.end("cancelled", input_text=lambda: "Hi")
    attributes = otel.span("session_turn chat").attributes
    assert attributes["input.value"] == "Hi"
    assert "output.value" not in attributes
    assert "gen_ai.output.messages" not in attributes


def test_content_that_cannot_be_had_costs_nothing_else(
    make_turn: MakeTurn,
    otel: Any,
    events: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a text raises, the span ends as it should, and the fault is logged at debug."""
    monkeypatch.setenv(VARIABLE, "SPAN_ONLY")
    turn = make_turn()
    turn.start()
    turn.end("completed", new_items=2, input_text=never)
    assert otel.span("session_turn chat").attributes["session_middleware.new_item.count"] == 2
    (failed,) = [event for event in events if event["event"] == "telemetry_failed"]
    assert (failed["log_level"], failed["error_type"]) == ("debug", "AssertionError")


@pytest.mark.parametrize(("mode", "on_span"), [("EVENT_ONLY", False), ("SPAN_AND_EVENT", True)])
def test_content_as_an_event(mode: str, on_span: bool) -> None:
    """The event goes through the global logger provider, in the turn's trace, with the session."""
    program = f"""
import json, os
os.environ["{VARIABLE}"] = "{mode}"
from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs import export as logs
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from session_middleware.telemetry import Telemetry, TurnTelemetry

exporter = getattr(logs, "InMemoryLogRecordExporter", None) or logs.InMemoryLogExporter
kept = exporter()
provider = LoggerProvider()
provider.add_log_record_processor(logs.SimpleLogRecordProcessor(kept))
_logs.set_logger_provider(provider)
spans = InMemorySpanExporter()
tracing = TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracing)

turn = TurnTelemetry(Telemetry(), "chat", "alice", "sqlite")
turn.start()
turn.end("completed", input_text=lambda: "Hi, I'm Älice", output_text=lambda: "Hello")
(entry,) = kept.get_finished_logs()
record = entry.log_record
(span,) = spans.get_finished_spans()
print(json.dumps({{
    "event": record.event_name,
    "same_trace": record.trace_id == span.context.trace_id,
    "attributes": dict(record.attributes),
    "on_span": "input.value" in span.attributes,
}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["event"] == "session_middleware.turn.content"
    assert seen["same_trace"]
    assert seen["on_span"] is on_span
    assert seen["attributes"].pop("session.id") == "alice"
    assert seen["attributes"].pop("gen_ai.conversation.id") == "alice"
    assert {key: json.loads(value) for key, value in seen["attributes"].items()} == MESSAGES
