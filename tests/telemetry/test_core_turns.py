"""How turns of real runs end, as their traces, metrics and log events tell it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Runner, trace
from opentelemetry.context import get_current
from opentelemetry.trace import StatusCode, format_trace_id, get_current_span

from session_middleware import (
    InMemorySessionMemory,
    MemoryUnavailable,
    TurnLost,
    session_scope,
    with_session_memory,
)
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.approvals import approved, live, paying, serialised
from tests.support.conditions import until
from tests.support.interruptions import WatchedSQLite
from tests.support.sessions import METHODS, carried_out, tool

OUTCOME = "session_middleware.outcome"
BOTH_KEYS = ("session.id", "gen_ai.conversation.id")

both_ways = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def telemetry(otel: Any) -> Telemetry:
    """The option that leads to ``otel``."""
    return Telemetry(otel.tracer_provider, otel.meter_provider)


def roots(otel: Any) -> list[Any]:
    """The roots of turns, in the order in which they began."""
    found = [span for span in otel.spans if span.name.startswith("session_turn ")]
    return sorted(found, key=lambda span: span.start_time)


def children(otel: Any, parent: Any) -> list[str]:
    """The names of the spans right under one, in order."""
    found = [
        span for span in otel.spans if span.parent and span.parent.span_id == parent.context.span_id
    ]
    return [span.name for span in sorted(found, key=lambda span: span.start_time)]


def with_exceptions(otel: Any) -> list[str]:
    """The names of the spans that exceptions were recorded on, once for each."""
    return [span.name for span in otel.spans for event in span.events if event.name == "exception"]


def counted_outcomes(otel: Any) -> dict[str, int]:
    """How many turns ended in which way, by the metric of their duration."""
    counts: dict[str, int] = {}
    for point in otel.metrics["session_middleware.turn.duration"]:
        outcome = point.attributes[OUTCOME]
        counts[outcome] = counts.get(outcome, 0) + point.count
    return counts


def active(otel: Any) -> int:
    """How many turns are going on, by the metric."""
    return sum(point.value for point in otel.metrics["session_middleware.turn.active"])


# --- how a turn ends -----------------------------------------------------------------------


@both_ways
async def test_success(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]]
) -> None:
    """One trace with one load and each write; one duration; the events in order.

    The input is stored where the session is acquired, and the answer where the turn ends.
    """
    run_options: dict[str, Any] = {"decoration": {"telemetry": telemetry}}
    agent = scripted_agent(call("look"), assistant("done"), tools=[tool("look", lambda: "seen")])
    await carried_out(method, agent, "Look", each_memory, **run_options)
    (root,) = roots(otel)
    assert children(otel, root) == [
        "acquire_session",
        "search_memory",
        "chat",
        "create_memory",
        "chat",
        "end_turn",
    ]
    stored = [
        span.attributes["gen_ai.memory.record.count"]
        for span in otel.spans
        if span.name in ("acquire_session", "create_memory", "end_turn")
    ]
    assert stored == [1, 2, 1]
    assert all(span.attributes[key] == "s" for span in otel.spans for key in BOTH_KEYS)
    assert root.status.status_code is StatusCode.UNSET
    assert root.attributes["session_middleware.new_item.count"] == 4
    assert root.attributes["session_middleware.usage.requests"] == 2
    assert counted_outcomes(otel) == {"completed": 1}
    assert active(otel) == 0
    assert [event["event"] for event in events] == [
        "turn_started",
        "history_loaded",
        "items_saved",
        "items_saved",
        "items_saved",
        "turn_completed",
    ]
    assert {(event["session_id"], event["turn"]) for event in events} == {("s", 1)}


@both_ways
async def test_a_model_that_fails(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]]
) -> None:
    """The root fails, and alone has the exception; what was stored before it succeeded."""
    agent = scripted_agent(RuntimeError("no model"))
    with pytest.raises(RuntimeError):
        await carried_out(method, agent, "Hi", each_memory, decoration={"telemetry": telemetry})
    (root,) = roots(otel)
    assert (root.attributes[OUTCOME], root.attributes["error.type"]) == ("failed", "RuntimeError")
    failed = [span.name for span in otel.spans if span.status.status_code is StatusCode.ERROR]
    recorded = [
        span.name for span in otel.spans for event in span.events if event.name == "exception"
    ]
    assert failed == recorded == [root.name]
    assert counted_outcomes(otel) == {"failed": 1}
    assert events[-1]["error_type"] == "RuntimeError"


@both_ways
async def test_cancellation(each_memory: Any, method: str, otel: Any, telemetry: Telemetry) -> None:
    """A run that is cancelled in its tool: the outcome says so, and nothing failed."""
    reached = asyncio.Event()

    async def hang() -> str:
        reached.set()
        await asyncio.Event().wait()
        return "never"

    agent = scripted_agent(call("hang"), tools=[tool("hang", hang)])
    task = asyncio.create_task(
        carried_out(
            method,
            agent,
            "Hang",
            each_memory,
            decoration={"telemetry": telemetry, "on_departure": "cancel"},
        )
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: roots(otel))
    (root,) = roots(otel)
    assert root.attributes[OUTCOME] == "cancelled"
    assert {span.status.status_code for span in otel.spans} == {StatusCode.UNSET}
    assert "error.type" not in root.attributes
    assert active(otel) == 0


async def test_a_lost_session(each_memory: Any, otel: Any, telemetry: Telemetry) -> None:
    """A turn whose session was taken away is abandoned, in its trace as in its record."""

    async def lose() -> str:
        await each_memory.release("s")
        return "lost"

    agent = scripted_agent(call("lose"), assistant("done"), tools=[tool("lose", lose)])
    with pytest.raises(TurnLost):
        await carried_out("run", agent, "Lose", each_memory, decoration={"telemetry": telemetry})
    (root,) = roots(otel)
    (record,) = await each_memory.turns("s")
    assert root.attributes[OUTCOME] == record.state == "abandoned"
    assert root.attributes["error.type"] == "TurnLost"
    assert root.status.status_code is StatusCode.ERROR
    assert counted_outcomes(otel) == {"abandoned": 1}


@pytest.mark.parametrize("failing", ["acquire", "load", "append", "append and end", "end"])
async def test_a_memory_that_fails(
    tmp_path: Any, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]], failing: str
) -> None:
    """The exception is recorded once, where it arose; one error is logged, without its text."""
    memory = WatchedSQLite(tmp_path / "watched.db")
    at = {"acquire": 1, "load": 2, "append": 3, "append and end": 2, "end": 5}[failing]
    memory.will_fail(at, after_effect=False)
    remembering = with_session_memory(memory=memory, telemetry=telemetry)

    @remembering
    async def chat() -> None:
        await Runner.run(local_agent(), "Hi")

    if failing == "end":  # the items are safe: the answer is worth more than the record
        await chat(session_id="s")
    elif failing in ("load", "append"):  # a wrapped method loads where it acquires
        with pytest.raises(MemoryUnavailable):
            await chat(session_id="s")
    else:
        with pytest.raises(MemoryUnavailable):
            await remembering(Runner.run)(local_agent(), "Hi", session_id="s")
    assert memory.failed == failing
    memory.recovers()
    await memory.cleanup()
    (root,) = roots(otel)
    recorded = [
        span.name for span in otel.spans for event in span.events if event.name == "exception"
    ]
    where = {
        "acquire": ["acquire_session"],
        "load": ["search_memory"],
        "append": ["create_memory"],
        "append and end": ["end_turn"],
        "end": ["end_turn"],
    }
    assert recorded == where[failing]
    assert root.attributes[OUTCOME] == ("completed" if failing == "end" else "failed")
    said = [event for event in events if event["log_level"] == "error"]
    kind = "load_failed" if failing in ("acquire", "load") else "save_failed"
    assert [(event["event"], event["error_type"]) for event in said] == [(kind, "OSError")]


async def test_going_on_without_memory(
    tmp_path: Any, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]]
) -> None:
    """With on_unavailable="forget" the turn completes, and its outcome says what it lacks."""
    memory = WatchedSQLite(tmp_path / "watched.db")
    memory.will_fail(2, after_effect=False)

    @with_session_memory(memory=memory, telemetry=telemetry, on_unavailable="forget")
    async def chat() -> None:
        await Runner.run(local_agent(), "Hi")

    await chat(session_id="s")
    await memory.cleanup()
    (root,) = roots(otel)
    assert root.attributes[OUTCOME] == "forgotten"
    assert counted_outcomes(otel) == {"forgotten": 1}
    assert (events[-1]["outcome"], events[-1]["log_level"]) == ("forgotten", "warning")
    assert root.status.status_code is StatusCode.UNSET
    assert otel.span("search_memory").attributes["error.type"] == "MemoryUnavailable"
    assert "load_failed" in [event["event"] for event in events]


# --- streams -------------------------------------------------------------------------------


async def test_a_stream_that_is_left_early(
    each_memory: Any, otel: Any, telemetry: Telemetry
) -> None:
    """Its consumer's context is as it was; the trace ends with the run, which goes on."""
    before = get_current()
    streamed = with_session_memory(Runner.run_streamed, memory=each_memory, telemetry=telemetry)
    result = streamed(local_agent(), "Hi, I'm Alice.", session_id="s")
    async for _ in result.stream_events():
        break
    assert get_current() == before
    assert roots(otel) == []
    await result.run_loop_task
    assert get_current() == before
    (root,) = roots(otel)
    assert root.attributes[OUTCOME] == "completed"
    assert root.attributes["session_middleware.streaming"] is True


