"""SessionSpanProcessor: other libraries' spans belong to the session too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.context import attach, detach, set_value

from session_middleware import SessionSpanProcessor
from session_middleware.telemetry import TurnTelemetry

KEYS = ("session.id", "gen_ai.conversation.id")


def test_spans_inside_a_turn_carry_the_session(
    make_turn: Callable[..., TurnTelemetry], otel: Any
) -> None:
    """Every span that starts in the turn gets both keys; those before and after get none."""
    otel.tracer_provider.add_span_processor(SessionSpanProcessor())
    tracer = otel.tracer_provider.get_tracer("another library")
    turn = make_turn("alice", mapper=str.upper)
    tracer.start_span("before").end()
    turn.start()
    with turn.attached(), tracer.start_as_current_span("chat gpt"):
        tracer.start_span("POST").end()
    tracer.start_span("after").end()
    turn.end("completed")

    for name in ("chat gpt", "POST"):
        assert [otel.span(name).attributes[key] for key in KEYS] == ["ALICE", "ALICE"]
    for name in ("before", "after"):
        assert not otel.span(name).attributes


def test_an_explicit_parent_context_decides(otel: Any) -> None:
    """A span that is given its context belongs to that context's session."""
    otel.tracer_provider.add_span_processor(SessionSpanProcessor())
    token = attach(set_value("session.id", "current"))
    try:
        given = set_value("session.id", "given")
        otel.tracer_provider.get_tracer("x").start_span("span", context=given).end()
    finally:
        detach(token)
    assert otel.span("span").attributes["session.id"] == "given"


def test_what_a_span_says_itself_is_left_alone(otel: Any) -> None:
    """A key that is there stays; a context value that is no text is ignored."""
    otel.tracer_provider.add_span_processor(SessionSpanProcessor())
    tracer = otel.tracer_provider.get_tracer("x")
    own = {"gen_ai.conversation.id": "conv_1"}
    tracer.start_span("own", set_value("session.id", "alice"), attributes=own).end()
    tracer.start_span("odd", set_value("session.id", 7)).end()
    assert dict(otel.span("own").attributes) == {
        "session.id": "alice",
        "gen_ai.conversation.id": "conv_1",
    }
    assert not otel.span("odd").attributes
