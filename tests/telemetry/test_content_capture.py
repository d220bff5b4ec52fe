"""Content leaves on opt-in only, and to where the opt-in says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from session_middleware.telemetry import Said, TurnTelemetry

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


def never() -> Said:
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
    turn.end("completed", said=never)
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
        said=lambda: Said("Hi, I'm Älice", "Hello"),
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
    turn.end("cancelled", said=lambda: Said("Hi"))
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
    turn.end("completed", new_items=2, said=never)
    assert otel.span("session_turn chat").attributes["session_middleware.new_item.count"] == 2
    (failed,) = [event for event in events if event["event"] == "telemetry_failed"]
    assert (failed["log_level"], failed["error_type"]) == ("debug", "AssertionError")


@pytest.mark.parametrize(("mode", "on_span"), [("EVENT_ONLY", False), ("SPAN_AND_EVENT", True)])
def test_content_as_an_event(
    make_turn: MakeTurn, otel: Any, monkeypatch: pytest.MonkeyPatch, mode: str, on_span: bool
) -> None:
    """The event goes to the application's loggers, in the turn's trace, with the session."""
    monkeypatch.setenv(VARIABLE, mode)
    kept = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(kept))
    monkeypatch.setattr("opentelemetry._logs.get_logger", provider.get_logger)
    turn = make_turn()
    turn.start()
    turn.end("completed", said=lambda: Said("Hi, I'm Älice", "Hello"))

    (entry,) = kept.get_finished_logs()
    root = otel.span("session_turn chat")
    assert entry.log_record.event_name == "session_middleware.turn.content"
    assert entry.log_record.trace_id == root.context.trace_id
    assert entry.log_record.span_id == root.context.span_id
    attributes = dict(entry.log_record.attributes)
    assert attributes.pop("session.id") == "user_alice"
    assert attributes.pop("gen_ai.conversation.id") == "user_alice"
    assert {key: json.loads(value) for key, value in attributes.items()} == MESSAGES
    assert ("input.value" in root.attributes) is on_span
    provider.shutdown()