async def test_a_stream_that_is_cancelled(
    each_memory: Any, otel: Any, telemetry: Telemetry
) -> None:
    """Cancelled by its consumer it is a cancelled turn, and no failure."""
    streamed = with_session_memory(Runner.run_streamed, memory=each_memory, telemetry=telemetry)
    result = streamed(local_agent(), "Hi, I'm Alice.", session_id="s")
    async for _ in result.stream_events():
        result.cancel()
    await until(lambda: roots(otel))
    (root,) = roots(otel)
    assert root.attributes[OUTCOME] == "cancelled"
    assert root.status.status_code is StatusCode.UNSET


async def test_a_generator_that_is_left_early(
    each_memory: Any, otel: Any, telemetry: Telemetry
) -> None:
    """Closed by its consumer, its turn ends, and the consumer's context never changed."""
    before = get_current()

    @with_session_memory(memory=each_memory, telemetry=telemetry)
    async def talk(text: str) -> AsyncIterator[str]:
        yield str((await Runner.run(local_agent(), text)).final_output)
        yield "never"

    steps = talk("Hi, I'm Alice.", session_id="s")
    assert await anext(steps) == "Nice to meet you, Alice."
    assert get_current() == before
    assert not get_current_span().get_span_context().is_valid
    await steps.aclose()
    assert get_current() == before
    (root,) = roots(otel)
    assert root.attributes[OUTCOME] == "cancelled"
    assert root.status.status_code is StatusCode.UNSET


