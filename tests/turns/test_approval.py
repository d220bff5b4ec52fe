"""Runs that wait for approval: parked without a lease, resumed as a part of their own turn."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from typing import Any

import pytest
from agents import Runner, set_tracing_disabled
from agents.testing import ModelStep

from session_middleware import (
    DuplicateTurn,
    MemoryUnavailable,
    SessionBusy,
    SessionMemoryError,
    TurnInProgress,
    UnknownState,
    WrongSession,
    session_scope,
)
from session_middleware.testing.models import assistant, call, local_agent, model_of, scripted_agent
from tests.support.approvals import (
    Keep,
    approved,
    live,
    paying,
    paying_and_shipping,
    serialised,
)
from tests.support.interruptions import WatchedInMemory, WatchedOneByOne
from tests.support.sessions import METHODS, carried_out, letters, states, stored, text_of

both_ways = pytest.mark.parametrize("method", METHODS)
both_kinds = pytest.mark.parametrize("kept", [live, serialised])


@both_ways
@both_kinds
async def test_a_parked_turn_holds_no_lease(each_memory: Any, method: str, kept: Keep) -> None:
    """While it waits the session is free; resumed, it is the same turn, with one run more."""
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", each_memory)
    assert await states(each_memory) == ["awaiting_approval"]
    async with session_scope("s", memory=each_memory, on_busy="reject"):
        pass
    state = await approved(result, kept, agent)
    result = await carried_out(method, agent, state, each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    record = (await each_memory.turns("s"))[-1]
    assert (record.turn, record.state, record.runs) == (1, "completed", 2)
    assert letters(record.items) == "U C O A"
    assert record.output_text == "paid"


@both_ways
@pytest.mark.parametrize("kind", [WatchedInMemory, WatchedOneByOne])
async def test_a_run_that_could_not_be_parked_raises(kind: Any, method: str) -> None:
    """MemoryUnavailable, instead of a state that nobody could resume."""
    ended = False
    for at in itertools.count(1):
        memory = kind()
        memory.will_fail(at, after_effect=False)
        agent = paying([])
        try:
            result = await carried_out(method, agent, "Pay", memory)
        except MemoryUnavailable:
            ended = ended or memory.failed in ("end", "append and end")
            continue
        memory.recovers()
        state = await approved(result, live, agent)
        assert (await carried_out(method, agent, state, memory)).final_output == "paid"
        if memory.failed is None:
            break
    assert ended


@both_ways
@both_kinds
async def test_turns_in_between(each_memory: Any, method: str, kept: Keep) -> None:
    """Whatever was said meanwhile, the resume goes on with its own turn's items."""
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", each_memory)
    for text in ("Hi, I'm Alice", "What's my name?"):
        await carried_out(method, local_agent(), text, each_memory)
    state = await approved(result, kept, agent)
    await carried_out(method, agent, state, each_memory)
    assert letters(model_of(agent).calls[-1].input) == "U C O"
    assert await stored(each_memory) == "U C O A U A U A"
    follow_up = scripted_agent(assistant("yes"))
    await carried_out(method, follow_up, "Sure?", each_memory)
    assert letters(model_of(follow_up).calls[0].input) == "U C O A U A U A U"


@both_ways
@both_kinds
async def test_resumed_twice(each_memory: Any, method: str, kept: Keep) -> None:
    """The second resume of the same state is refused before any tool is called."""
    counts: list[str] = []
    agent = paying(counts, assistant("paid"), assistant("paid again"))
    result = await carried_out(method, agent, "Pay", each_memory)
    first = await approved(result, kept, agent)
    second = await approved(result, serialised, agent)
    await carried_out(method, agent, first, each_memory)
    for again in (second, first, await serialised(first, agent)):
        with pytest.raises(DuplicateTurn) as raised:
            await carried_out(method, agent, again, each_memory)
        assert (raised.value.turn, letters(raised.value.items)) == (1, "U C O A")
    assert counts == ["pay"]
    assert len(model_of(agent).calls) == 2
    assert await stored(each_memory) == "U C O A"


@both_ways
async def test_resumed_twice_at_once(each_memory: Any, method: str) -> None:
    """Of two resumes at once one goes on; no tool is called twice."""
    counts: list[str] = []
    agent = paying(counts, assistant("paid"), assistant("paid again"))
    result = await carried_out(method, agent, "Pay", each_memory)
    both = [await approved(result, serialised, agent) for _ in range(2)]
    ends = await asyncio.gather(
        *(carried_out(method, agent, state, each_memory) for state in both),
        return_exceptions=True,
    )
    (refused,) = [end for end in ends if isinstance(end, SessionMemoryError)]
    assert isinstance(refused, (DuplicateTurn, TurnInProgress))
    assert counts == ["pay"]
    assert await stored(each_memory) == "U C O A"


