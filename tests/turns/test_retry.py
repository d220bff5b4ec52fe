"""Doing it again: a run that did not complete is continued or replaced, and never done twice."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import RunConfig, Runner
from agents.testing import ModelStep

from session_middleware import (
    DuplicateTurn,
    IdempotencyConflict,
    InMemorySessionMemory,
    InvalidOption,
    TurnInProgress,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import assistant, call, local_agent, model_of, scripted_agent
from tests.support.conditions import until
from tests.support.sessions import (
    METHODS,
    carried_out,
    counted,
    letters,
    own_loop,
    run_by,
    states,
    stored,
    tool,
)

both_ways = pytest.mark.parametrize("method", METHODS)


class ModelDown(Exception):
    """The provider does not answer."""


def down() -> ModelStep:
    """A model turn that fails."""
    return ModelStep.raise_error(ModelDown("503"))


# --- within one turn -----------------------------------------------------------------------


@both_ways
async def test_a_failed_run_without_outputs_is_replaced(each_memory: Any, method: str) -> None:
    """Its items go, and the model sees the new input once."""
    agent = scripted_agent(down(), down(), assistant("42"))

    @with_session_memory(memory=each_memory)
    async def answer() -> str:
        for _ in range(2):
            with pytest.raises(ModelDown):
                await run_by(method, agent, "What?")
        return str((await run_by(method, agent, "What?")).final_output)

    assert await answer(session_id="s") == "42"
    assert await stored(each_memory) == "U A"
    assert [letters(seen.input) for seen in model_of(agent).calls] == ["U", "U", "U"]
    assert await states(each_memory) == ["completed"]


class Retried(InMemorySessionMemory):
    """Counts how often a run was to take over what another one left."""

    capabilities = InMemorySessionMemory.capabilities
    retried = 0

    async def retry_run(self, *args: Any) -> int:
        self.retried += 1
        return await super().retry_run(*args)


@both_ways
async def test_a_run_that_stored_nothing_leaves_nothing(method: str) -> None:
    """The memory is not asked to move what is not there."""
    memory = Retried()

    def refuse(history: list[Any], new: list[Any]) -> list[Any]:
        raise ModelDown

    @with_session_memory(memory=memory)
    async def answer() -> None:
        config = RunConfig(session_input_callback=refuse)
        with pytest.raises(ModelDown):
            await run_by(method, local_agent(), "What?", run_config=config)
        await run_by(method, local_agent(), "What?")

    await answer(session_id="s")
    assert await stored(memory) == "U A"
    assert memory.retried == 0


@both_ways
async def test_a_failed_run_with_outputs_is_continued(each_memory: Any, method: str) -> None:
    """Its items stay, the tool is not called again, and the model goes on from the output."""
    counts: list[str] = []
    agent = scripted_agent(call("pay"), down(), assistant("paid"), tools=[counted("pay", counts)])

    @with_session_memory(memory=each_memory)
    async def answer() -> str:
        with pytest.raises(ModelDown):
            await run_by(method, agent, "Pay")
        return str((await run_by(method, agent, "Pay")).final_output)

    assert await answer(session_id="s") == "paid"
    assert counts == ["pay"]
    assert await stored(each_memory) == "U C O A"
    assert letters(model_of(agent).calls[-1].input) == "U C O"


async def test_another_input_is_no_retry(each_memory: Any) -> None:
    """A run with another input after a failed one leaves what that one stored."""
    agent = scripted_agent(down(), assistant("42"))

    @with_session_memory(memory=each_memory)
    async def answer() -> None:
        with pytest.raises(ModelDown):
            await Runner.run(agent, "What?")
        await Runner.run(agent, "Something else")

    await answer(session_id="s")
    assert await stored(each_memory) == "U U A"


async def test_a_retry_among_gathered_runs(each_memory: Any) -> None:
    """Only the run that failed is made again; the others stay whole."""
    flaky = scripted_agent(down(), assistant("A"))

    async def persistent() -> None:
        with pytest.raises(ModelDown):
            await Runner.run(flaky, "a")
        await Runner.run(flaky, "a")

    @with_session_memory(memory=each_memory)
    async def answer() -> None:
        await asyncio.gather(persistent(), Runner.run(local_agent(), "b"))

    await answer(session_id="s")
    assert await stored(each_memory) == "U A U A"
    assert letters(model_of(flaky).calls[-1].input) in ("U", "U A U")


# --- with an idempotency key ---------------------------------------------------------------


@both_ways
async def test_a_key_continues_what_another_call_left(each_memory: Any, method: str) -> None:
    """The same key after a failure goes on from the tool's output, in a turn of its own."""
    counts: list[str] = []
    agent = scripted_agent(call("pay"), down(), assistant("paid"), tools=[counted("pay", counts)])
    with pytest.raises(ModelDown):
        await carried_out(method, agent, "Pay", each_memory, idempotency_key="k")
    result = await carried_out(method, agent, "Pay", each_memory, idempotency_key="k")
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await stored(each_memory) == "U C O A"
    assert letters(model_of(agent).calls[-1].input) == "U C O"
    assert await states(each_memory) == ["replaced", "completed"]


