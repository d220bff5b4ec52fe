"""Log events: levels and fields, through the application's structlog or the standard library."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from session_middleware import SessionBusy
from session_middleware.telemetry import Telemetry, TurnTelemetry, add_trace_context

MakeTurn = Callable[..., TurnTelemetry]


@pytest.fixture
def stdlib_logger() -> Iterator[logging.Logger]:
    """The standard library's logger, as it was before once the test is over."""
    logger = logging.getLogger("session_middleware")
    level, handlers = logger.level, list(logger.handlers)
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def a_whole_turn(turn: TurnTelemetry) -> None:
    turn.start()
    with turn.waiting():
        turn.contended(6)
    turn.acquired(7)
    with turn.operation("search_memory"):
        pass
    turn.history(12, 345, None)
    turn.trimmed(4)
    turn.repaired({"orphan_output": 1})
    turn.event("outer_trace_group_mismatch", group_id="other")
    turn.event("no_run_intercepted")
    turn.event("items_saved", count=2, run=1)
    turn.event("load_failed", error_type="OSError")
    turn.event("save_failed", error_type="OSError")
    turn.end("failed", OSError("what Alice said"), new_items=2)


def test_events_have_their_levels(make_turn: MakeTurn, events: list[dict[str, Any]]) -> None:
    """Each event of a turn comes once, in order, at its level."""
    a_whole_turn(make_turn())
    assert [(event["log_level"], event["event"]) for event in events] == [
        ("warning", "lock_contended"),
        ("debug", "turn_started"),
        ("debug", "history_loaded"),
        ("debug", "history_trimmed"),
        ("warning", "history_repaired"),
        ("debug", "outer_trace_group_mismatch"),
        ("warning", "no_run_intercepted"),
        ("debug", "items_saved"),
        ("error", "load_failed"),
        ("error", "save_failed"),
        ("warning", "turn_completed"),
    ]


def test_events_carry_the_session_the_turn_and_the_facts(
    make_turn: MakeTurn, events: list[dict[str, Any]]
) -> None:
    """Every event names the session, and the turn once it has a number; none has content."""
    a_whole_turn(make_turn())
    fields = {event["event"]: event for event in events}
    assert {event["session_id"] for event in events} == {"user_alice"}
    assert {event.get("turn") for event in events[1:]} == {7}
    assert fields["lock_contended"]["other_turn"] == 6
    assert 0 < fields["turn_started"]["waited"] < fields["turn_completed"]["duration"]
    assert fields["turn_started"]["turn_name"] == "chat"
    assert (fields["history_loaded"]["items"], fields["history_loaded"]["size"]) == (12, 345)
    assert fields["history_trimmed"]["items"] == 4
    assert fields["history_repaired"]["repairs"] == "orphan_output: 1"
    assert (fields["items_saved"]["count"], fields["items_saved"]["run"]) == (2, 1)
    assert fields["load_failed"]["error_type"] == "OSError"
    assert fields["turn_completed"]["outcome"] == "failed"
    assert fields["turn_completed"]["error_type"] == "OSError"
    assert fields["turn_completed"]["new_items"] == 2
    assert "Alice said" not in str(events)


def test_what_a_window_left_unread_is_told_without_a_number(
    make_turn: MakeTurn, otel: Any, events: list[dict[str, Any]]
) -> None:
    """Where older turns were not even read, the trim is told, its size is not made up."""
    turn = make_turn()
    turn.start()
    turn.trimmed(None)
    turn.trimmed(0)
    turn.end("completed")
    assert [(e["event"], e.get("items")) for e in events[:-1]] == [("history_trimmed", None)]
    assert [p.value for p in otel.metrics["session_middleware.history.trims"]] == [1]
    root = otel.span("session_turn chat")
    assert "session_middleware.history.trimmed_count" not in root.attributes


def test_entries_that_cannot_be_read_are_a_repair(
    make_turn: MakeTurn, events: list[dict[str, Any]]
) -> None:
    """A history with corrupt entries is told as repaired, with or without other repairs."""
    turn = make_turn()
    turn.start()
    turn.repaired({}, corrupt=2)
    turn.repaired({"orphan_output": 1}, corrupt=2)
    turn.repaired({}, corrupt=0)
    assert [event["repairs"] for event in events] == [
        "corrupt_entry: 2",
        "orphan_output: 1, corrupt_entry: 2",
    ]
    turn.end("completed")


def test_unconfigured_nothing_is_printed(
    make_turn: MakeTurn, capsys: pytest.CaptureFixture[str]
) -> None:
    """An application that configured no logging hears nothing, errors included."""
    assert not structlog.is_configured()
    a_whole_turn(make_turn())
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_bare_program_hears_nothing() -> None:
    """In a fresh interpreter: importing adds no handler, and a failing turn prints nothing."""
    program = """
import logging
from session_middleware import SessionBusy
from session_middleware.telemetry import Telemetry, TurnTelemetry
assert not logging.getLogger("session_middleware").handlers
turn = TurnTelemetry(Telemetry(), "chat", "alice", "sqlite")
turn.start()
turn.contended(1)
turn.event("save_failed", error_type="OSError")
turn.end("failed", OSError())
import structlog
assert not structlog.is_configured()
assert not logging.getLogger().handlers
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_standard_library_gets_the_events_when_it_asks(
    make_turn: MakeTurn,
    otel: Any,
    stdlib_logger: logging.Logger,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without structlog configured, its records have the fields as attributes, and the trace."""
    caplog.set_level(logging.DEBUG, logger="session_middleware")
    a_whole_turn(make_turn())
    records = {vars(record)["event"]: record for record in caplog.records}
    assert records["lock_contended"].levelno == logging.WARNING
    assert records["turn_started"].levelno == logging.DEBUG
    assert records["save_failed"].levelno == logging.ERROR
    told = vars(records["items_saved"])
    assert (told["session_id"], told["turn"], told["count"], told["run"]) == ("user_alice", 7, 2, 1)
    root = otel.span("session_turn chat")
    assert told["trace_id"] == trace.format_trace_id(root.context.trace_id)
    assert told["span_id"] == trace.format_span_id(root.context.span_id)
    assert (
        records["items_saved"]
        .getMessage()
        .startswith("items_saved session_id='user_alice' turn=7 count=2 run=1 trace_id=")
    )
    assert {record.name for record in caplog.records} == {"session_middleware"}


