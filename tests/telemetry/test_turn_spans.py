"""The spans of a turn: the tree, the attributes, and how success, failure and cancellation look."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,
    attach,
    detach,
    get_value,
    set_value,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from session_middleware.errors import MemoryUnavailable, SessionBusy
from session_middleware.telemetry import Telemetry, TurnTelemetry

MakeTurn = Callable[..., TurnTelemetry]
OPERATIONS = ["search_memory", "create_memory", "update_memory", "delete_memory"]


def exceptions(span: ReadableSpan) -> list[dict[str, Any]]:
    return [dict(event.attributes or {}) for event in span.events if event.name == "exception"]


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan) -> int:
    return span.context.span_id


def fail_in(turn: TurnTelemetry, operation: str, error: BaseException) -> None:
    with turn.operation(operation):
        raise error


# --- the tree ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networked", "kind"), [(False, SpanKind.INTERNAL), (True, SpanKind.CLIENT)]
)
def test_operations_are_children_of_the_turn(
    make_turn: MakeTurn, otel: Any, networked: bool, kind: SpanKind
) -> None:
    """A turn is an internal span; its operations are internal when local, client when networked."""
    turn = make_turn(networked=networked)
    turn.start()
    with turn.attached():
        for name in OPERATIONS:
            with turn.operation(name) as operation:
                operation.count = 3
    turn.end("completed")

    root = otel.span("session_turn chat")
    assert root.kind is SpanKind.INTERNAL
    assert root.parent is None
    for name in OPERATIONS:
        span = otel.span(name)
        assert (span.kind, parent_of(span)) == (kind, id_of(root))
        assert span.context.trace_id == root.context.trace_id
        assert dict(span.attributes) == {
            "session.id": "user_alice",
            "gen_ai.conversation.id": "user_alice",
            "gen_ai.operation.name": name,
            "gen_ai.memory.store.id": turn.backend,
            "gen_ai.memory.record.count": 3,
            "session_middleware.backend": turn.backend,
            "openinference.span.kind": "RETRIEVER" if name == "search_memory" else "CHAIN",
        }


def test_everything_that_is_known_of_a_turn_is_on_its_root(make_turn: MakeTurn, otel: Any) -> None:
    """The root span carries the session under both keys and the facts of the turn."""
    turn = make_turn(streaming=True)
    turn.start()
    assert turn.recording
    turn.acquired(7)
    turn.history(12, 3456, "d1gest")
    turn.trimmed(4)
    turn.repaired({"orphan_output": 2})
    turn.sdk_trace("trace_1", "group_1")
    turn.end("completed", new_items=5, usage={"requests": 2, "input_tokens": 90})

    root = otel.span("session_turn chat")
    assert dict(root.attributes) == {
        "session.id": "user_alice",
        "gen_ai.conversation.id": "user_alice",
        "openinference.span.kind": "CHAIN",
        "session_middleware.backend": "sqlite",
        "session_middleware.streaming": True,
        "session_middleware.turn": 7,
        "session_middleware.lock.wait_seconds": 0.0,
        "session_middleware.history.item_count": 12,
        "session_middleware.history.size_bytes": 3456,
        "session_middleware.history.digest": "d1gest",
        "session_middleware.history.trimmed_count": 4,
        "session_middleware.history.repairs": "orphan_output: 2",
        "session_middleware.sdk_trace_id": "trace_1",
        "session_middleware.sdk_group_id": "group_1",
        "session_middleware.new_item.count": 5,
        "session_middleware.usage.requests": 2,
        "session_middleware.usage.input_tokens": 90,
        "session_middleware.outcome": "completed",
    }
    assert root.instrumentation_scope.name == "session_middleware"
    assert not root.instrumentation_scope.schema_url
    assert not turn.recording


def test_the_turn_hangs_under_the_span_that_is_current_when_it_starts(
    make_turn: MakeTurn, otel: Any
) -> None:
    """A request's span stays the parent, and the trace's id is known while the turn runs."""
    turn = make_turn()
    with otel.tracer_provider.get_tracer("app").start_as_current_span("POST /chat") as request:
        turn.start()
    turn.end("completed")

    assert parent_of(otel.span("session_turn chat")) == request.get_span_context().span_id
    trace_id = trace.format_trace_id(request.get_span_context().trace_id)
    assert turn.otel_trace_id == trace_id
    known = {"session_id": "user_alice", "otel_trace_id": trace_id}
    assert turn.trace_metadata() == known
    turn.acquired(3)
    assert turn.trace_metadata() == {**known, "turn": "3"}


def test_further_sdk_traces_of_a_turn_are_events(make_turn: MakeTurn, otel: Any) -> None:
    """The attribute names the first SDK trace of a turn; others are added, none twice."""
    turn = make_turn()
    turn.start()
    for trace_id in ("trace_1", "trace_1", "trace_2"):
        turn.sdk_trace(trace_id, None)
    turn.end("completed")

    root = otel.span("session_turn chat")
    assert root.attributes["session_middleware.sdk_trace_id"] == "trace_1"
    assert [(e.name, dict(e.attributes)) for e in root.events] == [
        ("sdk_trace", {"session_middleware.sdk_trace_id": "trace_2"})
    ]


def test_what_hooks_report_and_who_was_in_the_way_are_events(
    make_turn: MakeTurn, otel: Any
) -> None:
    """Contention and the reports of the run hooks are events on the root span."""
    turn = make_turn()
    turn.start()
    turn.contended(3)
    turn.contended(None)
    turn.reported("tool_call", tool="get_weather", duration=0.5, result=None)
    turn.end("completed")

    root = otel.span("session_turn chat")
    assert [(e.name, dict(e.attributes)) for e in root.events] == [
        ("lock_contended", {"session_middleware.other_turn": 3}),
        (
            "tool_call",
            {"session_middleware.tool": "get_weather", "session_middleware.duration": 0.5},
        ),
    ]


# --- context -------------------------------------------------------------------------------


def test_attached_lasts_for_the_block_and_no_longer(make_turn: MakeTurn, otel: Any) -> None:
    """Inside the block the root is current and the session is in the context; after it, neither."""
    turn = make_turn()
    turn.start()
    assert not trace.get_current_span().get_span_context().is_valid
    with turn.attached():
        current = trace.get_current_span()
        assert get_value("session.id") == "user_alice"
        assert baggage.get_all() == {}
    assert not trace.get_current_span().get_span_context().is_valid
    assert get_value("session.id") is None
    turn.end("completed")
    assert id_of(otel.span("session_turn chat")) == current.get_span_context().span_id


def test_attached_leaves_the_context_as_it_was_after_an_error(make_turn: MakeTurn) -> None:
    """The block's own error passes, and the context is as before."""
    turn = make_turn()
    turn.start()
    with pytest.raises(LookupError), turn.attached():
        raise LookupError
    assert get_value("session.id") is None
    turn.end("failed", LookupError())


