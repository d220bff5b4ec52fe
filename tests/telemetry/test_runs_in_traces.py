"""Real runs of the SDK, as tracing tools see them: one trace per turn, each turn in its session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import Runner, function_tool, trace
from opentelemetry.context import get_current
from opentelemetry.trace import StatusCode, format_trace_id, get_current_span

from session_middleware.testing.models import assistant, call, local_agent, scripted_agent

Middleware = Callable[..., Any]


def tree(otel: Any) -> dict[str, list[str]]:
    """The names of all spans by the name of their parent."""
    names = {span.context.span_id: span.name for span in otel.spans}
    found: dict[str, list[str]] = {}
    for span in sorted(otel.spans, key=lambda span: span.start_time):
        parent = names[span.parent.span_id] if span.parent else ""
        found.setdefault(parent, []).append(span.name)
    return found


async def test_a_run_is_one_trace_with_its_load_and_its_saves(
    remember: Middleware, otel: Any, sdk_traces: Any, memory: Any
) -> None:
    """A wrapped Runner method: the tree, the session everywhere, and the SDK's trace tied to it."""
    run = remember(Runner.run)
    await run(local_agent(), "Hi, I'm Alice.", session_id="alice")

    root = "session_turn Agent workflow"
    assert tree(otel) == {
        "": [root],
        root: ["acquire_session", "search_memory", "chat", "end_turn"],
    }
    for span in otel.spans:
        assert span.attributes["session.id"] == "alice"
        assert span.attributes["gen_ai.conversation.id"] == "alice"
    (sdk_trace,) = sdk_traces.started
    trace_id = format_trace_id(otel.span(root).context.trace_id)
    assert sdk_trace["group_id"] == "alice"
    assert sdk_trace["metadata"] == {
        "session_id": "alice",
        "turn": "1",
        "otel_trace_id": trace_id,
    }
    attributes = otel.span(root).attributes
    assert attributes["session_middleware.sdk_trace_id"] == sdk_trace["id"]
    assert attributes["session_middleware.turn"] == 1
    assert attributes["session_middleware.history.item_count"] == 0
    assert attributes["session_middleware.new_item.count"] == 2
    assert attributes["session_middleware.outcome"] == "completed"
    (record,) = await memory.turns("alice")
    assert record.otel_trace_id == trace_id


async def test_what_a_run_stores_hangs_under_the_span_around_it(
    remember: Middleware, otel: Any
) -> None:
    """The user's own span inside the function is the parent of the run's operations."""
    agent = local_agent()

    @remember
    async def answer(text: str) -> None:
        with otel.tracer_provider.get_tracer("app").start_as_current_span("answer"):
            await Runner.run(agent, text)

    await answer("hello", session_id="alice")
    found = tree(otel)
    (root,) = found[""]
    assert root.endswith("answer")
    assert found[root] == ["acquire_session", "answer", "end_turn"]
    assert found["answer"] == ["search_memory", "create_memory", "chat", "create_memory"]


async def test_a_stream_leaves_its_consumers_context_alone(remember: Middleware, otel: Any) -> None:
    """While the consumer reads, its context is its own; the turn ends with the run."""
    before = get_current()
    result = remember(Runner.run_streamed)(local_agent(), "Hi, I'm Alice.", session_id="alice")
    async for _ in result.stream_events():
        assert get_current() == before
        assert not get_current_span().get_span_context().is_valid
    await result.run_loop_task

    root = otel.span("session_turn Agent workflow")
    assert root.attributes["session_middleware.streaming"] is True
    assert root.attributes["session_middleware.outcome"] == "completed"
    assert tree(otel)[root.name] == ["acquire_session", "search_memory", "chat", "end_turn"]


async def test_an_async_generator_leaves_its_consumers_context_alone(
    remember: Middleware, otel: Any
) -> None:
    """Inside each step the turn's span is current, between the steps it is not."""
    agent = local_agent()
    inside: list[bool] = []

    @remember
    async def talk(text: str) -> Any:
        for word in ("one", "two"):
            inside.append(get_current_span().is_recording())
            yield word
        yield (await Runner.run(agent, text)).final_output

    before = get_current()
    async for _ in talk("hello", session_id="alice"):
        assert get_current() == before
    assert inside == [True, True]
    assert len(tree(otel)[""]) == 1


