"""Streamed runs, which are called before their turn can be had, and changed when it is."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import pytest
from agents import Agent, RunConfig, Runner, UserError
from agents.testing import ModelStep, ScriptedModel

from session_middleware import _background, session_scope, with_session_memory
from session_middleware.effects import UNKNOWN_TEXT
from session_middleware.testing.models import assistant, call, calls, scripted_agent
from tests.support.approvals import Keep, approved, live, serialised
from tests.support.sessions import (
    carried_out,
    consumed,
    counted,
    held,
    run_by,
    states,
    stored,
    text_of,
    tool,
)

both_kinds = pytest.mark.parametrize("kept", [live, serialised])
DOWN = ModelStep.raise_error(OSError("down"))


@pytest.fixture(autouse=True)
def nothing_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of a streamed run waits for a storage on the event loop's thread."""
    in_a_loop = asyncio._get_running_loop
    before = _background.wait

    def wait(work: Any) -> Any:
        if in_a_loop() is not None:
            work.close()
            raise AssertionError("the event loop is blocked")
        return before(work)

    monkeypatch.setattr(_background, "wait", wait)


def start(agent: Any, given: Any, memory: Any, **options: Any) -> Any:
    """A streamed run, called and not begun."""
    wrapped = with_session_memory(Runner.run_streamed, memory=memory)
    return wrapped(agent, given, session_id="s", **options)


async def resumed_in_vain(memory: Any, kept: Keep, counts: list[str]) -> tuple[Any, Any]:
    """An agent and a parked run whose resume ran the tool and failed; the next one answers."""
    agent = scripted_agent(
        call("pay"), DOWN, assistant("paid"), tools=[counted("pay", counts, needs_approval=True)]
    )
    parked = await carried_out("run", agent, "Pay", memory)
    state = await approved(parked, kept, agent)
    with pytest.raises(OSError, match="down"):
        await carried_out("run", agent, state, memory)
    return agent, state


@both_kinds
async def test_a_resume_that_is_continued(each_memory: Any, kept: Keep) -> None:
    """An earlier resume ran the tool and failed: the stream goes on behind its output."""
    counts: list[str] = []
    agent, state = await resumed_in_vain(each_memory, kept, counts)
    async with held(each_memory):
        result = start(agent, await kept(state, agent), each_memory)
    events = [event async for event in result.stream_events()]
    assert (result.final_output, result.last_agent, counts) == ("paid", agent, ["pay"])
    assert result.is_complete
    assert [event.type for event in events].count("run_item_stream_event") == 1
    assert await stored(each_memory) == "U C O A"
    assert await states(each_memory) == ["completed", "completed"]


@both_kinds
async def test_a_resume_that_is_settled(each_memory: Any, kept: Keep) -> None:
    """Of two calls one began and one was rejected: neither runs, and the model is told of both."""
    begun: list[str] = []

    def pay() -> str:
        begun.append("pay")
        raise ValueError("no coins")

    paying = tool("pay", pay, needs_approval=True, failure_error_function=None)
    agent = scripted_agent(calls(("pay", {}), ("pay", {})), assistant("done"), tools=[paying])
    parked = await carried_out("run", agent, "Go", each_memory)
    state = await approved(parked, kept, agent, only=0)
    state.reject(state.get_interruptions()[-1])
    with pytest.raises(UserError, match="no coins"):
        await carried_out("run", agent, state, each_memory)
    async with held(each_memory):
        result = start(agent, await kept(state, agent), each_memory)
    await consumed(result)
    assert (result.final_output, begun) == ("done", ["pay"])
    outputs = [text_of(item) for item in await each_memory.load_session("s") if "output" in item]
    assert outputs == [UNKNOWN_TEXT, "Tool execution was not approved."]


async def test_a_reader_that_came_before_the_turn(each_memory: Any) -> None:
    """Whoever reads the stream while it waits for its turn gets every event of the run."""
    counts: list[str] = []
    agent, state = await resumed_in_vain(each_memory, live, counts)
    async with held(each_memory):
        result = start(agent, state, each_memory)
        events: list[Any] = []

        async def read() -> None:
            async for event in result.stream_events():
                events.append(event)

        reading = asyncio.create_task(read())
        for _ in range(20):
            await asyncio.sleep(0)
        assert events == []
    await reading
    assert events
    assert result.to_input_list()[-1]["role"] == "assistant"
    assert result.to_state().get_interruptions() == []


