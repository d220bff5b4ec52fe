"""Approvals that another process answers: the memory keeps the state, and restores it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from agents import Runner
from agents.exceptions import UserError

from session_middleware import (
    DuplicateTurn,
    MemoryUnavailable,
    PendingTurn,
    UnknownState,
    with_session_memory,
)
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.approvals import paying
from tests.support.sessions import METHODS, carried_out, counted, states, stored

both_ways = pytest.mark.parametrize("method", METHODS)


async def only(memory: Any, **given: Any) -> PendingTurn:
    """The one run that waits."""
    (waiting,) = await memory.pending(**given)
    assert isinstance(waiting, PendingTurn)
    return waiting


@both_ways
async def test_a_run_is_resumed_from_what_the_memory_kept(each_memory: Any, method: str) -> None:
    """Nobody keeps a state of their own: it is decided, restored, resumed."""
    counts: list[str] = []
    agent = paying(counts)
    await carried_out(method, agent, "Pay", each_memory)
    waiting = await only(each_memory)
    assert [(each.name, each.arguments) for each in waiting.calls] == [("pay", "{}")]
    await each_memory.decide("s", waiting.turn, waiting.calls[0].id)
    state = await (await only(each_memory)).restore(agent)
    result = await carried_out(method, agent, state, each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await each_memory.pending() == []
    assert await states(each_memory) == ["completed"]
    assert await stored(each_memory) == "U C O A"


async def test_a_rejection_tells_the_model_why(each_memory: Any) -> None:
    """The tool does not run, and its output is the message of whoever rejected it."""
    counts: list[str] = []
    agent = paying(counts, assistant("then not"))
    await carried_out("run", agent, "Pay", each_memory)
    waiting = await only(each_memory)
    call_id = waiting.calls[0].id
    await each_memory.decide("s", waiting.turn, call_id, approve=False, message="over the limit")
    state = await (await only(each_memory)).restore(agent)
    await carried_out("run", agent, state, each_memory)
    outputs = [item["output"] for item in await each_memory.load_session("s") if "output" in item]
    assert (outputs, counts) == (["over the limit"], [])


async def test_a_call_without_a_decision_still_waits(each_memory: Any) -> None:
    """Of two calls one is approved: the run parks again with the other one."""
    counts: list[str] = []
    tools = [counted(name, counts, needs_approval=True) for name in ("pay", "mail")]
    agent = scripted_agent([*_both()], assistant("done"), tools=tools)
    await carried_out("run", agent, "Pay and mail", each_memory)
    waiting = await only(each_memory)
    assert [each.name for each in waiting.calls] == ["pay", "mail"]
    await each_memory.decide("s", waiting.turn, waiting.calls[1].id)
    state = await (await only(each_memory)).restore(agent)
    await carried_out("run", agent, state, each_memory)
    assert counts == ["mail"]
    again = await only(each_memory)
    assert ([each.name for each in again.calls], again.turn) == (["pay"], waiting.turn)
    await each_memory.decide("s", again.turn, again.calls[0].id)
    state = await (await only(each_memory)).restore(agent)
    result = await carried_out("run", agent, state, each_memory)
    assert (result.final_output, sorted(counts)) == ("done", ["mail", "pay"])


def _both() -> list[Any]:
    from agents.testing import function_call

    return [function_call(name, {}, call_id=f"call_{name}") for name in ("pay", "mail")]


async def test_a_decision_survives_a_resume_that_failed(each_memory: Any) -> None:
    """The provider was down: the same decision and state resume the run again."""
    counts: list[str] = []
    agent = paying(counts, RuntimeError("503"), assistant("paid"))
    await carried_out("run", agent, "Pay", each_memory)
    waiting = await only(each_memory)
    await each_memory.decide("s", waiting.turn, waiting.calls[0].id)
    with pytest.raises(RuntimeError):
        await carried_out("run", agent, await (await only(each_memory)).restore(agent), each_memory)
    waiting = await only(each_memory)
    with pytest.raises(DuplicateTurn):
        await each_memory.decide("s", waiting.turn, waiting.calls[0].id, approve=False)
    result = await carried_out("run", agent, await waiting.restore(agent), each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await each_memory.pending() == []


async def test_a_context_is_given_when_the_run_is_restored(each_memory: Any) -> None:
    """An object is not stored; a mapping that is JSON is."""
    agent = paying([])
    await carried_out("run", agent, "Pay", each_memory, context={"user": "Ada"})
    waiting = await only(each_memory)
    assert (await waiting.restore(agent))._context.context == {"user": "Ada"}
    given = object()
    assert (await waiting.restore(agent, context=given))._context.context is given


async def test_an_object_as_context_is_left_out_of_what_is_stored(each_memory: Any) -> None:
    """Its state is stored all the same."""
    secret = type("Secret", (), {"token": "s3cr3t"})()
    await carried_out("run", paying([]), "Pay", each_memory, context=secret)
    text = (await only(each_memory)).state
    assert text is not None
    assert "s3cr3t" not in text


@pytest.mark.parametrize(
    "options", [{"keep_state": False}, {"redact": lambda item: item}], ids=["told", "redact"]
)
async def test_a_state_that_was_not_to_be_kept_is_not(
    each_memory: Any, options: dict[str, Any]
) -> None:
    """The calls are told of; restoring says what to do."""
    agent = paying([])
    run = with_session_memory(Runner.run, memory=each_memory, **options)
    await run(agent, "Pay", session_id="s")
    waiting = await only(each_memory)
    assert (waiting.state, waiting.calls[0].name) == (None, "pay")
    with pytest.raises(UnknownState, match="keep_state"):
        await waiting.restore(agent)


async def test_a_state_that_somebody_changed_is_told(each_memory: Any) -> None:
    """Without its words, and with what to do."""
    agent = paying([])
    await carried_out("run", agent, "Pay", each_memory)
    waiting = await only(each_memory)
    assert waiting.state is not None
    for text in ("", waiting.state[:-9], "[]", '{"secret": 1}'):
        with pytest.raises((MemoryUnavailable, UserError)) as raised:
            await replace(waiting, state=text).restore(agent)
        assert "secret" not in str(raised.value)


async def test_redact_reaches_the_calls_that_wait(each_memory: Any) -> None:
    """Their arguments are told as they are stored; the state is kept where that is asked for."""

    def redact(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "arguments": "{}"} if item.get("type") == "function_call" else item

    agent = scripted_agent(
        call("pay", {"card": "4111"}),
        tools=[counted("pay", [], needs_approval=True, strict_mode=False)],
    )
    run = with_session_memory(Runner.run, memory=each_memory, redact=redact, keep_state=True)
    await run(agent, "Pay", session_id="s")
    waiting = await only(each_memory)
    assert waiting.calls[0].arguments == "{}"
    assert waiting.state is not None
    assert "4111" in waiting.state


async def test_a_scope_restores_what_is_its_own(each_memory: Any) -> None:
    """Under the scope's id, through the scope; another tenant sees nothing."""
    counts: list[str] = []
    agent = paying(counts)
    scope = each_memory.scoped("tenant")
    run = with_session_memory(Runner.run, memory=scope)
    await run(agent, "Pay", session_id="s")
    assert await each_memory.scoped("other").pending() == []
    waiting = await only(scope)
    assert waiting.session_id == "s"
    await scope.decide("s", waiting.turn, waiting.calls[0].id)
    await run(agent, await (await only(scope)).restore(agent), session_id="s")
    assert counts == ["pay"]
    assert await each_memory.list_sessions() == ["tenant:s"]


async def test_the_record_tells_how_long_a_turn_waited(each_memory: Any) -> None:
    """In seconds, and as JSON with everything else."""
    await carried_out("run", paying([]), "Pay", each_memory)
    (record,) = await each_memory.turns("s")
    assert record.waited is not None
    assert 0 <= record.waited < 60
    told = record.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["turn"], told["state"], told["waited"]) == (1, "awaiting_approval", record.waited)
    assert told["items"] == record.items