@both_ways
@both_kinds
async def test_resumed_under_another_session(each_memory: Any, method: str, kept: Keep) -> None:
    """WrongSession before any tool is called; it can still be resumed where it belongs."""
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(result, kept, agent)
    with pytest.raises(WrongSession):
        await carried_out(method, agent, state, each_memory, "other")
    assert counts == []
    assert await stored(each_memory, "other") == ""
    await carried_out(method, agent, state, each_memory)
    assert (counts, await stored(each_memory)) == (["pay"], "U C O A")


@both_ways
@both_kinds
async def test_partial_approval(each_memory: Any, method: str, kept: Keep) -> None:
    """With one of two calls approved the turn parks again; no call is made twice."""
    counts: list[str] = []
    agent = paying_and_shipping(counts)
    result = await carried_out(method, agent, "Pay and ship", each_memory)
    state = await approved(result, kept, agent, only=0)
    the_same = await approved(result, serialised, agent, only=0)
    result = await carried_out(method, agent, state, each_memory)
    assert len(result.interruptions) == 1
    assert await states(each_memory) == ["awaiting_approval"]
    with pytest.raises(DuplicateTurn):
        await carried_out(method, agent, the_same, each_memory)
    result = await carried_out(method, agent, await approved(result, kept, agent), each_memory)
    assert (result.final_output, sorted(counts)) == ("done", ["pay", "ship"])
    assert await states(each_memory) == ["completed"]
    items = await each_memory.load_session("s")
    assert sorted(letters(items)) == sorted("U C C O O A")
    outputs = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    assert len(set(outputs)) == 2


@both_ways
@both_kinds
async def test_resumed_with_nothing_approved(each_memory: Any, method: str, kept: Keep) -> None:
    """A state that is resumed unchanged parks again as it was, and can be resumed."""
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", each_memory)
    result = await carried_out(method, agent, await kept(result.to_state(), agent), each_memory)
    assert len(result.interruptions) == 1
    assert (counts, await states(each_memory)) == ([], ["awaiting_approval"])
    await carried_out(method, agent, await approved(result, kept, agent), each_memory)
    assert (counts, await stored(each_memory)) == (["pay"], "U C O A")


@both_ways
async def test_the_very_same_state_object_twice(each_memory: Any, method: str) -> None:
    """The SDK carries a state forward when it resumes it; the object is known all the same."""
    counts: list[str] = []
    agent = paying(counts, assistant("paid"), assistant("paid again"))
    result = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(result, live, agent)
    await carried_out(method, agent, state, each_memory)
    assert state.get_interruptions() == []
    with pytest.raises(DuplicateTurn):
        await carried_out(method, agent, state, each_memory)
    assert len(model_of(agent).calls) == 2
    assert await stored(each_memory) == "U C O A"


@both_ways
async def test_one_state_object_through_partial_approvals(each_memory: Any, method: str) -> None:
    """A state that was carried forward may be approved further and resumed again."""
    counts: list[str] = []
    agent = paying_and_shipping(counts)
    result = await carried_out(method, agent, "Pay and ship", each_memory)
    state = result.to_state()
    for _ in range(2):
        state.approve(state.get_interruptions()[0])
        result = await carried_out(method, agent, state, each_memory)
    assert (result.final_output, counts) == ("done", ["pay", "ship"])
    assert sorted(await stored(each_memory)) == sorted("U C C O O A")


@both_ways
@both_kinds
async def test_rejected_calls(each_memory: Any, method: str, kept: Keep) -> None:
    """A rejected call gets the rejection as its output, and the turn completes."""
    counts: list[str] = []
    agent = paying(counts, assistant("as you like"))
    result = await carried_out(method, agent, "Pay", each_memory)
    state = await kept(result.to_state(), agent)
    state.reject(state.get_interruptions()[0], rejection_message="too expensive")
    await carried_out(method, agent, state, each_memory)
    assert counts == []
    assert await stored(each_memory) == "U C O A"
    assert text_of((await each_memory.load_session("s"))[2]) == "too expensive"


@both_ways
@both_kinds
async def test_approval_after_approval(each_memory: Any, method: str, kept: Keep) -> None:
    """A resumed run may wait again, for another call of the same tool."""
    counts: list[str] = []
    agent = paying(counts, call("pay"), assistant("paid twice"))
    result = await carried_out(method, agent, "Pay", each_memory)
    for waiting in (1, 0):
        state = await approved(result, kept, agent)
        result = await carried_out(method, agent, state, each_memory)
        assert len(result.interruptions) == waiting
    assert (result.final_output, counts) == ("paid twice", ["pay", "pay"])
    assert await stored(each_memory) == "U C O C O A"
    assert await states(each_memory) == ["completed"]


