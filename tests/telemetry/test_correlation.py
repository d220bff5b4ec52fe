"""How a run in a session shows in the SDK's own traces."""

from __future__ import annotations

from typing import Any

import pytest
from agents import RunConfig, Runner, RunState, custom_span, get_current_span, trace

from session_middleware import InMemorySessionMemory, session_scope, with_session_memory
from session_middleware.testing.models import local_agent
from tests.support.approvals import paying
from tests.support.sessions import METHODS, carried_out, stored

both_ways = pytest.mark.parametrize("method", METHODS)
as_config = pytest.mark.parametrize("config", [RunConfig, dict], ids=["object", "dict"])


@pytest.fixture
def memory() -> InMemorySessionMemory:
    """A memory of the test's own."""
    return InMemorySessionMemory()


def session_spans(sdk_traces: Any) -> list[dict[str, Any]]:
    """The data of the spans that carry a session."""
    return [
        span["span_data"]["data"]
        for span in sdk_traces.spans
        if span["span_data"].get("name") == "session"
    ]


@both_ways
async def test_the_session_id_is_the_group_id(memory: Any, method: str, sdk_traces: Any) -> None:
    """Without a group id of the user's, runs of a session are grouped by it."""
    for _ in range(2):
        await carried_out(method, local_agent(), "Hi", memory, "s-1")
    assert sdk_traces.group_ids == ["s-1", "s-1"]
    # A stream's trace begins before its session can be acquired, so its turn is not known there.
    turns = [{"turn": "1"}, {"turn": "2"}] if method == "run" else [{}, {}]
    assert [started["metadata"] for started in sdk_traces.started] == [
        {"session_id": "s-1", **turn} for turn in turns
    ]
    assert session_spans(sdk_traces) == []
    records = await memory.turns("s-1")
    assert [record.sdk_trace_ids for record in reversed(records)] == [
        (started["id"],) for started in sdk_traces.started
    ]


def test_run_sync(memory: Any, sdk_traces: Any, do: Any) -> None:
    """run_sync too."""
    with_session_memory(Runner.run_sync, memory=memory)(local_agent(), "Hi", session_id="s-1")
    assert sdk_traces.group_ids == ["s-1"]
    assert do(stored(memory, "s-1")) == "U A"


@both_ways
@as_config
async def test_a_run_config_of_the_users(
    memory: Any, method: str, config: Any, sdk_traces: Any
) -> None:
    """Their workflow name and metadata stay, object or dict; the object is not changed."""
    given = config(workflow_name="Mine", trace_metadata={"tenant": "acme"})
    await carried_out(method, local_agent(), "Hi", memory, "s-1", run_config=given)
    (started,) = sdk_traces.started
    assert (started["workflow_name"], started["group_id"]) == ("Mine", "s-1")
    assert started["metadata"].items() >= {"session_id": "s-1", "tenant": "acme"}.items()
    as_it_was = given if isinstance(given, dict) else vars(given)
    assert (as_it_was.get("group_id"), as_it_was["trace_metadata"]) == (None, {"tenant": "acme"})


@both_ways
@as_config
async def test_a_group_id_of_the_users(
    memory: Any, method: str, config: Any, sdk_traces: Any
) -> None:
    """It stays, and so does a session_id in their metadata; ours is in the metadata otherwise."""
    await carried_out(
        method, local_agent(), "Hi", memory, "s-1", run_config=config(group_id="thread-1")
    )
    given = config(group_id="thread-1", trace_metadata={"session_id": "theirs"})
    await carried_out(method, local_agent(), "Hi", memory, "s-1", run_config=given)
    assert sdk_traces.group_ids == ["thread-1", "thread-1"]
    assert [started["metadata"]["session_id"] for started in sdk_traces.started] == [
        "s-1",
        "theirs",
    ]


