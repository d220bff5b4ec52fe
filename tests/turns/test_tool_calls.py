"""Tool calls of a turn: their keys, their records, and what becomes of unknown ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ModelStep, ScriptedModel, function_call
from agents.tool_context import ToolContext
from openai.types.responses import ResponseReasoningItem

from session_middleware import (
    InMemorySessionMemory,
    MemoryUnavailable,
    OutcomeUnknown,
    SQLiteSessionMemory,
    current_tool_call,
    session_scope,
)
from session_middleware.effects import UNKNOWN_TEXT
from session_middleware.testing.models import assistant, call, calls, model_of, scripted_agent
from tests.support.sessions import METHODS, carried_out

both_ways = pytest.mark.parametrize("method", METHODS)


class Card:
    """A card that tools charge, and what they were told of their calls."""

    def __init__(self, *, fails: int = 0, hangs: bool = False) -> None:
        self.told: list[Any] = []
        self.fails = fails
        self.hangs = hangs
        self.began = asyncio.Event()

    def tool(self, name: str = "charge", **options: Any) -> Any:
        async def body(ctx: ToolContext[Any], cents: int = 1) -> str:
            self.told.append(current_tool_call(ctx))
            self.began.set()
            if self.hangs:
                await asyncio.Event().wait()
            if self.fails >= len(self.told):
                raise OSError("the provider is down")
            return f"charged {cents}"

        return function_tool(name_override=name, failure_error_function=None, **options)(body)


def charging(card: Card, *steps: Any, **options: Any) -> Agent[Any]:
    return scripted_agent(call("charge", {"cents": 5}), *steps, tools=[card.tool()], **options)


async def outputs(memory: Any) -> list[str]:
    items = await memory.load_session("s")
    return [item["output"] for item in items if item.get("type") == "function_call_output"]


@both_ways
async def test_a_tool_is_told_its_key(each_memory: Any, method: str) -> None:
    """Equal calls have keys of their own; the record of the turn lists them without content."""
    card = Card()
    twice = [("charge", {"cents": 5}), ("charge", {"cents": 5}), ("charge", {"cents": 7})]
    agent = scripted_agent(calls(*twice), assistant("done"), tools=[card.tool()])
    await carried_out(method, agent, "Pay", each_memory, idempotency_key="k")
    assert len({told.key for told in card.told}) == 3
    assert {told.attempt for told in card.told} == {1}
    assert all(told.fence >= 1 for told in card.told)
    (record,) = await each_memory.turns("s")
    assert [one.key for one in record.calls] == [told.key for told in card.told]
    assert {(one.name, one.state) for one in record.calls} == {("charge", "done")}
    assert all(one.ended_at is not None for one in record.calls)
    assert "cents" not in repr(record.calls)


async def test_fences_grow_with_every_turn(each_memory: Any) -> None:
    """Also when a session was deleted and made again."""
    card = Card()
    for session_id in ("a", "b", "a"):
        agent = charging(card, assistant("done"))
        await carried_out("run", agent, "Pay", each_memory, session_id)
        await each_memory.clear_session(session_id)
    fences = [told.fence for told in card.told]
    assert fences == sorted(set(fences))
    assert len({told.key for told in card.told}) == 3  # three requests, three effects


async def test_outside_a_session_there_is_no_call() -> None:
    """A tool can ask anyway, and is told None; so is code that is no tool."""
    card = Card()
    await Runner.run(charging(card, assistant("done")), "Pay")
    assert card.told == [None]
    assert current_tool_call(object()) is None


async def test_a_cancelled_call_is_told_to_the_model(each_memory: Any) -> None:
    """The same request again does not run the tool; a repeated call has the old key."""
    card = Card(hangs=True)
    running = asyncio.ensure_future(
        carried_out("run", charging(card), "Pay", each_memory, idempotency_key="k")
    )
    await card.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    card.hangs = False
    agent = charging(card, assistant("done"))
    await carried_out("run", agent, "Pay", each_memory, idempotency_key="k")
    first, second = card.told
    assert (first.key, first.attempt, second.key, second.attempt) == (first.key, 1, first.key, 2)
    assert second.fence > first.fence
    assert await outputs(each_memory) == [UNKNOWN_TEXT, "charged 5"]
    assert UNKNOWN_TEXT in str(model_of(agent).calls[0].input)
    record = (await each_memory.turns("s"))[0]
    assert [(one.state, one.attempt) for one in record.calls] == [("unknown", 1), ("done", 2)]


async def test_a_call_is_told_with_the_reasoning_before_it(each_memory: Any) -> None:
    """Also behind stored items of the same run: a provider refuses such a call without it."""
    card = Card()
    hangs = Card(hangs=True)
    thought = ResponseReasoningItem(id="rs_1", type="reasoning", summary=[])
    thinks = ModelStep(output=[thought, function_call("refund", {}, call_id="refunded")])
    tools = [card.tool(), hangs.tool("refund")]
    agent = scripted_agent(call("charge", call_id="charged"), thinks, tools=tools)
    running = asyncio.ensure_future(
        carried_out("run", agent, "Pay", each_memory, idempotency_key="k")
    )
    await hangs.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    again = scripted_agent(assistant("done"), tools=tools)
    await carried_out("run", again, "Pay", each_memory, idempotency_key="k")
    given = model_of(again).calls[0].input
    assert [item.get("id") or item.get("call_id") for item in given[-4:]] == [
        "charged",
        "rs_1",
        "refunded",
        "refunded",
    ]
    assert given[-1]["output"] == UNKNOWN_TEXT


@both_ways
@pytest.mark.parametrize(
    "decoration", [{"on_unknown": "rerun"}, {"rerun": ["charge"]}, {"rerun": str.isalpha}]
)
async def test_a_tool_that_may_run_again_does(
    each_memory: Any, method: str, decoration: dict[str, Any]
) -> None:
    """The model is told nothing, and makes the call again, under the old key."""
    card = Card(fails=1)
    options = {"idempotency_key": "k", "decoration": decoration}
    with pytest.raises(Exception, match="provider is down"):
        await carried_out(method, charging(card), "Pay", each_memory, **options)
    await carried_out(method, charging(card, assistant("done")), "Pay", each_memory, **options)
    first, second = card.told
    assert (second.key, second.attempt) == (first.key, 2)
    assert await outputs(each_memory) == ["charged 5"]


@both_ways
async def test_an_unknown_outcome_can_be_an_error(each_memory: Any, method: str) -> None:
    """It names the calls, nothing runs, and another choice can still be made."""
    card = Card(fails=1)
    with pytest.raises(Exception, match="provider is down"):
        await carried_out(method, charging(card), "Pay", each_memory, idempotency_key="k")
    agent = charging(card, assistant("done"))
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match="charge") as raised:
            await carried_out(
                method,
                agent,
                "Pay",
                each_memory,
                idempotency_key="k",
                decoration={"on_unknown": "raise"},
            )
        (unknown,) = raised.value.calls
        assert (unknown.name, unknown.key) == ("charge", card.told[0].key)
    assert len(card.told) == 1
    agent = scripted_agent(assistant("I cannot tell"), tools=[card.tool()])
    await carried_out(method, agent, "Pay", each_memory, idempotency_key="k")
    assert (len(card.told), await outputs(each_memory)) == (1, [UNKNOWN_TEXT])


async def test_a_retry_in_the_same_turn_knows_its_calls(each_memory: Any) -> None:
    """Without a key nothing is written for it, and nothing is forgotten within the turn."""
    card = Card(fails=1)
    async with session_scope("s", memory=each_memory):
        with pytest.raises(Exception, match="provider is down"):
            await Runner.run(charging(card), "Pay")
        await Runner.run(charging(card, assistant("done")), "Pay")
    first, second = card.told
    assert (second.key, second.attempt) == (first.key, 2)
    assert await outputs(each_memory) == [UNKNOWN_TEXT, "charged 5"]


async def test_one_of_two_tools_ended(each_memory: Any) -> None:
    """Its output is kept and it does not run again, while the other one is unknown."""
    mail, card = Card(), Card(hangs=True)
    tools = [mail.tool("mail"), card.tool("charge")]
    both = calls(("mail", {}), ("charge", {}))
    running = asyncio.ensure_future(
        carried_out(
            "run", scripted_agent(both, tools=tools), "Pay", each_memory, idempotency_key="k"
        )
    )
    await card.began.wait()
    await mail.began.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    agent = scripted_agent(assistant("done"), tools=tools)
    await carried_out("run", agent, "Pay", each_memory, idempotency_key="k")
    assert (len(mail.told), len(card.told)) == (1, 1)
    assert await outputs(each_memory) == ["charged 1", UNKNOWN_TEXT]


async def test_a_call_that_cannot_be_journalled_does_not_begin(tmp_path: Any) -> None:
    """With a key, also where the memory's failures are otherwise forgotten."""

    class Failing(SQLiteSessionMemory):
        async def journal(self, *args: Any, **options: Any) -> None:
            raise MemoryUnavailable("the disk is full")

    card = Card()
    memory = Failing(tmp_path / "chat.db")
    forgetting = {"on_unavailable": "forget"}
    for number, decoration in enumerate(({}, forgetting)):
        with pytest.raises(MemoryUnavailable, match="full"):
            await carried_out(
                "run",
                charging(card),
                "Pay",
                memory,
                idempotency_key=f"k{number}",
                decoration=decoration,
            )
    assert card.told == []
    assert [record.calls for record in await memory.turns("s")] == [(), ()]  # none is unknown
    await carried_out("run", charging(card, assistant("done")), "Pay", memory)
    assert len(card.told) == 1  # without a key the journal is not written
    await memory.cleanup()