async def test_a_key_on_a_decorated_function(each_memory: Any) -> None:
    """Every run of the function is continued, replaced, or kept, each for itself."""
    counts: list[str] = []
    agent = scripted_agent(
        assistant("first"),
        call("pay"),
        down(),
        assistant("first again"),
        assistant("paid"),
        tools=[counted("pay", counts)],
    )

    @with_session_memory(memory=each_memory)
    async def order() -> str:
        await Runner.run(agent, "Look")
        return str((await Runner.run(agent, "Pay")).final_output)

    with pytest.raises(ModelDown):
        await order(session_id="s", idempotency_key="k")
    assert await stored(each_memory) == "U A U C O"
    assert await order(session_id="s", idempotency_key="k") == "paid"
    assert counts == ["pay"]
    assert await stored(each_memory) == "U A U C O A"


async def test_a_key_on_generators(each_memory: Any) -> None:
    """An async generator that is called again with its key goes on as a function does."""
    counts: list[str] = []
    agent = scripted_agent(call("pay"), down(), assistant("paid"), tools=[counted("pay", counts)])

    @with_session_memory(memory=each_memory)
    async def order() -> AsyncIterator[str]:
        yield "working"
        yield str((await Runner.run(agent, "Pay")).final_output)

    with pytest.raises(ModelDown):
        async for _ in order(session_id="s", idempotency_key="k"):
            pass
    assert [part async for part in order(session_id="s", idempotency_key="k")][-1] == "paid"
    assert counts == ["pay"]
    assert await stored(each_memory) == "U C O A"


def test_a_key_on_a_plain_generator(each_memory: Any, do: Any) -> None:
    """The same for a plain one."""
    counts: list[str] = []
    agent = scripted_agent(call("pay"), down(), assistant("paid"), tools=[counted("pay", counts)])

    @with_session_memory(memory=each_memory)
    def order() -> Iterator[str]:
        yield str(Runner.run_sync(agent, "Pay").final_output)

    with pytest.raises(ModelDown):
        list(order(session_id="s", idempotency_key="k"))
    assert list(order(session_id="s", idempotency_key="k")) == ["paid"]
    assert (counts, do(stored(each_memory))) == (["pay"], "U C O A")


@both_ways
async def test_a_key_whose_turn_is_done(each_memory: Any, method: str) -> None:
    """The same key again is DuplicateTurn, with the turn and its items; nothing is run."""
    agent = scripted_agent(assistant("42"))
    await carried_out(method, agent, "What?", each_memory, idempotency_key="k")
    with pytest.raises(DuplicateTurn) as raised:
        await carried_out(method, agent, "What?", each_memory, idempotency_key="k")
    assert (raised.value.turn, letters(raised.value.items)) == (1, "U A")
    assert len(model_of(agent).calls) == 1
    assert await stored(each_memory) == "U A"
    assert await states(each_memory) == ["completed"]


@pytest.mark.parametrize("on_busy", ["wait", "reject"])
async def test_a_key_whose_turn_is_done_while_another_goes_on(
    each_memory: Any, on_busy: Any
) -> None:
    """What was done before is told at once: there is nothing to wait for, or to try later."""
    pay = with_session_memory(Runner.run, memory=each_memory, on_busy=on_busy)
    await pay(local_agent(), "Pay", session_id="s", idempotency_key="k")
    async with session_scope("s", memory=each_memory):
        with pytest.raises(DuplicateTurn) as raised:
            # In a context of its own, or it would be a part of this turn.
            await contextvars.Context().run(
                asyncio.create_task, pay(local_agent(), "Pay", session_id="s", idempotency_key="k")
            )
        assert (raised.value.turn, letters(raised.value.items)) == (1, "U A")


async def test_a_key_whose_turn_is_done_in_every_shape(each_memory: Any) -> None:
    """Functions, generators and scopes are refused before their body begins."""
    begun = []

    @with_session_memory(memory=each_memory)
    async def function() -> None:
        begun.append("function")

    @with_session_memory(memory=each_memory)
    async def generator() -> AsyncIterator[int]:
        begun.append("generator")
        yield 1

    async with session_scope("s", memory=each_memory, idempotency_key="k"):
        await Runner.run(local_agent(), "Hi")
    with pytest.raises(DuplicateTurn):
        await function(session_id="s", idempotency_key="k")
    with pytest.raises(DuplicateTurn):
        await anext(generator(session_id="s", idempotency_key="k"))
    with pytest.raises(DuplicateTurn):
        async with session_scope("s", memory=each_memory, idempotency_key="k"):
            begun.append("scope")
    assert begun == []
    await function(session_id="other", idempotency_key="k")  # keys are per session
    assert begun == ["function"]