def test_attaching_again_keeps_the_users_own_span_current(make_turn: MakeTurn, otel: Any) -> None:
    """Inside the turn, a user's span stays the parent of what follows: operations and runs."""
    turn = make_turn()
    turn.start()
    with (
        turn.attached(),
        otel.tracer_provider.get_tracer("app").start_as_current_span("answer") as mine,
        turn.attached(),
    ):
        assert trace.get_current_span() is mine
        with turn.operation("create_memory"):
            pass
    turn.end("completed")
    assert parent_of(otel.span("create_memory")) == mine.get_span_context().span_id
    assert parent_of(otel.span("answer")) == id_of(otel.span("session_turn chat"))


def test_a_turn_inside_another_sessions_turn_has_its_own_identity(
    make_turn: MakeTurn, otel: Any
) -> None:
    """The inner turn is a child in the trace, and what it does carries the inner session."""
    outer, inner = make_turn("outer", name="outer"), make_turn("inner", name="inner")
    outer.start()
    with outer.attached():
        inner.start()
        with inner.attached():
            assert get_value("session.id") == "inner"
            with outer.operation("search_memory"):
                pass
        assert get_value("session.id") == "outer"
        inner.end("completed")
    outer.end("completed")

    assert parent_of(otel.span("session_turn inner")) == id_of(otel.span("session_turn outer"))
    search = otel.span("search_memory")
    assert search.attributes["session.id"] == "outer"
    assert parent_of(search) == id_of(otel.span("session_turn outer"))


