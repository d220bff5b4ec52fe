"""``history_at`` gives exactly the items that each model call was given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, Runner

from session_middleware import InvalidOption, last_items, last_turns, with_session_memory
from session_middleware.testing.models import assistant, call, handoff_to, model_of, scripted_agent
from session_middleware.testing.provider import Provider
from tests.support.approvals import approved, paying, serialised
from tests.support.sessions import METHODS, carried_out, counted

both_ways = pytest.mark.parametrize("method", METHODS)


def given(agent: Agent[Any]) -> list[list[Any]]:
    """What each model call of the agent was given so far."""
    return [[*made.input] for made in model_of(agent).calls]


async def assert_same(
    memory: Any, turn: int, expected: list[list[Any]], *, run: int = 1, session_id: str = "s"
) -> None:
    """Each call of the run was given that."""
    for number, items in enumerate(expected, start=1):
        assert await memory.history_at(session_id, turn, run, number) == items
    with pytest.raises(InvalidOption):
        await memory.history_at(session_id, turn, run, len(expected) + 1)


@both_ways
async def test_plain_turns(each_memory: Any, method: str) -> None:
    """The history, the input, and what the run made before the call."""
    tools = [counted("look", [])]
    agent = scripted_agent(
        assistant("1"), call("look"), call("look"), assistant("2"), assistant("3"), tools=tools
    )
    for text in ("one", "two", "three"):
        await carried_out(method, agent, text, each_memory)
    expected = given(agent)
    await assert_same(each_memory, 1, expected[:1])
    await assert_same(each_memory, 2, expected[1:4])
    await assert_same(each_memory, 3, expected[4:])


def every_other(turns: list[Any]) -> list[Any]:
    """A window of a user's own."""
    return turns[::2]


@pytest.mark.parametrize(
    "window", [last_turns(1), last_items(3), last_turns(2, step=2), every_other]
)
async def test_trimmed_turns(each_memory: Any, window: Any) -> None:
    """Only what the window left."""
    agent = scripted_agent(*map(assistant, "12345"))
    run = with_session_memory(Runner.run, memory=each_memory, window=window)
    for text in "12345":
        await run(agent, text, session_id="s")
    for turn, items in enumerate(given(agent), start=1):
        await assert_same(each_memory, turn, [items])


async def test_turns_after_others_were_forgotten(each_memory: Any) -> None:
    """A fork has the manifest of its turns, with their numbers."""
    agent = scripted_agent(*map(assistant, "1234"))
    for text in "123":
        await carried_out("run", agent, text, each_memory)
    await each_memory.fork("s", "new", at_turn=2)
    await carried_out("run", agent, "4", each_memory, "new")
    expected = given(agent)
    for turn, items in ((1, expected[0]), (2, expected[1]), (3, expected[3])):
        await assert_same(each_memory, turn, [items], session_id="new")


async def test_repaired_turns(each_memory: Any) -> None:
    """As the repair left it, also where the storage never changes."""
    orphan = {"type": "function_call_output", "call_id": "none", "output": "x"}
    await each_memory.append_to_session("s", [{"role": "user", "content": "0"}, orphan])
    agent = scripted_agent(call("look"), assistant("1"), tools=[counted("look", [])])
    await carried_out("run", agent, "1", each_memory)
    assert orphan not in given(agent)[0]
    await assert_same(each_memory, 2, given(agent))


async def test_failed_turns(each_memory: Any) -> None:
    """What the call was given that failed, and the turn after it."""
    tools = [counted("look", [])]
    agent = scripted_agent(call("look"), RuntimeError("down"), assistant("2"), tools=tools)
    with pytest.raises(RuntimeError):
        await carried_out("run", agent, "1", each_memory)
    await carried_out("run", agent, "2", each_memory)
    expected = given(agent)
    await assert_same(each_memory, 1, expected[:2])
    await assert_same(each_memory, 2, expected[2:])