@both_ways
async def test_an_outer_trace(memory: Any, method: str, sdk_traces: Any) -> None:
    """It is neither nested nor changed: a span around each run carries the session id."""
    with trace("Conversation", group_id="thread-1", metadata={"mine": "1"}):
        await carried_out(method, local_agent(), "Hi", memory, "s-1")
        await carried_out(method, local_agent(), "Hi", memory, "s-2")
    (started,) = sdk_traces.started
    (ended,) = sdk_traces.ended
    assert started == ended
    assert (started["group_id"], started["metadata"]) == ("thread-1", {"mine": "1"})
    assert [data["session_id"] for data in session_spans(sdk_traces)] == ["s-1", "s-2"]
    by_id = {span["id"]: span for span in sdk_traces.spans}
    agents = [span for span in sdk_traces.spans if span["span_data"]["type"] == "agent"]

    def ancestors(span: Any) -> list[str]:
        above = by_id.get(span["parent_id"])
        return [] if above is None else [str(above["span_data"].get("name")), *ancestors(above)]

    assert len(agents) == 2
    assert all("session" in ancestors(span) for span in agents)
    (record,) = await memory.turns("s-1")
    assert record.sdk_trace_ids == (started["id"],)


@both_ways
async def test_nothing_is_current_afterwards(memory: Any, method: str, sdk_traces: Any) -> None:
    """After a run, or a failed one, the user's own span is current again."""
    with trace("Conversation"), custom_span("mine") as mine:
        await carried_out(method, local_agent(), "Hi", memory)
        assert get_current_span() is mine
        with pytest.raises(TypeError):
            await carried_out(method, local_agent(), "Hi", memory, hooks="none")
        assert get_current_span() is mine
    parents = {
        span["parent_id"] for span in sdk_traces.spans if span["span_data"]["type"] == "custom"
    }
    assert mine.span_id in parents


@both_ways
@pytest.mark.parametrize("serialise", [False, True], ids=["live", "serialised"])
async def test_a_resumed_run_goes_on_in_its_trace(
    memory: Any, method: str, serialise: bool, sdk_traces: Any
) -> None:
    """Its trace id and group id are those of the run that was parked."""
    agent = paying([])
    result = await carried_out(
        method, agent, "Pay", memory, run_config=RunConfig(group_id="thread-1")
    )
    state = result.to_state()
    if serialise:
        state = await RunState.from_json(agent, state.to_json())
    state.approve(state.get_interruptions()[0])
    await carried_out(method, agent, state, memory)
    assert len({started["id"] for started in sdk_traces.started}) == 1
    assert set(sdk_traces.group_ids) == {"thread-1"}
    (record,) = await memory.turns("s")
    assert record.sdk_trace_ids == (sdk_traces.started[0]["id"],)


async def test_several_runs_in_one_turn(memory: Any, sdk_traces: Any) -> None:
    """Every run is a trace of its own, and all have the session's group id."""
    async with session_scope("s-1", memory=memory):
        await Runner.run(local_agent(), "Hi")
        await Runner.run(local_agent(), "Hi")
    assert sdk_traces.group_ids == ["s-1", "s-1"]
    (record,) = await memory.turns("s-1")
    assert record.sdk_trace_ids == tuple(started["id"] for started in sdk_traces.started)


@both_ways
async def test_an_id_that_is_not_to_be_shown(memory: Any, method: str, sdk_traces: Any) -> None:
    """What telemetry's mapper makes of the id is what traces show; None: nothing at all."""

    async def run_with(mapper: Any) -> None:
        options = {"telemetry": {"session_id": mapper}}
        await carried_out(method, local_agent(), "Hi", memory, "secret", decoration=options)

    await run_with(lambda raw: "hashed")
    await run_with(lambda raw: None)
    with trace("Outer"):
        await run_with(lambda raw: None)
    assert sdk_traces.group_ids == ["hashed", None, None]
    assert "secret" not in str((sdk_traces.started, sdk_traces.spans))
    assert await memory.list_sessions() == ["secret"]