async def test_a_failure_in_the_function_fails_its_turn(remember: Middleware, otel: Any) -> None:
    """The root has status error and the exception; the operations before it succeeded."""
    agent = local_agent()

    @remember
    async def chat(text: str) -> None:
        await Runner.run(agent, text)
        raise LookupError("no such city")

    with pytest.raises(LookupError):
        await chat("hello", session_id="alice")
    (root,) = [span for span in otel.spans if span.parent is None]
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["error.type"] == "LookupError"
    assert [event.name for event in root.events].count("exception") == 1
    others = [span for span in otel.spans if span.parent is not None]
    assert {span.status.status_code for span in others} == {StatusCode.UNSET}


async def test_a_failure_the_function_handles_is_no_failure(
    remember: Middleware, otel: Any
) -> None:
    """A run whose model failed, and a function that went on: the turn completed."""
    agent = scripted_agent(RuntimeError("the model is down"), assistant("better"))

    @remember
    async def chat(text: str) -> str:
        try:
            await Runner.run(agent, text)
        except RuntimeError:
            return "sorry"
        return "?"

    assert await chat("hello", session_id="alice") == "sorry"
    (root,) = [span for span in otel.spans if span.parent is None]
    assert root.status.status_code is StatusCode.UNSET
    assert root.attributes["session_middleware.outcome"] == "completed"


async def test_cancelling_a_run_is_an_outcome(remember: Middleware, otel: Any) -> None:
    """A cancelled turn has the outcome cancelled, and neither a status nor an exception."""
    begun = asyncio.Event()

    @function_tool
    async def wait_for_ever() -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    agent = scripted_agent(call("wait_for_ever"), tools=[wait_for_ever])
    task = asyncio.create_task(remember(Runner.run)(agent, "hello", session_id="alice"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    root = otel.span("session_turn Agent workflow")
    assert root.attributes["session_middleware.outcome"] == "cancelled"
    assert root.status.status_code is StatusCode.UNSET
    assert "exception" not in [event.name for event in root.events]


async def test_a_mapped_id_reaches_the_sdks_trace(
    remember: Middleware, otel: Any, sdk_traces: Any
) -> None:
    """The group id and the metadata have what the mapper made, and nothing has the id itself."""
    run = remember(Runner.run, session_id=lambda raw: f"h{len(raw)}")
    await run(local_agent(), "hello", session_id="alice@example.org")
    (sdk_trace,) = sdk_traces.started
    assert (sdk_trace["group_id"], sdk_trace["metadata"]["session_id"]) == ("h17", "h17")
    everything = "".join(span.to_json() for span in otel.spans) + str(sdk_traces.started)
    assert "alice" not in everything + str(sdk_traces.spans)


@pytest.mark.parametrize("outer", [False, True])
async def test_a_mapper_that_raises_does_not_break_the_run(
    remember: Middleware, otel: Any, sdk_traces: Any, outer: bool
) -> None:
    """The run answers; its traces are without any id."""

    def broken(raw: str) -> str:
        raise LookupError(raw)

    run = remember(Runner.run, session_id=broken)
    agent = local_agent()
    if outer:
        with trace("Conversation"):
            result = await run(agent, "Hi, I'm Alice.", session_id="user_1")
    else:
        result = await run(agent, "Hi, I'm Alice.", session_id="user_1")
    assert result.final_output == "Nice to meet you, Alice."
    everything = "".join(span.to_json() for span in otel.spans) + str(sdk_traces.started)
    assert "user_1" not in everything + str(sdk_traces.spans)
    assert sdk_traces.group_ids == [None]


async def test_nothing_that_was_said_is_traced_or_logged(
    remember: Middleware, otel: Any, events: list[dict[str, Any]]
) -> None:
    """Without the opt-in no message, argument, tool output or error text reaches span or log."""

    @function_tool
    def look_up(name: str) -> str:
        return "blue-canary"

    agent = scripted_agent(
        call("look_up", {"name": "green-canary"}), assistant("red-canary"), tools=[look_up]
    )

    @remember
    async def chat(text: str) -> None:
        await Runner.run(agent, text)
        raise ValueError("grey-canary")

    with pytest.raises(ValueError, match="grey"):
        await chat("pink-canary", session_id="alice")
    assert len(otel.spans) > 3
    assert len(events) > 3
    assert "canary" not in "".join(span.to_json() for span in otel.spans) + str(events)


async def test_content_is_traced_on_opt_in(
    remember: Middleware, otel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the opt-in the root span has the turn's input and output."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    await remember(Runner.run)(local_agent(), "Hi, I'm Alice.", session_id="alice")
    root = otel.span("session_turn Agent workflow")
    assert root.attributes["input.value"] == "Hi, I'm Alice."
    assert root.attributes["output.value"] == "Nice to meet you, Alice."