@both_ways
async def test_a_run_goes_on_with_the_agent_that_spoke(each_memory: Any, method: str) -> None:
    """After a handoff, the request that comes again continues with the agent handed over to."""
    card = Card(fails=1)

    def desk(second: ScriptedModel) -> Agent[Any]:
        clerk = Agent(name="Clerk", model=second, tools=[card.tool()])
        to_clerk = ScriptedModel([call("transfer_to_clerk")])
        return Agent(name="Desk", model=to_clerk, handoffs=[clerk])

    first = ScriptedModel([call("charge", {"cents": 5})])
    with pytest.raises(Exception, match="provider is down"):
        await carried_out(method, desk(first), "Pay", each_memory, idempotency_key="k")
    second = ScriptedModel([call("charge", {"cents": 5}), assistant("done")])
    result = await carried_out(method, desk(second), "Pay", each_memory, idempotency_key="k")
    assert (result.final_output, result.last_agent.name) == ("done", "Clerk")
    assert card.told[1].key == card.told[0].key


async def test_an_agent_as_a_tool_is_one_call(each_memory: Any) -> None:
    """A call inside it has a key derived from the outer one, the same when it is made again."""
    keys = []
    for attempt in (1, 2):
        card = Card(fails=1 if attempt == 1 else 0)
        inner = charging(card, assistant("inner done"))
        tool = inner.as_tool("ask", "Ask.", failure_error_function=None)
        again = [] if attempt == 1 else [assistant("done")]
        agent = scripted_agent(call("ask", {"input": "Pay"}), *again, tools=[tool])
        running = carried_out("run", agent, "Pay", each_memory, idempotency_key="k")
        if attempt == 1:
            with pytest.raises(Exception, match="provider is down"):
                await running
        else:
            await running
        (told,) = card.told
        keys.append(told.key)
    assert keys[0] == keys[1]
    record = (await each_memory.turns("s"))[0]
    assert {one.name for one in record.calls} == {"ask"}
    assert keys[0] not in {one.key for one in record.calls}