def test_the_standard_librarys_level_is_respected(
    make_turn: MakeTurn, stdlib_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """At level error, only errors come."""
    caplog.set_level(logging.ERROR, logger="session_middleware")
    a_whole_turn(make_turn())
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_a_turn_is_one_line_at_info(
    make_turn: MakeTurn, stdlib_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """At level info a turn that went well is told in one line, with what an operator asks for."""
    caplog.set_level(logging.INFO, logger="session_middleware")
    turn = make_turn()
    turn.start()
    turn.acquired(3)
    turn.history(12, None, None)
    turn.trimmed(4)
    turn.event("items_saved", count=2, run=1)
    turn.end("completed", new_items=2)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    told = vars(record)
    assert (told["event"], told["session_id"], told["turn"]) == ("turn_completed", "user_alice", 3)
    assert (told["outcome"], told["new_items"]) == ("completed", 2)
    assert told["duration"] > told["waited"] == 0


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        *((outcome, "info") for outcome in ("completed", "cancelled", "awaiting_approval")),
        *((outcome, "info") for outcome in ("busy", "duplicate", "in_progress")),
        *((outcome, "warning") for outcome in ("failed", "abandoned", "forgotten")),
    ],
)
def test_trouble_is_told_at_warning(
    make_turn: MakeTurn, events: list[dict[str, Any]], outcome: str, level: str
) -> None:
    """A turn that failed, lost its session or went on without memory is no routine."""
    turn = make_turn()
    turn.start()
    turn.end(outcome, OSError())
    assert [(event["log_level"], event["outcome"]) for event in events] == [(level, outcome)]


def test_giving_up_after_a_wait_is_trouble(
    make_turn: MakeTurn, events: list[dict[str, Any]]
) -> None:
    """Unlike a refusal at once, which the caller asked for."""
    turn = make_turn()
    turn.start()
    with turn.waiting():
        turn.contended(6)
    turn.end("busy", SessionBusy("busy", turn=6))
    assert (events[-1]["log_level"], events[-1]["outcome"]) == ("warning", "busy")
    assert (events[-1]["error_type"], events[-1]["other_turn"]) == ("SessionBusy", 6)


def test_waiting_behind_a_turn_of_the_same_process_is_routine(
    make_turn: MakeTurn, events: list[dict[str, Any]]
) -> None:
    """Two messages in a row are told at debug; a turn of another process at warning, once."""
    for here in (True, False):
        turn = make_turn()
        turn.start()
        for _ in range(3):
            turn.contended(6, here=here)
    levels = [event["log_level"] for event in events if event["event"] == "lock_contended"]
    assert levels == ["debug", "warning"]


def test_structlog_may_render_to_records(
    make_turn: MakeTurn, caplog: pytest.LogCaptureFixture, stdlib_logger: logging.Logger
) -> None:
    """No field of any event has the name of an attribute of a record."""
    caplog.set_level(logging.DEBUG, logger="session_middleware")
    structlog.configure(
        processors=[add_trace_context, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        a_whole_turn(make_turn())
    finally:
        structlog.reset_defaults()
    messages = [record.getMessage() for record in caplog.records]
    assert (len(messages), messages[-1]) == (11, "turn_completed")
    assert vars(caplog.records[-1])["outcome"] == "failed"


def test_configuring_structlog_later_takes_effect(
    make_turn: MakeTurn, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """Nothing is bound beforehand: a turn logs to what is configured when it logs."""
    turn = make_turn()
    turn.start()
    turn.acquired(1)
    events = request.getfixturevalue("events")
    turn.end("completed")
    assert [event["event"] for event in events] == ["turn_completed"]
    assert capsys.readouterr().out == ""


def test_the_trace_can_be_added_to_every_event(make_turn: MakeTurn, otel: Any) -> None:
    """With the shipped processor, each event has the trace of its turn, attached or not."""
    captured = structlog.testing.LogCapture()
    structlog.configure(processors=[add_trace_context, captured])
    try:
        turn = make_turn()
        turn.start()
        turn.acquired(1)
        turn.end("completed")
    finally:
        structlog.reset_defaults()
    span_id = trace.format_span_id(otel.span("session_turn chat").context.span_id)
    assert [(e["trace_id"], e["span_id"]) for e in captured.entries] == [
        (turn.otel_trace_id, span_id)
    ] * 2


def test_without_a_span_the_processor_adds_nothing() -> None:
    """An event outside any trace stays as it is, and keys that are there already win."""
    assert add_trace_context(None, "info", {"event": "x"}) == {"event": "x"}
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    with trace.use_span(span):
        assert add_trace_context(None, "info", {"trace_id": "mine"}) == {
            "trace_id": "mine",
            "span_id": "0000000000000002",
        }


def test_telemetry_is_made_with_what_can_work() -> None:
    """A provider without the method, or a mapper that is no function, fails at once."""
    for wrong in ({"tracer_provider": "otlp"}, {"meter_provider": 1}, {"session_id": "hash"}):
        with pytest.raises(TypeError, match="Telemetry"):
            Telemetry(**wrong)  # type: ignore[arg-type]
