"""Real runs on a memory that has only the six methods of SessionMemory."""

from __future__ import annotations

import asyncio

import pytest
from agents import Runner
from agents.testing import ModelStep

from session_middleware import DuplicateTurn, WrongSession, with_session_memory
from session_middleware.testing.models import assistant, call, local_agent, model_of, scripted_agent
from tests.support.approvals import approved, paying, serialised
from tests.support.sessions import METHODS, carried_out, counted, letters, run_by, stored, tool
from tests.support.six_methods import SixMethods

both_ways = pytest.mark.parametrize("method", METHODS)


@both_ways
async def test_two_runs_at_once(method: str) -> None:
    """They are two turns, one after the other."""
    memory = SixMethods(pauses=True)
    agents = [
        scripted_agent(call("look"), assistant(name), tools=[tool("look", lambda: 1)])
        for name in "AB"
    ]
    await asyncio.gather(*(carried_out(method, agent, "Go", memory) for agent in agents))
    assert await stored(memory) == "U C O A U C O A"
    seen = sorted(letters(model_of(agent).calls[0].input) for agent in agents)
    assert seen == ["U", "U C O A U"]


@both_ways
async def test_runs_at_once_in_one_turn(method: str) -> None:
    """Each run's items stay together, and neither sees the other's half."""
    memory = SixMethods(pauses=True)
    both_called = asyncio.Barrier(2)

    async def meet() -> str:
        await both_called.wait()
        return "met"

    agents = [
        scripted_agent(call("meet"), assistant(name), tools=[tool("meet", meet)]) for name in "AB"
    ]

    @with_session_memory(memory=memory)
    async def ask_both() -> None:
        await asyncio.gather(*(run_by(method, agent, "Go") for agent in agents))

    await ask_both(session_id="s")
    assert await stored(memory) == "U C O A U C O A"
    for agent in agents:
        assert [letters(seen.input) for seen in model_of(agent).calls] == ["U", "U C O"]


@both_ways
async def test_a_run_inside_a_tool(method: str) -> None:
    """A run of the same session inside a tool is stored after the run that called it."""
    memory = SixMethods(pauses=True)

    async def ask() -> str:
        return str((await Runner.run(local_agent(), "Hi", session_id="s")).final_output)

    agent = scripted_agent(call("ask"), assistant("done"), tools=[tool("ask", ask)])
    await carried_out(method, agent, "Ask", memory)
    assert await stored(memory) == "U C O A U A"


@both_ways
async def test_approvals(method: str) -> None:
    """A run that waits can be resumed once, in its own session, after other turns too."""
    memory = SixMethods(pauses=True)
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", memory)
    await carried_out(method, local_agent(), "Hi", memory)
    state, again = [await approved(result, serialised, agent) for _ in range(2)]
    with pytest.raises(WrongSession):
        await carried_out(method, agent, state, memory, "other")
    assert (await carried_out(method, agent, state, memory)).final_output == "paid"
    with pytest.raises(DuplicateTurn):
        await carried_out(method, agent, again, memory)
    assert counts == ["pay"]
    assert letters(model_of(agent).calls[-1].input) == "U C O"
    follow_up = scripted_agent(assistant("yes"))
    await carried_out(method, follow_up, "Sure?", memory)
    # A flat history keeps the order in which things were stored; the model gets whole pairs.
    assert letters(model_of(follow_up).calls[0].input) == "U C O U A A U"


@both_ways
async def test_retries_within_a_turn(method: str) -> None:
    """A failed run is replaced, or continued without calling its tool again."""
    memory = SixMethods(pauses=True)
    counts: list[str] = []
    agent = scripted_agent(
        ModelStep.raise_error(OSError("down")),
        call("pay"),
        ModelStep.raise_error(OSError("down")),
        assistant("paid"),
        tools=[counted("pay", counts)],
    )

    @with_session_memory(memory=memory)
    async def persistent() -> str:
        for _ in range(2):
            with pytest.raises(OSError, match="down"):
                await run_by(method, agent, "Pay")
        return str((await run_by(method, agent, "Pay")).final_output)

    assert await persistent(session_id="s") == "paid"
    assert counts == ["pay"]
    assert await stored(memory) == "U C O A"