# --- several runs, several turns -----------------------------------------------------------


@both_ways
@pytest.mark.parametrize("kept", [live, serialised])
async def test_an_approval(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry, sdk_traces: Any, kept: Any
) -> None:
    """Parking and going on are two traces of one turn, tied by its number and the SDK's trace."""
    agent = paying([])
    options: dict[str, Any] = {"decoration": {"telemetry": telemetry}}
    parked = await carried_out(method, agent, "Pay", each_memory, **options)
    state = await approved(parked, kept, agent)
    await carried_out(method, agent, state, each_memory, **options)
    first, second = roots(otel)
    assert [root.attributes[OUTCOME] for root in (first, second)] == [
        "awaiting_approval",
        "completed",
    ]
    for key in ("session_middleware.turn", "session_middleware.sdk_trace_id"):
        assert first.attributes[key] == second.attributes[key]
    assert first.context.trace_id != second.context.trace_id
    (record,) = await each_memory.turns("s")
    assert record.otel_trace_id == format_trace_id(second.context.trace_id)
    assert record.sdk_trace_ids == (first.attributes["session_middleware.sdk_trace_id"],)


async def test_nested_calls_are_one_turn(each_memory: Any, otel: Any, telemetry: Telemetry) -> None:
    """Whatever joins a turn adds no root: a decorated function, a scope, a wrapped method."""
    remember = with_session_memory(memory=each_memory, telemetry=telemetry)

    @remember
    async def inner(text: str) -> None:
        async with session_scope("s", memory=each_memory, telemetry=telemetry):
            await Runner.run(local_agent(), text)

    @remember
    async def outer(text: str) -> None:
        await inner(text, session_id="s")
        await remember(Runner.run)(local_agent(), text, session_id="s")

    await outer("Hi, I'm Alice.", session_id="s")
    (root,) = roots(otel)
    assert len({span.context.trace_id for span in otel.spans}) == 1
    assert children(otel, root).count("search_memory") == 2
    assert counted_outcomes(otel) == {"completed": 1}


