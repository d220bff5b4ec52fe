"""Scripted agents take their steps, and the local one answers from what it is given."""

from __future__ import annotations

import pytest
from agents import Agent, Runner, function_tool

from session_middleware import InMemorySessionMemory, installed, with_session_memory
from session_middleware.testing import (
    assert_session,
    assistant,
    call,
    calls,
    failure,
    handoff_to,
    local_agent,
    model_of,
    scripted_agent,
)
from tests.support.sessions import METHODS, run_by


@function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@function_tool
def shout(text: str) -> str:
    """Make a text loud."""
    return text.upper()


async def test_a_script_is_taken_in_order() -> None:
    """Answers, one call, several calls; what the model was given can be looked at."""
    agent = scripted_agent(
        call("add", {"a": 1, "b": 2}),
        calls(("add", {"a": 3, "b": 4}), ("add", {"a": 5, "b": 6})),
        assistant("3, 7, 11"),
        tools=[add],
        name="Calculator",
    )
    result = await Runner.run(agent, "Add")
    assert result.final_output == "3, 7, 11"
    assert agent.name == "Calculator"
    outputs = [item["output"] for item in model_of(agent).calls[-1].input if "output" in item]
    assert outputs == ["3", "7", "11"]


async def test_a_handoff_and_a_failure() -> None:
    """The other agent answers; in the next turn its model is down."""
    billing = scripted_agent(assistant("It is paid."), failure("billing is down"), name="Billing")
    triage = scripted_agent(handoff_to(billing), handoff_to(billing), handoffs=[billing])
    memory = InMemorySessionMemory()
    run = with_session_memory(Runner.run, memory=memory)
    result = await run(triage, "My invoice?", session_id="s")
    assert (result.final_output, result.last_agent.name) == ("It is paid.", "Billing")
    with pytest.raises(RuntimeError, match="billing is down"):
        await run(triage, "And this one?", session_id="s")
    await assert_session(memory, "s", letters="U C O A U C O", states=["completed", "failed"])


async def test_a_failure_of_the_tests_own() -> None:
    """Any exception can be a step."""
    with pytest.raises(TimeoutError):
        await Runner.run(scripted_agent(failure(TimeoutError())), "Hi")


async def test_the_local_agent_knows_only_what_it_is_given() -> None:
    """With the session it knows the name, without it it does not."""
    run = with_session_memory(Runner.run, memory=InMemorySessionMemory())
    agent = local_agent(instructions="Reply very concisely.")
    await run(agent, "Hi, I'm Alice.", session_id="s")
    assert (await run(agent, "What's my name?", session_id="s")).final_output == (
        "Your name is Alice."
    )
    alone = await Runner.run(agent, "What's my name?")
    assert alone.final_output == "You have not told me your name."


@pytest.mark.parametrize("method", METHODS)
async def test_the_local_agent_uses_tools_that_a_message_names(method: str) -> None:
    """A message names a tool, or an agent and its tool; numbers and quoted text are arguments."""
    billing = local_agent(name="Billing", uses_tools=True, tools=[add])
    triage = local_agent(uses_tools=True, handoffs=[billing], tools=[shout])
    memory = InMemorySessionMemory()

    async def says(text: str) -> tuple[str, str]:
        with installed(memory=memory):
            result = await run_by(method, triage, text, session_id="s")
        return result.last_agent.name, result.final_output

    assert await says('Shout "hello", please.') == ("Assistant", "The tool says: HELLO")
    assert await says("Let billing add 20 and 22.") == ("Billing", "The tool says: 42")
    assert await says("Ask Billing.") == ("Billing", "I have heard 3 messages from you.")
    assert await says("Hello?") == ("Assistant", "I have heard 4 messages from you.")
    await assert_session(memory, "s", letters="U C O A U C O C O A U C O A U A")


def test_only_a_scripted_agent_has_a_script() -> None:
    """model_of says what it found instead."""
    with pytest.raises(TypeError, match=r"scripted_agent\(\), got one whose model is LocalModel"):
        model_of(local_agent())
    with pytest.raises(TypeError, match="got one whose model is NoneType"):
        model_of(Agent(name="Assistant"))
