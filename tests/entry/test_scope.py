"""session_scope, a turn as a block, and memory.session(id), a view the SDK takes as a session."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from agents import Runner, Session

from session_middleware import (
    ConflictingMemory,
    InMemorySessionMemory,
    InvalidOption,
    InvalidSessionId,
    SessionBusy,
    SessionIdRequired,
    current_session,
    installed,
    session_scope,
)
from session_middleware._entry import intercept
from session_middleware.testing.models import local_agent
from tests.support.sessions import METHODS, consumed, letters, run_by, states, stored

both_ways = pytest.mark.parametrize("method", METHODS)


# --- scopes --------------------------------------------------------------------------------


async def test_scope(each_memory: Any) -> None:
    """Runs inside the block belong to the session; the block is one turn."""
    async with session_scope("s", memory=each_memory) as scope:
        assert (scope.turn, current_session()) == (1, ("s", 1))
        await Runner.run(local_agent(), "Hi, I'm Alice")
        result = await Runner.run(local_agent(), "What's my name?")
    assert result.final_output == "Your name is Alice."
    assert (scope.turn, current_session()) == (None, None)
    (record,) = await each_memory.turns("s")
    assert (record.runs, record.state) == (2, "completed")


def test_plain_scope(each_memory: Any, do: Any) -> None:
    """``with`` does the same without an event loop."""
    with session_scope("s", memory=each_memory) as scope:
        assert (scope.turn, current_session()) == (1, ("s", 1))
        Runner.run_sync(local_agent(), "Hi, I'm Alice")
        result = Runner.run_sync(local_agent(), "What's my name?")
    assert result.final_output == "Your name is Alice."
    with pytest.raises(LookupError), session_scope("s", memory=each_memory):
        raise LookupError
    assert do(states(each_memory)) == ["completed", "failed"]


async def test_plain_scope_under_a_loop(each_memory: Any) -> None:
    """``with`` under a running loop acquires the session at the first run."""
    with session_scope("s", memory=each_memory):
        await Runner.run(local_agent(), "Hi, I'm Alice")
    async with session_scope("s", memory=each_memory):
        result = await Runner.run(local_agent(), "What's my name?")
    assert result.final_output == "Your name is Alice."


async def test_a_stream_carries_the_turn_on(each_memory: Any) -> None:
    """SessionBusy comes before the headers; the stream holds the turn until its run is over."""
    agent = local_agent()

    async def handle() -> Any:
        async with session_scope("s", memory=each_memory, on_busy="reject"):
            return Runner.run_streamed(agent, "Hi, I'm Alice")

    result = await handle()
    assert current_session() is None
    with pytest.raises(SessionBusy):
        await handle()
    assert await states(each_memory) == ["running"]
    async for _ in result.stream_events():
        assert current_session() is None
    assert await states(each_memory) == ["completed"]
    assert await stored(each_memory) == "U A"


async def test_a_scope_that_fails_while_its_stream_runs(each_memory: Any) -> None:
    """An error in the block fails the turn, whose stream may still complete its run."""
    results = []

    async def fail() -> None:
        async with session_scope("s", memory=each_memory):
            results.append(Runner.run_streamed(local_agent(), "Hi"))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    await consumed(results[0])
    (record,) = await each_memory.turns("s")
    assert (record.state, record.error_type, record.item_count) == ("failed", "LookupError", 2)


async def test_scope_ids(each_memory: Any) -> None:
    """An id is checked when the scope is made; a call may name another session inside."""
    with pytest.raises(InvalidSessionId):
        session_scope("", memory=each_memory)
    with pytest.raises(SessionIdRequired):
        session_scope(None, memory=each_memory)  # type: ignore[arg-type]
    async with session_scope("s", memory=each_memory):
        await Runner.run(local_agent(), "Hi", session_id="other")
        await Runner.run(local_agent(), "Hi", session_id=None)
    assert await each_memory.list_sessions() == ["other"]


async def test_a_scope_object_is_one_turn_at_a_time(each_memory: Any) -> None:
    """Entered once more while it is, a scope is refused; after its block it begins a new turn."""
    scope = session_scope("s", memory=each_memory)
    for turn in (1, 2):
        async with scope:
            with pytest.raises(InvalidOption, match="make a new one"):
                async with scope:
                    raise AssertionError
            assert scope.turn == turn
        assert (scope.turn, current_session()) == (None, None)
    assert await states(each_memory) == ["completed"] * 2


async def test_scopes_in_several_tasks_and_threads(each_memory: Any) -> None:
    """Every context has its own scope."""

    async def one(name: str) -> None:
        async with session_scope(name, memory=each_memory):
            await asyncio.sleep(0)
            assert current_session() == (name, 1)
            await Runner.run(local_agent(), f"I'm {name}")

    await asyncio.gather(*(one(f"P{number}") for number in range(8)))
    assert sorted(await each_memory.list_sessions()) == [f"P{number}" for number in range(8)]
    seen: list[Any] = []
    async with session_scope("s", memory=each_memory):
        thread = threading.Thread(target=lambda: seen.append(current_session()))
        thread.start()
        thread.join()
        contextvars.Context().run(lambda: seen.append(current_session()))
    assert seen == [None, None]


# --- views ---------------------------------------------------------------------------------


@both_ways
async def test_a_view_as_session(each_memory: Any, method: str) -> None:
    """memory.session(id) as session= makes a run a full turn, without install or decorator."""
    view = each_memory.session("s")
    assert isinstance(view, Session)
    await run_by(method, local_agent(), "Hi, I'm Alice", session=view)
    result = await run_by(method, local_agent(), "What's my name?", session=view)
    assert result.final_output == "Your name is Alice."
    assert await states(each_memory) == ["completed", "completed"]
    assert letters(await view.get_items()) == "U A U A"
    assert letters(await view.get_items(3)) == "A U A"
    assert await view.get_items(0) == []


@both_ways
async def test_the_first_view_in_the_call_itself(method: str) -> None:
    """The very first run of a program is a full turn, though Python finds Runner.run before it."""
    intercept._needs.clear()
    intercept.no_longer_needed(object())
    memory = InMemorySessionMemory()
    made = getattr(Runner, method)(local_agent(), "Hi, I'm Alice", session=memory.session("s"))
    if method == "run":
        await made
    else:
        await consumed(made)
    (record,) = await memory.turns("s")
    assert (record.state, record.runs, record.item_count) == ("completed", 1, 2)


async def test_a_views_own_methods(each_memory: Any) -> None:
    """Its methods are the memory's own; inside the session's turn they act within it."""
    view = each_memory.session("s")
    hello = {"role": "user", "content": "hello"}
    await view.add_items([hello, {"role": "assistant", "content": "hi"}])
    assert (await view.pop_item())["content"] == "hi"
    async with session_scope("s", memory=each_memory):
        await view.add_items([{"role": "user", "content": "within"}])
        await Runner.run(local_agent(), "Hi")
    assert await stored(each_memory) == "U U U A"
    await view.clear_session()
    assert await view.get_items() == []
    assert await view.pop_item() is None


async def test_a_view_joins_and_conflicts(each_memory: Any) -> None:
    """A view of the turn's session joins it; with another session_id it is refused."""
    view = each_memory.session("s")
    async with session_scope("s", memory=each_memory):
        await Runner.run(local_agent(), "Hi", session=view)
    (record,) = await each_memory.turns("s")
    assert (record.runs, record.state) == (1, "completed")
    with installed(memory=each_memory):
        await Runner.run(local_agent(), "Hi", session=view, session_id="s")
        with pytest.raises(ConflictingMemory, match="leave one out"):
            await Runner.run(local_agent(), "Hi", session=view, session_id="other")