@pytest.mark.parametrize("with_tool", [True, False], ids=["continued", "replaced"])
async def test_retried_turns(each_memory: Any, with_tool: bool) -> None:
    """A turn with the same key goes on behind the tools of the one before, or begins anew."""
    before = [call("look")] if with_tool else []
    agent = scripted_agent(
        assistant("0"),
        *before,
        RuntimeError("down"),
        assistant("1"),
        assistant("2"),
        tools=[counted("look", [])],
    )
    run = with_session_memory(Runner.run, memory=each_memory)
    await run(agent, "0", session_id="s")
    with pytest.raises(RuntimeError):
        await run(agent, "1", session_id="s", idempotency_key="k")
    await run(agent, "1", session_id="s", idempotency_key="k")
    await run(agent, "2", session_id="s")
    expected = given(agent)
    records = [record for record in await each_memory.turns("s") if record.state != "replaced"]
    retried = records[1]
    run_number = max(map(int, retried.manifest["runs"]))
    await assert_same(each_memory, retried.turn, [expected[-2]], run=run_number)
    await assert_same(each_memory, records[0].turn, [expected[-1]])


@both_ways
async def test_resumed_turns(each_memory: Any, method: str) -> None:
    """The parked half and the resumed one, with turns in between."""
    agent = paying([], assistant("paid"))
    other = scripted_agent(assistant("0"), assistant("between"), assistant("after"))
    await carried_out("run", other, "0", each_memory)
    parked = await carried_out(method, agent, "Pay", each_memory)
    await carried_out("run", other, "between", each_memory)
    await carried_out(method, agent, await approved(parked, serialised, agent), each_memory)
    await carried_out("run", other, "after", each_memory)
    await assert_same(each_memory, 2, given(agent)[:1])
    await assert_same(each_memory, 2, given(agent)[1:], run=2)
    await assert_same(each_memory, 3, given(other)[1:2])
    await assert_same(each_memory, 4, given(other)[2:])


async def test_several_runs_of_a_turn(each_memory: Any) -> None:
    """One after the other, and at once."""
    agents = [scripted_agent(assistant(name)) for name in "abcd"]

    @with_session_memory(memory=each_memory)
    async def serve() -> None:
        await Runner.run(agents[0], "a")
        await asyncio.gather(Runner.run(agents[1], "b"), Runner.run(agents[2], "c"))
        await Runner.run(agents[3], "d")

    await serve(session_id="s")
    by_text = {run: await each_memory.history_at("s", 1, run) for run in (1, 2, 3, 4)}
    expected = [given(agent)[0] for agent in agents]
    for items in expected:
        assert items in by_text.values()


async def test_a_handoff(each_memory: Any) -> None:
    """Both agents' calls belong to the one run."""
    second = scripted_agent(assistant("there"), name="Second")
    first = scripted_agent(handoff_to(second), name="First", handoffs=[second])
    await carried_out("run", first, "go", each_memory)
    await assert_same(each_memory, 1, [*given(first), *given(second)])


async def test_what_redact_left_is_told(each_memory: Any) -> None:
    """The model had the words; the memory never did."""

    def redact(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "content": "[card]"} if item.get("role") == "user" else item

    agent = scripted_agent(assistant("1"), assistant("2"))
    run = with_session_memory(Runner.run, memory=each_memory, redact=redact)
    for text in ("4111", "5500"):
        await run(agent, text, session_id="s")
    items = await each_memory.history_at("s", 2)
    assert [item["content"] for item in items if item.get("role") == "user"] == ["[card]"] * 2


async def test_what_a_provider_received(each_memory: Any, provider: Provider) -> None:
    """Over HTTP, tools and reasoning included."""
    agent = provider.agent("responses", tools=[counted("look", [])])
    provider.script(call("look"), assistant("1"), assistant("2"))
    for text in ("one", "two"):
        await carried_out("run", agent, text, each_memory)
    received = [body["input"] for body in provider.bodies("/responses")]
    told = [
        await each_memory.history_at("s", 1, 1, 1),
        await each_memory.history_at("s", 1, 1, 2),
        await each_memory.history_at("s", 2, 1, 1),
    ]
    assert told == received


async def test_calls_that_are_not_known(each_memory: Any) -> None:
    """They are named, and so is what was removed."""
    agent = scripted_agent(assistant("1"))
    await carried_out("run", agent, "1", each_memory)
    for place in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        with pytest.raises(InvalidOption):
            await each_memory.history_at("s", *place)
    await each_memory.undo("s")
    with pytest.raises(InvalidOption, match="removed"):
        await each_memory.history_at("s", 1)
