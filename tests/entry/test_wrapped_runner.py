"""Runner's own methods wrapped, subclasses of Runner, and what is decorated twice."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from agents import Runner

from session_middleware import InMemorySessionMemory, SQLiteSessionMemory, with_session_memory
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.sdk import bound_early
from tests.support.sessions import carried_out, states, stored, tool

HI = "Hi, I'm Alice"
NAME = "What's my name?"
ALICE = "Your name is Alice."


async def say(text: str) -> str:
    """One run of an agent that remembers names."""
    return str((await Runner.run(local_agent(), text)).final_output)


# --- Runner's own methods ------------------------------------------------------------------

_bound_before_the_patch = bound_early("run")


async def test_runner_methods_bound_earlier(each_memory: Any) -> None:
    """A Runner method that was bound before anything was decorated can be wrapped itself."""
    run = with_session_memory(_bound_before_the_patch, memory=each_memory)
    await run(local_agent(), HI, session_id="s")
    assert (await run(local_agent(), NAME, session_id="s")).final_output == ALICE
    assert await stored(each_memory) == "U A U A"


async def test_a_run_that_goes_past_us_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A decorated call in which no run was intercepted says so: its run was bound too early."""
    caplog.set_level(logging.WARNING, "session_middleware")
    memory = InMemorySessionMemory()

    @with_session_memory(memory=memory)
    async def chat(run: Any) -> None:
        await run(local_agent(), HI)

    await chat(Runner.run, session_id="s")
    assert "no_run_intercepted" not in caplog.text
    await chat(_bound_before_the_patch, session_id="s")
    assert "no_run_intercepted" in caplog.text
    assert await stored(memory) == "U A"


def test_run_sync_itself(each_memory: Any, do: Any) -> None:
    """Runner.run_sync is wrapped like the other two."""
    run = with_session_memory(Runner.run_sync, memory=each_memory)
    run(local_agent(), HI, session_id="s")
    assert run(local_agent(), NAME, session_id="s").final_output == ALICE
    assert do(states(each_memory)) == ["completed", "completed"]


async def test_subclasses_of_runner(each_memory: Any) -> None:
    """A subclass that calls super() is one run, whether it or the function is decorated."""

    class Loud(Runner):
        """Says it louder."""

        @classmethod
        async def run(cls, starting_agent: Any, input: Any, **options: Any) -> Any:  # noqa: A002
            return await super().run(starting_agent, f"{input}!", **options)

    run = with_session_memory(Loud.run, memory=each_memory)
    await run(local_agent(), HI, session_id="s")
    assert await stored(each_memory) == "U A"

    @with_session_memory(memory=each_memory)
    async def chat(text: str) -> str:
        return str((await Loud.run(local_agent(), text)).final_output)

    assert await chat(NAME, session_id="s") == ALICE
    assert await stored(each_memory) == "U A U A"
    assert [record.runs for record in await each_memory.turns("s")] == [1, 1]


@pytest.mark.parametrize("given", [("positional",), ()])
async def test_subclasses_that_hand_on_their_arguments(given: tuple[str, ...]) -> None:
    """Whatever way an overriding method takes its arguments, they arrive by name."""
    memory = InMemorySessionMemory()

    class Any1(Runner):
        """Takes anything."""

        @classmethod
        async def run(cls, *args: Any, **kwargs: Any) -> Any:
            return await super().run(*args, **kwargs)

    class Any2(Runner):
        """Takes an agent and anything."""

        @classmethod
        async def run(cls, starting_agent: Any, *args: Any, loud: bool, **kwargs: Any) -> Any:
            assert loud
            return await super().run(starting_agent, *args, **kwargs)

    for number, (method, more) in enumerate(((Any1.run, {}), (Any2.run, {"loud": True}))):
        run = with_session_memory(method, memory=memory)
        more = more if given else {**more, "input": "named"}
        await run(local_agent(), *given, session_id=f"s{number}", max_turns=3, **more)
        items = await memory.load_session(f"s{number}")
        assert items[0]["content"] == (given or ("named",))[0]


# --- what is decorated twice ---------------------------------------------------------------


async def test_a_stream_method_and_a_function_around_it(each_memory: Any) -> None:
    """A tool that calls a decorated function of the same session is part of the turn."""
    chat = with_session_memory(say, memory=each_memory)

    async def ask() -> str:
        return await chat("I'm Bob", session_id="s")

    agent = scripted_agent(call("ask"), assistant("done"), tools=[tool("ask", ask)])
    await carried_out("run", agent, "Ask", each_memory)
    (record,) = await each_memory.turns("s")
    assert (record.state, record.runs, record.item_count) == ("completed", 2, 6)


async def test_memories_of_the_same_file_are_one(tmp_path: Any) -> None:
    """Two objects on one file are one memory: the inner call joins the outer one's turn."""
    async with SQLiteSessionMemory(tmp_path / "x.db") as one, SQLiteSessionMemory("x.db") as two:
        inner = with_session_memory(say, memory=two)

        @with_session_memory(memory=one)
        async def outer() -> None:
            await inner(HI, session_id="s")

        await outer(session_id="s")
        assert await states(one) == ["completed"]