def test_an_operation_is_current_while_it_runs(make_turn: MakeTurn, otel: Any) -> None:
    """A database client's span becomes a child of the operation."""
    turn = make_turn()
    turn.start()
    with turn.operation("search_memory"):
        otel.tracer_provider.get_tracer("driver").start_span("SELECT").end()
    assert not trace.get_current_span().get_span_context().is_valid
    turn.end("completed")
    assert parent_of(otel.span("SELECT")) == id_of(otel.span("search_memory"))


async def test_turns_in_tasks_at_once_keep_to_themselves(make_turn: MakeTurn, otel: Any) -> None:
    """Two turns interleaved in one loop: each operation hangs under its own turn."""

    async def one(session: str) -> None:
        turn = make_turn(session, name=session)
        turn.start()
        with turn.attached():
            await asyncio.sleep(0)
            with turn.operation("create_memory"):
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        turn.end("completed")

    await asyncio.gather(one("a"), one("b"))
    roots = {name: id_of(otel.span(f"session_turn {name}")) for name in "ab"}
    saves = [span for span in otel.spans if span.name == "create_memory"]
    assert {span.attributes["session.id"]: parent_of(span) for span in saves} == roots


def test_a_turn_may_end_in_another_thread(make_turn: MakeTurn, otel: Any) -> None:
    """Operations and the end of a turn come from a thread without its context, and fit in."""
    turn = make_turn()
    turn.start()

    def elsewhere() -> None:
        with turn.operation("create_memory"):
            pass
        turn.end("completed")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert parent_of(otel.span("create_memory")) == id_of(otel.span("session_turn chat"))


def test_a_turn_ends_once(make_turn: MakeTurn, otel: Any) -> None:
    """The first end counts; a second, and one of a turn that never began, do nothing."""
    turn = make_turn()
    turn.end("completed")
    turn.start()
    turn.start()
    turn.end("cancelled")
    turn.end("failed", RuntimeError())

    assert len(otel.spans) == 1
    assert otel.span("session_turn chat").attributes["session_middleware.outcome"] == "cancelled"
    assert [point.count for point in otel.metrics["session_middleware.turn.duration"]] == [1]


# --- outcomes ------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["completed", "awaiting_approval", "cancelled"])
def test_success_leaves_the_status_unset(make_turn: MakeTurn, otel: Any, outcome: str) -> None:
    """Neither success, nor a wait for approval, nor a cancellation is an error."""
    turn = make_turn()
    turn.start()
    turn.end(outcome, asyncio.CancelledError() if outcome == "cancelled" else None)

    root = otel.span("session_turn chat")
    assert root.status.status_code is StatusCode.UNSET
    assert "error.type" not in root.attributes
    assert exceptions(root) == []
    assert root.attributes["session_middleware.outcome"] == outcome


def test_a_failure_of_the_run_is_recorded_on_the_root(make_turn: MakeTurn, otel: Any) -> None:
    """The root has status error, the class name as error.type, and the exception, once."""
    turn = make_turn()
    turn.start()
    error = _raised(KeyError("what Alice said"))
    turn.end("failed", error)

    root = otel.span("session_turn chat")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["error.type"] == "KeyError"
    (exception,) = exceptions(root)
    assert exception["exception.type"] == "KeyError"
    assert "in _raised" in exception["exception.stacktrace"]


def test_a_failure_of_the_memory_is_recorded_where_it_arose(make_turn: MakeTurn, otel: Any) -> None:
    """The operation has the exception; the turn that fails of it has the status only."""
    turn = make_turn()
    turn.start()
    error = MemoryUnavailable("the storage did not answer")
    error.__cause__ = OSError("disk")
    with pytest.raises(MemoryUnavailable):
        fail_in(turn, "create_memory", error)
    turn.end("failed", error)

    save, root = otel.span("create_memory"), otel.span("session_turn chat")
    for span in (save, root):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "MemoryUnavailable"
    (exception,) = exceptions(save)
    assert exception["exception.type"] == "session_middleware.errors.MemoryUnavailable"
    assert exception["exception.message"] == "the storage did not answer"
    assert "OSError" in exception["exception.stacktrace"]
    assert exceptions(root) == []