@both_ways
async def test_a_key_whose_turn_is_running(each_memory: Any, method: str) -> None:
    """TurnInProgress at once, however the first one was started."""
    go_on = asyncio.Event()

    async def wait() -> str:
        await go_on.wait()
        return "waited"

    agent = scripted_agent(call("wait"), assistant("done"), tools=[tool("wait", wait)])
    first = asyncio.create_task(carried_out(method, agent, "Hi", each_memory, idempotency_key="k"))
    await until(lambda: len(model_of(agent).calls) == 1)
    with pytest.raises(TurnInProgress) as raised:
        await carried_out(method, agent, "Hi", each_memory, idempotency_key="k")
    assert raised.value.turn == 1
    go_on.set()
    assert (await first).final_output == "done"
    assert await stored(each_memory) == "U C O A"


@both_ways
async def test_a_key_with_another_input(each_memory: Any, method: str) -> None:
    """IdempotencyConflict, after a success and after a failure."""
    agent = scripted_agent(assistant("42"), down())
    await carried_out(method, agent, "What?", each_memory, idempotency_key="k1")
    with pytest.raises(ModelDown):
        await carried_out(method, agent, "What?", each_memory, idempotency_key="k2")
    for key in ("k1", "k2"):
        with pytest.raises(IdempotencyConflict):
            await carried_out(method, agent, "Something else", each_memory, idempotency_key=key)
    assert await stored(each_memory) == "U A U"


async def test_a_functions_key_with_another_input(each_memory: Any) -> None:
    """A function's input is known when its first run begins; it is refused then."""
    agent = scripted_agent(down(), assistant("42"))

    @with_session_memory(memory=each_memory)
    async def ask(text: str) -> None:
        await Runner.run(agent, text)

    with pytest.raises(ModelDown):
        await ask("What?", session_id="s", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await ask("Something else", session_id="s", idempotency_key="k")
    await ask("What?", session_id="s", idempotency_key="k")
    assert await stored(each_memory) == "U A"


def charging(file: Path) -> Any:
    """A tool that charges by writing a line, then fails to say so once."""

    def charge() -> str:
        with file.open("a") as charges:
            charges.write("charged\n")
        return "charged"

    return tool("charge", charge)


async def test_a_key_in_the_middle_of_a_turn(each_memory: Any) -> None:
    """A key belongs to a whole turn: a part of one that brings another is told so, not ignored."""

    @with_session_memory(memory=each_memory)
    async def part() -> str:
        return "done"

    async with session_scope("s", memory=each_memory):
        with pytest.raises(InvalidOption, match="the call or scope that the turn begins with"):
            await part(session_id="s", idempotency_key="k")
        with pytest.raises(InvalidOption, match="part of turn 1"):
            await run_by("run", local_agent(), "Hi", idempotency_key="k")
        with pytest.raises(InvalidOption):
            async with session_scope("s", memory=each_memory, idempotency_key="k"):
                raise AssertionError
        assert await part(session_id="other", idempotency_key="k") == "done"
    async with session_scope("s", memory=each_memory, idempotency_key="k"):
        assert await part(session_id="s", idempotency_key="k") == "done"
        assert await part(session_id="s") == "done"


@pytest.mark.parametrize("method", [*METHODS, "run_sync"])
def test_nobody_is_charged_twice(each_memory: Any, do: Any, tmp_path: Path, method: str) -> None:
    """A client that repeats its request until it succeeds is charged once."""
    file = tmp_path / "charges"
    agent = scripted_agent(
        call("charge"), down(), down(), assistant("thank you"), tools=[charging(file)]
    )
    run_sync = with_session_memory(Runner.run_sync, memory=each_memory)

    def request() -> str:
        if method == "run_sync":
            result = run_sync(agent, "Charge me", session_id="s", idempotency_key="order-7")
        else:
            result = do(
                carried_out(method, agent, "Charge me", each_memory, idempotency_key="order-7")
            )
        return str(result.final_output)

    for _ in range(2):
        with pytest.raises(ModelDown):
            request()
    assert request() == "thank you"
    with pytest.raises(DuplicateTurn):
        request()
    assert file.read_text() == "charged\n"
    assert do(stored(each_memory)) == "U C O A"


async def test_requests_at_once_charge_once(each_memory: Any, tmp_path: Path) -> None:
    """Of several identical requests at once one is served; the others are told to wait."""
    file = tmp_path / "charges"

    async def request() -> Any:
        agent = scripted_agent(call("charge"), assistant("thank you"), tools=[charging(file)])
        return await carried_out("run", agent, "Charge me", each_memory, idempotency_key="order-7")

    ends = await asyncio.gather(*(request() for _ in range(8)), return_exceptions=True)
    refused = [end for end in ends if isinstance(end, (TurnInProgress, DuplicateTurn))]
    assert len(refused) == 7
    assert file.read_text() == "charged\n"
    assert await stored(each_memory) == "U C O A"


def test_a_retry_in_another_thread(each_memory: Any, do: Any) -> None:
    """The second attempt may come in another thread and event loop."""
    counts: list[str] = []
    agent = scripted_agent(call("pay"), down(), assistant("paid"), tools=[counted("pay", counts)])
    for expected in (ModelDown, None):
        with own_loop() as there:
            once = carried_out("run", agent, "Pay", each_memory, idempotency_key="k")
            if expected is None:
                there(once)
            else:
                with pytest.raises(expected):
                    there(once)
    assert (counts, do(stored(each_memory))) == (["pay"], "U C O A")