async def test_the_users_hooks_do_not_lose_an_output(each_memory: Any) -> None:
    """A hook that fails when the tool has ended leaves its output in the journal."""
    from agents import RunHooks

    class Failing(RunHooks[Any]):
        async def on_tool_end(self, *_: Any) -> None:
            raise OSError("the hook is broken")

    card = Card()
    options = {"idempotency_key": "k"}
    with pytest.raises(Exception, match="hook is broken"):
        await carried_out("run", charging(card), "Pay", each_memory, hooks=Failing(), **options)
    agent = scripted_agent(assistant("done"), tools=[card.tool()])
    await carried_out("run", agent, "Pay", each_memory, **options)
    assert (len(card.told), await outputs(each_memory)) == (1, ["charged 5"])


@both_ways
async def test_an_approved_call_that_cannot_be_journalled_does_not_begin(
    tmp_path: Any, method: str
) -> None:
    """The error is the memory's, not one of the SDK's around it, and the resume can be repeated."""

    class Failing(SQLiteSessionMemory):
        fails = True

        async def journal(self, *args: Any, **options: Any) -> None:
            if self.fails:
                raise MemoryUnavailable("the disk is full")
            await super().journal(*args, **options)

    card = Card()
    memory = Failing(tmp_path / "chat.db")
    agent = scripted_agent(
        call("charge", {"cents": 5}), assistant("done"), tools=[card.tool(needs_approval=True)]
    )
    parked = await carried_out(method, agent, "Pay", memory)
    for memory.fails in (True, True, False):
        state = parked.to_state()
        state.approve(state.get_interruptions()[0])
        if memory.fails:
            with pytest.raises(MemoryUnavailable, match="full"):
                await carried_out(method, agent, state, memory)
            assert card.told == []
    assert (await carried_out(method, agent, state, memory)).final_output == "done"
    assert len(card.told) == 1
    await memory.cleanup()


