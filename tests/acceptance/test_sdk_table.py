"""What a session holds after a run ended in each of the ways a run can end.

The same for ``Runner.run`` and ``Runner.run_streamed``. U is the user's message, C a tool's call,
O its output, A the answer. Where the SDK alone would store something broken, the rows say what
holds with a turn around the run.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelSettings,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    input_guardrail,
    output_guardrail,
)
from agents.retry import ModelRetrySettings
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from session_middleware import TurnInProgress, with_session_memory
from session_middleware.testing.models import assistant, call, model_of, scripted_agent
from tests.support import ROOT
from tests.support.programs import Programs
from tests.support.sessions import (
    METHODS,
    carried_out,
    consumed,
    counted,
    letters,
    states,
    stored,
    text_of,
    tool,
)

both_ways = pytest.mark.parametrize("method", METHODS)


class ModelDown(Exception):
    """The provider does not answer."""


def down() -> ModelStep:
    """A model turn that fails."""
    return ModelStep.raise_error(ModelDown("503"))


def look_up() -> Any:
    """A tool that answers 42."""
    return tool("look_up", lambda: "42")


@both_ways
async def test_two_model_turns(each_memory: Any, method: str) -> None:
    """A tool is called and the model answers: U C O A, and the next run sees all of it."""
    agent = scripted_agent(call("look_up"), assistant("42"), assistant("yes"), tools=[look_up()])
    await carried_out(method, agent, "What?", each_memory)
    assert await stored(each_memory) == "U C O A"
    await carried_out(method, agent, "Sure?", each_memory)
    assert letters(model_of(agent).calls[-1].input) == "U C O A U"


async def test_stream_cancelled_at_once(each_memory: Any) -> None:
    """A stream that is cancelled when the model begins to speak has stored the input alone."""
    agent = scripted_agent(assistant("42"))
    result = with_session_memory(Runner.run_streamed, memory=each_memory)(
        agent, "What?", session_id="s"
    )
    async for event in result.stream_events():
        if event.type == "raw_response_event":
            result.cancel()
    assert await stored(each_memory) == "U"


async def test_stream_cancelled_at_a_tools_output(each_memory: Any) -> None:
    """A stream that is cancelled when a tool's output arrives keeps the completed model turn."""
    agent = scripted_agent(call("look_up"), assistant("42"), tools=[look_up()])
    result = with_session_memory(Runner.run_streamed, memory=each_memory)(
        agent, "What?", session_id="s"
    )
    async for event in result.stream_events():
        if getattr(event, "name", "") == "tool_output":
            result.cancel()
    assert await stored(each_memory) == "U C O"


async def test_stream_cancelled_after_a_turn(each_memory: Any) -> None:
    """``cancel("after_turn")`` keeps the completed model turns."""
    agent = scripted_agent(call("look_up"), assistant("42"), tools=[look_up()])
    result = with_session_memory(Runner.run_streamed, memory=each_memory)(
        agent, "What?", session_id="s"
    )
    async for event in result.stream_events():
        if getattr(event, "name", "") == "tool_called":
            result.cancel("after_turn")
    assert await stored(each_memory) == "U C O"


@both_ways
async def test_tool_raises(each_memory: Any, method: str) -> None:
    """A tool's error becomes its output, as the SDK does by default."""

    def fail() -> str:
        raise ValueError("no")

    agent = scripted_agent(call("fails"), assistant("sorry"), tools=[tool("fails", fail)])
    await carried_out(method, agent, "Do it", each_memory)
    assert await stored(each_memory) == "U C O A"
    assert "error" in text_of((await each_memory.load_session("s"))[2])


@both_ways
async def test_tool_raises_for_good(each_memory: Any, method: str) -> None:
    """A tool whose error ends the run leaves the input, and no call without an output."""

    def fail() -> str:
        raise ValueError("no")

    agent = scripted_agent(call("fails"), tools=[tool("fails", fail, failure_error_function=None)])
    with pytest.raises(Exception, match="no"):
        await carried_out(method, agent, "Do it", each_memory)
    assert await stored(each_memory) == "U"


@both_ways
async def test_model_error_in_turn_1(each_memory: Any, method: str) -> None:
    """The model fails at once: U."""
    with pytest.raises(ModelDown):
        await carried_out(method, scripted_agent(down()), "What?", each_memory)
    assert await stored(each_memory) == "U"


@both_ways
async def test_model_error_in_turn_2(each_memory: Any, method: str) -> None:
    """The model fails after a tool has done its work: U C O."""
    agent = scripted_agent(call("look_up"), down(), tools=[look_up()])
    with pytest.raises(ModelDown):
        await carried_out(method, agent, "What?", each_memory)
    assert await stored(each_memory) == "U C O"


@both_ways
async def test_max_turns(each_memory: Any, method: str) -> None:
    """A run that may take one model turn only keeps it: U C O."""
    agent = scripted_agent(call("look_up"), assistant("42"), tools=[look_up()])
    with pytest.raises(MaxTurnsExceeded):
        await carried_out(method, agent, "What?", each_memory, max_turns=1)
    assert await stored(each_memory) == "U C O"