@both_ways
@both_kinds
async def test_a_state_that_was_never_parked_here(
    each_memory: Any, method: str, kept: Keep
) -> None:
    """A state of a run without a session is refused, unless it may have been parked elsewhere."""
    counts: list[str] = []
    agent = paying(counts)
    await carried_out(method, local_agent(), "Hi", each_memory)
    state = await approved(await Runner.run(agent, "Pay"), kept, agent)
    with pytest.raises(UnknownState, match="adopt"):
        await carried_out(method, agent, state, each_memory)
    assert counts == []
    adopting = {"unknown_state": "adopt"}
    result = await carried_out(method, agent, state, each_memory, decoration=adopting)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await states(each_memory) == ["completed", "completed"]
    follow_up = scripted_agent(assistant("yes"))
    await carried_out(method, follow_up, "Sure?", each_memory)
    seen = letters(model_of(follow_up).calls[0].input)
    assert seen.startswith("U A")
    assert seen.endswith("A U")
    assert seen.count("C") == seen.count("O")


@both_ways
@both_kinds
async def test_abandoned_and_resumed_later(each_memory: Any, method: str, kept: Keep) -> None:
    """A new message does not end the approval: it can be given later."""
    counts: list[str] = []
    agent = paying(counts, assistant("never mind"), assistant("paid"))
    result = await carried_out(method, agent, "Pay", each_memory)
    await carried_out(method, agent, "Forget it", each_memory)
    assert letters(model_of(agent).calls[-1].input) == "U U"
    result = await carried_out(method, agent, await approved(result, kept, agent), each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await stored(each_memory) == "U C O A U A"


@both_ways
async def test_a_resume_waits_for_the_session(each_memory: Any, method: str) -> None:
    """A resumed run is refused or waits like any other while the session is held."""
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(result, live, agent)

    async def refused() -> None:
        with pytest.raises(SessionBusy):
            await carried_out(method, agent, state, each_memory, decoration={"on_busy": "reject"})

    async with session_scope("s", memory=each_memory):
        outside = contextvars.Context()
        await asyncio.get_running_loop().create_task(refused(), context=outside)
        waiting = asyncio.get_running_loop().create_task(
            carried_out(method, agent, state, each_memory), context=outside
        )
        await asyncio.sleep(0)
        assert counts == []
    assert (await waiting).final_output == "paid"
    assert counts == ["pay"]


@both_ways
@both_kinds
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_resume_that_fails_can_be_made_again(
    each_memory: Any, method: str, kept: Keep, when: str
) -> None:
    """The same state, whenever it was kept, continues behind the output and runs no tool."""
    counts: list[str] = []
    agent = paying(counts, ModelStep.raise_error(OSError("down")), assistant("paid"))
    result = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(result, kept, agent)
    before = await kept(state, agent)
    with pytest.raises(OSError, match="down"):
        await carried_out(method, agent, state, each_memory)
    assert await stored(each_memory) == "U C O"
    assert await states(each_memory) == ["failed"]
    again = before if when == "before" else await kept(state, agent)
    result = await carried_out(method, agent, again, each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await stored(each_memory) == "U C O A"
    assert await states(each_memory) == ["completed"]
    for done in (before, again, state):
        with pytest.raises(DuplicateTurn):
            await carried_out(method, agent, done, each_memory)
    assert counts == ["pay"]


@both_ways
async def test_a_key_whose_turn_waits_for_approval(each_memory: Any, method: str) -> None:
    """The same key while it is parked is DuplicateTurn; the resume itself needs no key."""
    counts: list[str] = []
    agent = paying(counts)
    result = await carried_out(method, agent, "Pay", each_memory, idempotency_key="k")
    with pytest.raises(DuplicateTurn):
        await carried_out(method, agent, "Pay", each_memory, idempotency_key="k")
    await carried_out(method, agent, await approved(result, serialised, agent), each_memory)
    assert (counts, await stored(each_memory)) == (["pay"], "U C O A")


@both_ways
@pytest.mark.parametrize("tracing", [True, False])
@pytest.mark.usefixtures("sdk_traces")
async def test_the_same_request_parked_twice_without_tracing(
    each_memory: Any, method: str, tracing: bool
) -> None:
    """With equal inputs, equal calls and no trace to tell them apart, both can be resumed."""
    set_tracing_disabled(not tracing)
    counts: list[str] = []
    agents = [paying(counts, assistant(name), call_id="the_same") for name in "AB"]
    results = [await carried_out(method, agent, "Pay", each_memory) for agent in agents]
    for agent, result in zip(agents, results, strict=True):
        await carried_out(method, agent, await approved(result, serialised, agent), each_memory)
    assert counts == ["pay", "pay"]
    assert await stored(each_memory) == "U C O A U C O A"