async def test_runs_at_once_in_one_turn(
    each_memory: Any, otel: Any, telemetry: Telemetry, sdk_traces: Any
) -> None:
    """Each run is a trace of the SDK's; the root names the first, and events the others."""

    @with_session_memory(memory=each_memory, telemetry=telemetry)
    async def chat(text: str) -> None:
        await asyncio.gather(*(Runner.run(local_agent(), f"{text} {n}") for n in range(3)))

    await chat("Hi", session_id="s")
    (root,) = roots(otel)
    named = [root.attributes["session_middleware.sdk_trace_id"]] + [
        event.attributes["session_middleware.sdk_trace_id"]
        for event in root.events
        if event.name == "sdk_trace"
    ]
    assert sorted(named) == sorted(trace["id"] for trace in sdk_traces.started)
    assert children(otel, root).count("search_memory") == 3
    (record,) = await each_memory.turns("s")
    assert sorted(record.sdk_trace_ids) == sorted(named)


async def test_turns_of_several_sessions_at_once(otel: Any, telemetry: Telemetry) -> None:
    """Every span is in the trace of its own session's turn."""
    run = with_session_memory(Runner.run, memory=InMemorySessionMemory(), telemetry=telemetry)
    names = [f"s{n}" for n in range(8)]
    await asyncio.gather(*(run(local_agent(), "Hi", session_id=name) for name in names))
    by_trace: dict[int, set[Any]] = {}
    for span in otel.spans:
        by_trace.setdefault(span.context.trace_id, set()).add(span.attributes["session.id"])
    assert sorted(by_trace.values(), key=str) == sorted(({name} for name in names), key=str)


# --- inside traces of the application's own --------------------------------------------------


@both_ways
async def test_inside_an_opentelemetry_span(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry
) -> None:
    """The turn hangs under the span that is current at the call, which is current again after."""
    decoration = {"telemetry": telemetry}
    tracer = otel.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("request") as request:
        await carried_out(method, local_agent(), "Hi", each_memory, decoration=decoration)
        assert get_current_span() is request
    (root,) = roots(otel)
    assert root.parent.span_id == request.get_span_context().span_id
    assert {span.context.trace_id for span in otel.spans} == {root.context.trace_id}


@both_ways
async def test_inside_a_trace_of_the_sdk(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry, sdk_traces: Any
) -> None:
    """The outer trace stays as it was; a span in it carries the session and the turn's trace."""
    decoration = {"telemetry": telemetry}
    with trace("Conversation", group_id="thread-1"):
        await carried_out(method, local_agent(), "Hi", each_memory, decoration=decoration)
    (root,) = roots(otel)
    (started,) = sdk_traces.started
    assert (started["group_id"], started["metadata"]) == ("thread-1", None)
    (carried,) = [
        span["span_data"]["data"]
        for span in sdk_traces.spans
        if span["span_data"].get("name") == "session"
    ]
    assert carried["session_id"] == "s"
    assert carried["otel_trace_id"] == format_trace_id(root.context.trace_id)
    assert root.attributes["session_middleware.sdk_trace_id"] == started["id"]
    assert root.attributes["session_middleware.sdk_group_id"] == "thread-1"


@both_ways
async def test_the_sdks_tracing_may_be_off(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry
) -> None:
    """OpenTelemetry does not depend on it: the same spans, without an SDK trace to name."""
    config = {"tracing_disabled": True}
    await carried_out(
        method,
        local_agent(),
        "Hi",
        each_memory,
        run_config=config,
        decoration={"telemetry": telemetry},
    )
    (root,) = roots(otel)
    assert children(otel, root) == ["acquire_session", "search_memory", "chat", "end_turn"]
    assert "session_middleware.sdk_trace_id" not in root.attributes
    (record,) = await each_memory.turns("s")
    assert (record.sdk_trace_ids, record.otel_trace_id) == (
        (),
        format_trace_id(root.context.trace_id),
    )