def tripping(kind: Any) -> Any:
    """A guardrail that trips."""

    async def check(context: Any, agent: Any, value: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    return kind(check)


@both_ways
async def test_input_guardrail(each_memory: Any, method: str) -> None:
    """The input's tripwire: U."""
    agent = scripted_agent(assistant("42"), input_guardrails=[tripping(input_guardrail)])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await carried_out(method, agent, "What?", each_memory)
    assert await stored(each_memory) == "U"


@both_ways
async def test_output_guardrail_on_a_message(each_memory: Any, method: str) -> None:
    """The output's tripwire withholds the answer and keeps what led to it: U C O."""
    agent = scripted_agent(
        call("look_up"),
        assistant("a secret"),
        tools=[look_up()],
        output_guardrails=[tripping(output_guardrail)],
    )
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await carried_out(method, agent, "What?", each_memory)
    assert await stored(each_memory) == "U C O"


@both_ways
async def test_output_guardrail_on_a_tools_output(each_memory: Any, method: str) -> None:
    """A tool's output that would be the final one and trips is stored as withheld."""
    agent = scripted_agent(
        call("look_up"),
        tools=[tool("look_up", lambda: "a secret")],
        tool_use_behavior="stop_on_first_tool",
        output_guardrails=[tripping(output_guardrail)],
    )
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await carried_out(method, agent, "What?", each_memory)
    assert await stored(each_memory) == "U C O"
    assert "a secret" not in str(await each_memory.load_session("s"))


@both_ways
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
async def test_handoff(each_memory: Any, method: str, nested: bool) -> None:
    """A handoff is stored in full, however the next agent sees the history."""
    expert = Agent(name="Expert", model=model_of(scripted_agent(assistant("42"))))
    agent = scripted_agent(call("transfer_to_expert"), handoffs=[expert])
    await carried_out(
        method, agent, "What?", each_memory, run_config=RunConfig(nest_handoff_history=nested)
    )
    assert await stored(each_memory) == "U C O A"
    (record,) = await each_memory.turns("s")
    assert (record.agent, record.state) == ("Expert", "completed")


@both_ways
async def test_approval(each_memory: Any, method: str) -> None:
    """A run that waits for approval has stored U C; resumed, it is U C O A."""
    counts: list[str] = []
    agent = scripted_agent(
        call("pay"), assistant("paid"), tools=[counted("pay", counts, needs_approval=True)]
    )
    result = await carried_out(method, agent, "Pay", each_memory)
    assert await stored(each_memory) == "U C"
    state = result.to_state()
    state.approve(result.interruptions[0])
    result = await carried_out(method, agent, state, each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await stored(each_memory) == "U C O A"


@both_ways
async def test_approval_after_another_turn(each_memory: Any, method: str) -> None:
    """A resume continues its own turn, whatever was said meanwhile; alone, the SDK cannot."""
    counts: list[str] = []
    agent = scripted_agent(
        call("pay"),
        assistant("hello"),
        assistant("paid"),
        tools=[counted("pay", counts, needs_approval=True)],
    )
    result = await carried_out(method, agent, "Pay", each_memory)
    await carried_out(method, agent, "Hi", each_memory)
    state = result.to_state()
    state.approve(result.interruptions[0])
    result = await carried_out(method, agent, state, each_memory)
    assert (result.final_output, counts) == ("paid", ["pay"])
    paid, said = reversed(await each_memory.turns("s"))
    assert (letters(paid.items), paid.state) == ("U C O A", "completed")
    assert (letters(said.items), said.state) == ("U A", "completed")


@both_ways
async def test_approval_abandoned(each_memory: Any, method: str) -> None:
    """A new message instead of an approval: U C U A, and the model does not see the call."""
    agent = scripted_agent(
        call("pay"),
        assistant("never mind"),
        tools=[counted("pay", [], needs_approval=True)],
    )
    await carried_out(method, agent, "Pay", each_memory)
    await carried_out(method, agent, "Forget it", each_memory)
    assert await stored(each_memory) == "U C U A"
    assert letters(model_of(agent).calls[-1].input) == "U U"


async def test_task_is_cancelled(each_memory: Any) -> None:
    """Cancelling the task keeps the completed model turns."""
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    agent = scripted_agent(call("look_up"), call("hangs"), tools=[look_up(), tool("hangs", hang)])
    task = asyncio.create_task(carried_out("run", agent, "What?", each_memory))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stored(each_memory) == "U C O"
    assert await states(each_memory) == ["cancelled"]


async def test_timeout(each_memory: Any) -> None:
    """``asyncio.timeout`` around a run keeps the completed model turns."""

    async def hang() -> None:
        limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    agent = scripted_agent(call("look_up"), call("hangs"), tools=[look_up(), tool("hangs", hang)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            await carried_out("run", agent, "What?", each_memory)
    assert await stored(each_memory) == "U C O"


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, {root!r})
from session_middleware.testing.models import call, scripted_agent
from tests.support.sessions import carried_out, tool
from agents import set_tracing_disabled
from session_middleware import SQLiteSessionMemory
set_tracing_disabled(True)
agent = scripted_agent(
    call("dies"), tools=[tool("dies", lambda: os.kill(os.getpid(), signal.SIGKILL))]
)
memory = SQLiteSessionMemory("killed.db", lease=1)
asyncio.run(carried_out("run", agent, "What?", memory, idempotency_key="k"))
"""


async def test_killed_inside_the_first_tool(programs: Programs, make_memory: Any) -> None:
    """The same key in another process: the model is told that the call's outcome is unknown."""
    script = KILLED.format(root=str(ROOT))
    done = await asyncio.to_thread(programs.run, "-c", script)
    assert done.returncode == -9, done.stderr
    memory = make_memory("killed.db", lease=1)
    assert await stored(memory) == "U"
    agent = scripted_agent(assistant("42"))
    while True:
        try:
            await carried_out("run", agent, "What?", memory, idempotency_key="k")
            break
        except TurnInProgress as busy:  # until the dead process's lease has run out
            await asyncio.sleep(busy.retry_after or 0)
    assert await stored(memory) == "U C O A"
    assert letters(model_of(agent).calls[0].input) == "U C O"
    assert await states(memory) == ["replaced", "completed"]


@both_ways
async def test_the_sdks_own_retry(each_memory: Any, method: str) -> None:
    """A model call that the SDK makes again stores nothing twice: U A."""
    agent = scripted_agent(
        down(),
        assistant("42"),
        model_settings=ModelSettings(
            retry=ModelRetrySettings(max_retries=1, policy=lambda _: True)
        ),
    )
    await carried_out(method, agent, "What?", each_memory)
    assert await stored(each_memory) == "U A"


@both_ways
async def test_app_level_retry(each_memory: Any, method: str) -> None:
    """A run made again in the same turn replaces the failed one: U A, the model sees one U."""
    agent = scripted_agent(down(), assistant("42"))

    @with_session_memory(memory=each_memory)
    async def persistent() -> Any:
        for attempt in (1, 2):
            try:
                made = getattr(Runner, method)(agent, "What?")
                return await consumed(made) if method == "run_streamed" else await made
            except ModelDown:
                assert attempt == 1
        raise AssertionError

    await persistent(session_id="s")
    assert await stored(each_memory) == "U A"
    assert letters(model_of(agent).calls[-1].input) == "U"


@both_ways
async def test_app_level_retry_with_a_key(each_memory: Any, method: str) -> None:
    """A wrapped Runner method called again with the same idempotency key stores U A."""
    agent = scripted_agent(down(), assistant("42"))
    with pytest.raises(ModelDown):
        await carried_out(method, agent, "What?", each_memory, idempotency_key="k")
    await carried_out(method, agent, "What?", each_memory, idempotency_key="k")
    assert await stored(each_memory) == "U A"
    assert letters(model_of(agent).calls[-1].input) == "U"


@both_ways
async def test_two_runs_at_once(each_memory: Any, method: str) -> None:
    """Two messages at once are two turns, one after the other: the second sees the first."""
    agents = [scripted_agent(call("look_up"), assistant(name), tools=[look_up()]) for name in "AB"]
    await asyncio.gather(
        *(
            carried_out(method, agent, f"I am {name}", each_memory)
            for agent, name in zip(agents, "AB", strict=True)
        )
    )
    assert await stored(each_memory) == "U C O A U C O A"
    seen = sorted(letters(model_of(agent).calls[0].input) for agent in agents)
    assert seen == ["U", "U C O A U"]
    owners = [text_of(item)[-1] for item in await each_memory.load_session("s") if "role" in item]
    assert owners in (["A", "A", "B", "B"], ["B", "B", "A", "A"])


@pytest.mark.parametrize("turns", [2, 3])
async def test_a_provider_that_repeats_its_call_ids_loses_no_pair(memory: Any, turns: int) -> None:
    """The model sees every call with its own output, those of the run that goes on included."""
    count = iter(range(1, 100))
    tick = tool("tick", lambda: f"tick {next(count)}")
    steps = [[function_call("tick", {}, call_id="call_1")], [assistant_message("ok")]] * turns
    model = ScriptedModel(steps)
    run = with_session_memory(Runner.run, memory=memory)
    for _ in range(turns):
        await run(Agent(name="A", model=model, tools=[tick]), "tick", session_id="s")
    assert model.last_call is not None
    seen = model.last_call.input
    outputs = [item["output"] for item in seen if item.get("type") == "function_call_output"]
    assert outputs == [f"tick {n}" for n in range(1, turns + 1)]
    calls = [item["call_id"] for item in seen if item.get("type") == "function_call"]
    assert len(set(calls)) == turns