def test_an_error_raised_from_a_recorded_one_is_not_recorded_again(
    make_turn: MakeTurn, otel: Any
) -> None:
    """A wrapper around the memory's error fails the turn under its own name, without a copy."""
    turn = make_turn()
    turn.start()
    inner = MemoryUnavailable("the storage did not answer")
    with pytest.raises(MemoryUnavailable):
        fail_in(turn, "search_memory", inner)
    outer = RuntimeError("no answer")
    outer.__cause__ = inner
    turn.end("failed", outer)

    root = otel.span("session_turn chat")
    assert root.attributes["error.type"] == "RuntimeError"
    assert exceptions(root) == []


def test_a_handled_failure_does_not_fail_the_turn(make_turn: MakeTurn, otel: Any) -> None:
    """A turn that went on without its memory completed; only the operation failed."""
    turn = make_turn()
    turn.start()
    error = MemoryUnavailable("the storage did not answer")
    with pytest.raises(MemoryUnavailable):
        fail_in(turn, "search_memory", error)
    turn.end("completed", error)

    assert otel.span("search_memory").status.status_code is StatusCode.ERROR
    assert otel.span("session_turn chat").status.status_code is StatusCode.UNSET


def test_a_cancelled_operation_did_not_fail(make_turn: MakeTurn, otel: Any) -> None:
    """Cancelling the caller of a save is an outcome of the save."""
    turn = make_turn()
    turn.start()
    with pytest.raises(asyncio.CancelledError):
        fail_in(turn, "create_memory", asyncio.CancelledError())
    turn.end("cancelled")

    save = otel.span("create_memory")
    assert save.status.status_code is StatusCode.UNSET
    assert save.attributes["session_middleware.outcome"] == "cancelled"
    assert save.events == ()


def test_a_failure_without_an_exception_is_still_a_failure(make_turn: MakeTurn, otel: Any) -> None:
    """Where nobody knows the error, error.type says so in the conventions' word."""
    turn = make_turn()
    turn.start()
    turn.end("abandoned")
    root = otel.span("session_turn chat")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["error.type"] == "_OTHER"


def test_no_exception_shows_what_was_said(make_turn: MakeTurn, otel: Any) -> None:
    """Neither another's message nor a quoted source line reaches a span."""
    turn = make_turn()
    turn.start()
    turn.end("failed", _raised(ValueError("my card is stolen")))
    root = otel.span("session_turn chat")
    assert "stolen" not in root.to_json()
    assert "raise error" not in root.to_json()


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


# --- the session's id ----------------------------------------------------------------------


def test_a_mapped_id_is_the_only_one_that_leaves(
    make_turn: MakeTurn, otel: Any, events: list[dict[str, Any]]
) -> None:
    """Spans, context, baggage, logs, errors and the SDK's metadata show what the mapper made."""
    turn = make_turn("alice@example.org", mapper=lambda raw: f"h{len(raw)}", baggage=True)
    turn.start()
    with turn.attached():
        assert get_value("session.id") == "h17"
        assert baggage.get_baggage("session.id") == "h17"
    turn.acquired(1)
    turn.sdk_trace("trace_1", "alice@example.org")
    error = SessionBusy("the session 'alice@example.org' is held by turn 3")
    turn.end("failed", error)

    assert turn.emitted_id == turn.trace_metadata()["session_id"] == "h17"
    root = otel.span("session_turn chat")
    assert root.attributes["session.id"] == root.attributes["gen_ai.conversation.id"] == "h17"
    assert exceptions(root)[0]["exception.message"] == "the session 'h17' is held by turn 3"
    assert {event["session_id"] for event in events} == {"h17"}
    assert "alice" not in root.to_json() + str(events)


def _raises(raw: str) -> str:
    raise LookupError(raw)