async def test_a_stream_that_is_cancelled_before_its_turn(each_memory: Any) -> None:
    """It stores nothing, and the resume can be made again."""
    counts: list[str] = []
    agent, state = await resumed_in_vain(each_memory, live, counts)
    before = await stored(each_memory)
    async with held(each_memory):
        result = start(agent, state, each_memory)
        await asyncio.sleep(0)
        result.cancel()
        await consumed(result)
    assert await stored(each_memory) == before
    again = await carried_out("run_streamed", agent, state, each_memory)
    assert (again.final_output, counts) == ("paid", ["pay"])


def desk(clerk_does: ScriptedModel, *tools: Any, hands_over: bool = True) -> Agent[Any]:
    """An agent that hands over to a clerk at once; or else one that cannot say a word."""
    clerk = Agent(name="Clerk", model=clerk_does, tools=[*tools])
    steps = [call("transfer_to_clerk")] if hands_over else []
    return Agent(name="Desk", model=ScriptedModel(steps), handoffs=[clerk])


async def test_a_keyed_stream_goes_on_with_the_agent_that_spoke(each_memory: Any) -> None:
    """Also where the session is busy when the stream is made."""
    counts: list[str] = []
    paying = counted("pay", counts)
    failing = desk(ScriptedModel([call("pay"), DOWN]), paying)
    with pytest.raises(OSError, match="down"):
        await carried_out("run_streamed", failing, "Pay", each_memory, idempotency_key="k")
    async with held(each_memory):
        again = desk(ScriptedModel([assistant("done")]), paying, hands_over=False)
        result = start(again, "Pay", each_memory, idempotency_key="k")
    await consumed(result)
    assert (result.final_output, result.last_agent.name, counts) == ("done", "Clerk", ["pay"])


async def test_a_keyed_stream_that_has_nothing_to_go_on_from(each_memory: Any) -> None:
    """It is the run that was called, with the result that was handed over."""
    agent = desk(ScriptedModel([assistant("done")]))
    result = start(agent, "Hello", each_memory, idempotency_key="k")
    first = dict(vars(result))
    await consumed(result)
    assert (result.final_output, result.last_agent.name) == ("done", "Clerk")
    assert result._state is first["_state"]


async def test_a_run_is_made_again_in_its_turn_by_the_agent_that_spoke(each_memory: Any) -> None:
    """Within one turn a stream that failed behind a handoff is continued by that agent, too."""
    counts: list[str] = []
    paying = counted("pay", counts)
    async with session_scope("s", memory=each_memory):
        with pytest.raises(OSError, match="down"):
            await run_by("run_streamed", desk(ScriptedModel([call("pay"), DOWN]), paying), "Pay")
        again = desk(ScriptedModel([assistant("done")]), paying, hands_over=False)
        result = await run_by("run_streamed", again, "Pay")
    assert (result.final_output, result.last_agent.name, counts) == ("done", "Clerk", ["pay"])


async def test_a_continued_resume_has_a_trace_of_its_own(each_memory: Any, sdk_traces: Any) -> None:
    """It does not go on in the trace of its state; the session is the group of both."""
    agent, state = await resumed_in_vain(each_memory, live, [])
    before = set(sdk_traces.group_ids)
    config = RunConfig(workflow_name="again")
    result = await carried_out("run_streamed", agent, state, each_memory, run_config=config)
    assert before == {"s"} == set(sdk_traces.group_ids)
    assert result.trace.name == "again"


async def test_a_mock_in_the_place_of_the_method(each_memory: Any) -> None:
    """Its result is handed on, whatever it is."""
    agent = desk(ScriptedModel([]))
    with patch.object(Runner, "run_streamed", return_value="mocked") as method:
        async with session_scope("s", memory=each_memory, idempotency_key="k"):
            assert Runner.run_streamed(agent, "Hello") == "mocked"
    assert [one.args for one in method.call_args_list] == [(agent, "Hello")]
