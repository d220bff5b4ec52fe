"""Approvals and turns: several runs that wait, and functions that wait and resume."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Runner, trace

from session_middleware import DuplicateTurn, WrongSession, with_session_memory
from session_middleware.testing.models import assistant, model_of, scripted_agent
from tests.support.approvals import Keep, approved, live, paying, serialised
from tests.support.sessions import METHODS, carried_out, letters, run_by, states, stored, text_of

both_ways = pytest.mark.parametrize("method", METHODS)
both_kinds = pytest.mark.parametrize("kept", [live, serialised])


@both_ways
async def test_several_parked_at_once(each_memory: Any, method: str) -> None:
    """Several runs may wait in one session, and be resumed in any order."""
    counts: list[str] = []
    agents = [paying(counts, assistant(name)) for name in "ABC"]
    results = [await carried_out(method, agent, "Pay", each_memory) for agent in agents]
    for number in (1, 0, 2):
        state = await approved(results[number], serialised, agents[number])
        result = await carried_out(method, agents[number], state, each_memory)
        assert result.final_output == "ABC"[number]
    assert await stored(each_memory) == "U C O A U C O A U C O A"
    assert await states(each_memory) == ["completed"] * 3
    answers = [item for item in await each_memory.load_session("s") if letters([item]) == "A"]
    assert [text_of(answer) for answer in answers] == ["A", "B", "C"]


@both_ways
@both_kinds
@pytest.mark.usefixtures("sdk_traces")
async def test_several_parked_inside_one_trace(each_memory: Any, method: str, kept: Keep) -> None:
    """The same with one SDK trace around them, whose id they share."""
    counts: list[str] = []
    agents = [paying(counts, assistant(name)) for name in "AB"]
    with trace("Conversation"):
        results = [await carried_out(method, agent, "Pay", each_memory) for agent in agents]
        for number in (1, 0):
            state = await approved(results[number], kept, agents[number])
            result = await carried_out(method, agents[number], state, each_memory)
            assert result.final_output == "AB"[number]
        with pytest.raises(DuplicateTurn):
            await carried_out(method, agents[0], state, each_memory)
    assert await stored(each_memory) == "U C O A U C O A"


@both_ways
@pytest.mark.parametrize("read_inside", [False, True], ids=["argument", "read inside"])
async def test_resumed_inside_a_decorated_function(
    each_memory: Any, method: str, read_inside: bool
) -> None:
    """Given to the function, or read by it: it goes on in the parked turn either way."""
    counts: list[str] = []
    agent = paying(counts)
    kept: list[Any] = []

    @with_session_memory(memory=each_memory)
    async def serve(given: Any) -> Any:
        text_or_state = kept[0] if given is None else given
        return await run_by(method, agent, text_or_state)

    result = await serve("Pay", session_id="s")
    assert await states(each_memory) == ["awaiting_approval"]
    kept.append(await approved(result, serialised, agent))
    result = await serve(None if read_inside else kept[0], session_id="s")
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await stored(each_memory) == "U C O A"
    turns = [record for record in await each_memory.turns("s") if record.state != "replaced"]
    assert [(record.turn, record.state) for record in turns] == [(1, "completed")]
    with pytest.raises(DuplicateTurn):
        await serve(None if read_inside else kept[0], session_id="s")
    assert counts == ["pay"]


@both_ways
async def test_approved_within_the_same_turn(each_memory: Any, method: str) -> None:
    """A function may approve and go on by itself; it is one turn that never parked."""
    counts: list[str] = []
    agent = paying(counts)

    @with_session_memory(memory=each_memory)
    async def serve() -> Any:
        result = await run_by(method, agent, "Pay")
        state = await approved(result, live, agent)
        return await run_by(method, agent, state)

    assert (await serve(session_id="s")).final_output == "paid"
    assert await stored(each_memory) == "U C O A"
    assert await states(each_memory) == ["completed"]


def test_run_sync_parks_and_resumes(each_memory: Any, do: Any) -> None:
    """Approvals work without an event loop of one's own."""
    counts: list[str] = []
    agent = paying(counts)
    run = with_session_memory(Runner.run_sync, memory=each_memory)
    result = run(agent, "Pay", session_id="s")
    state = do(approved(result, serialised, agent))
    assert run(agent, state, session_id="s").final_output == "paid"
    with pytest.raises(DuplicateTurn):
        run(agent, do(approved(result, serialised, agent)), session_id="s")
    assert (counts, do(stored(each_memory))) == (["pay"], "U C O A")


@both_ways
async def test_several_parked_in_one_turn(each_memory: Any, method: str) -> None:
    """Runs of one function may wait together; each is resumed once, as a run of that turn."""
    counts: list[str] = []
    agents = [paying(counts, assistant(name)) for name in "AB"]

    @with_session_memory(memory=each_memory)
    async def ask_both() -> list[Any]:
        return await asyncio.gather(*(run_by(method, agent, "Pay") for agent in agents))

    results = await ask_both(session_id="s")
    for agent, result in zip(agents, results, strict=True):
        the_same = await approved(result, serialised, agent)
        with pytest.raises(WrongSession):
            await carried_out(method, agent, the_same, each_memory, "other")
        state = await approved(result, serialised, agent)
        await carried_out(method, agent, state, each_memory)
        with pytest.raises(DuplicateTurn):
            await carried_out(method, agent, the_same, each_memory)
    assert counts == ["pay", "pay"]
    (record,) = await each_memory.turns("s")
    assert (record.state, record.runs) == ("completed", 4)
    follow_up = scripted_agent(assistant("yes"))
    await carried_out(method, follow_up, "Sure?", each_memory)
    seen = letters(model_of(follow_up).calls[0].input)
    assert (seen.count("C"), seen.count("O")) == (2, 2)