async def test_a_cancelled_resume_can_be_made_again(each_memory: Any) -> None:
    """The approved call that had begun is unknown; with rerun it runs again, under its key."""
    for session_id, decoration, runs in (("a", {}, 1), ("b", {"rerun": ["charge"]}, 2)):
        card = Card(hangs=True)
        agent = scripted_agent(
            call("charge", {"cents": 5}),
            assistant("done"),
            tools=[card.tool(needs_approval=True)],
        )
        options = {"session_id": session_id, "decoration": decoration}
        parked = await carried_out("run", agent, "Pay", each_memory, **options)
        state = parked.to_state()
        state.approve(state.get_interruptions()[0])
        running = asyncio.ensure_future(carried_out("run", agent, state, each_memory, **options))
        await card.began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        card.hangs = False
        again = parked.to_state()
        again.approve(again.get_interruptions()[0])
        result = await carried_out("run", agent, again, each_memory, **options)
        assert (result.final_output, len(card.told)) == ("done", runs)
        assert len({told.key for told in card.told}) == 1


async def test_a_discarded_turn_keeps_no_words_of_its_calls(each_memory: Any) -> None:
    """Its record still says which calls were made, and how they ended."""
    await carried_out("run", scripted_agent(assistant("Hi")), "Hi", each_memory)
    card, discards = Card(fails=1), {"on_failure": "discard"}
    with pytest.raises(Exception, match="provider is down"):
        await carried_out(
            "run", charging(card), "Pay", each_memory, idempotency_key="k", decoration=discards
        )
    record = (await each_memory.turns("s"))[0]
    assert [(one.name, one.state) for one in record.calls] == [("charge", "failed")]
    assert "cents" not in "".join([line async for line in each_memory.export("s")])


async def test_a_model_that_fails_after_its_tools_does_not_run_them_again() -> None:
    """The items were handed over; the run continues behind them."""
    memory = InMemorySessionMemory()
    card = Card()
    broken = charging(card, ModelStep.raise_error(OSError("down")))
    with pytest.raises(OSError, match="down"):
        await carried_out("run", broken, "Pay", memory, idempotency_key="k")
    agent = scripted_agent(assistant("done"), tools=[card.tool()])
    await carried_out("run", agent, "Pay", memory, idempotency_key="k")
    assert (len(card.told), await outputs(memory)) == (1, ["charged 5"])


async def test_the_journal_costs_one_flush_for_each_response_with_calls(tmp_path: Any) -> None:
    """And only where the turn has a key; a run that calls no tool writes no journal."""
    flushed = {}
    async with SQLiteSessionMemory(tmp_path / "chat.db") as memory:
        await carried_out("run", scripted_agent(assistant("warm")), "Hi", memory)
        for tools in (0, 1, 2):
            for key in (None, "k"):
                before = memory.stats()["synced"]
                steps = [call("charge", {"cents": number}) for number in range(tools)]
                agent = scripted_agent(*steps, assistant("done"), tools=[Card().tool()])
                session_id = f"{tools} {key}"
                await carried_out("run", agent, "Pay", memory, session_id, idempotency_key=key)
                flushed[tools, key] = memory.stats()["synced"] - before
    for tools in (0, 1, 2):
        assert flushed[tools, "k"] - flushed[tools, None] <= tools
    assert flushed[2, "k"] > flushed[2, None]