@pytest.mark.parametrize("mapper", [_raises, lambda raw: None, lambda raw: ""])
def test_a_mapper_that_gives_nothing_leaves_nothing_to_identify(
    make_turn: MakeTurn,
    otel: Any,
    events: list[dict[str, Any]],
    mapper: Callable[[str], str],
) -> None:
    """The turn runs and is traced without an id, and the fault is said once for all turns."""
    for _ in range(2):
        turn = make_turn("alice", mapper=mapper, baggage=True)
        turn.start()
        with turn.attached():
            assert get_value("session.id") is None
            assert baggage.get_all() == {}
            with turn.operation("search_memory"):
                pass
        turn.end("failed", SessionBusy("'alice' is held"))
        assert turn.emitted_id is None
        assert "session_id" not in turn.trace_metadata()

    for span in otel.spans:
        assert "session.id" not in span.attributes
        assert "gen_ai.conversation.id" not in span.attributes
        assert "alice" not in span.to_json()
    assert [e["log_level"] for e in events if e["event"] == "session_id_unmapped"] == ["warning"]
    assert "alice" not in str(events)


def test_baggage_is_filled_on_request_only_and_never_read(make_turn: MakeTurn) -> None:
    """What arrives in the baggage never names the session; what leaves is asked for."""
    token = attach(baggage.set_baggage("session.id", "mallory"))
    try:
        plain, asked = make_turn("alice"), make_turn("alice", baggage=True)
        plain.start()
        asked.start()
        with plain.attached():
            assert get_value("session.id") == "alice"
            assert baggage.get_baggage("session.id") == "mallory"
        with asked.attached():
            assert baggage.get_baggage("session.id") == "alice"
    finally:
        detach(token)
        plain.end("completed")
        asked.end("completed")


# --- when nothing is to be emitted ---------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["suppress_instrumentation", _SUPPRESS_INSTRUMENTATION_KEY], ids=["by name", "by key"]
)
def test_a_suppressed_turn_emits_nothing(
    make_turn: MakeTurn, otel: Any, events: list[dict[str, Any]], key: str
) -> None:
    """Under either key for suppression there is no span, no metric, no log event, no context."""
    turn = make_turn(baggage=True)
    token = attach(set_value(key, True))
    try:
        turn.start()
    finally:
        detach(token)
    with turn.attached():
        assert get_value("session.id") is None
        with turn.operation("search_memory"):
            pass
    turn.acquired(1)
    turn.contended(2)
    turn.history(1, 2, None)
    turn.trimmed(1)
    turn.repaired({"orphan_output": 1})
    turn.event("no_run_intercepted")
    turn.reported("handoff")
    turn.end("failed", RuntimeError())

    assert not turn.recording
    assert (otel.spans, otel.metrics, events) == ([], {}, [])


def test_an_operation_in_a_suppressed_context_is_left_out(make_turn: MakeTurn, otel: Any) -> None:
    """Suppression that begins inside a turn silences what happens in it."""
    turn = make_turn()
    turn.start()
    token = attach(set_value("suppress_instrumentation", True))
    try:
        with turn.operation("search_memory"):
            pass
    finally:
        detach(token)
    turn.end("completed")
    assert [span.name for span in otel.spans] == ["session_turn chat"]
    assert "session_middleware.memory.operation.duration" not in otel.metrics


def test_a_dropped_trace_drops_the_children_and_tells_no_id() -> None:
    """Under a sampler that drops, the context carries the trace, and no record leads to it."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    turn = TurnTelemetry(Telemetry(tracer_provider=provider), "chat", "alice", "sqlite")
    turn.start()
    assert not turn.recording
    with turn.attached():
        context = trace.get_current_span().get_span_context()
        assert context.is_valid
        assert not context.trace_flags.sampled
        assert turn.otel_trace_id is None
        assert "otel_trace_id" not in turn.trace_metadata()
    turn.end("completed")


def test_without_a_provider_the_session_is_still_in_the_context() -> None:
    """Another library's spans can name the session though this package has no provider."""
    turn = TurnTelemetry(Telemetry(), "chat", "alice", "sqlite")
    turn.start()
    with turn.attached():
        assert get_value("session.id") == "alice"
    assert turn.otel_trace_id is None
    assert turn.trace_metadata() == {"session_id": "alice"}
    turn.end("completed")
