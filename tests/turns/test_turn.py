"""A turn: who is part of it, how long it holds its session, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest
from agents import Agent, Runner
from agents.testing import ModelStep
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from session_middleware import (
    InMemorySessionMemory,
    InvalidItem,
    SessionIdRequired,
    TurnLost,
    current_session,
    session_scope,
    with_session_memory,
)
from session_middleware._turns.turn import ActiveTurn, turn_here
from session_middleware.testing.models import (
    assistant,
    call,
    calls,
    local_agent,
    model_of,
    scripted_agent,
)
from tests.support.conditions import until
from tests.support.sessions import (
    METHODS,
    carried_out,
    consumed,
    free,
    freed,
    letters,
    own_loop,
    states,
    stored,
    text_of,
    tool,
)

both_ways = pytest.mark.parametrize("method", METHODS)


async def stored_so_far(memory: Any, count: int) -> bool:
    """Whether the newest turn has so many items by now."""
    turns = await memory.turns("s", limit=1)
    return bool(turns) and turns[0].item_count == count


async def say(text: str) -> str:
    """One run."""
    return str((await Runner.run(local_agent(), text)).final_output)


# --- who is part of it ---------------------------------------------------------------------


async def test_nested_decorated_calls_are_one_turn(each_memory: Any) -> None:
    """A decorated function inside another's turn of the same session is part of it."""
    inner = with_session_memory(say, memory=each_memory)

    @with_session_memory(memory=each_memory)
    async def outer() -> str:
        await inner("Hi, I'm Alice")  # the id of the scope
        return await inner("What's my name?", session_id="s")

    assert await outer(session_id="s") == "Your name is Alice."
    (record,) = await each_memory.turns("s")
    assert (record.runs, record.item_count, record.state) == (2, 4, "completed")


async def test_a_scope_inside_a_function_and_the_other_way_round(each_memory: Any) -> None:
    """Scopes and decorated functions nest in any order."""
    chat = with_session_memory(say, memory=each_memory)

    @with_session_memory(memory=each_memory)
    async def outer() -> None:
        async with session_scope("s", memory=each_memory) as scope:
            assert scope.turn == 1
            await chat("Hi, I'm Alice")

    async with session_scope("s", memory=each_memory):
        await outer()
        assert not await asyncio.create_task(asyncio.to_thread(_free_elsewhere, each_memory))
    assert await states(each_memory) == ["completed"]


def _free_elsewhere(memory: Any) -> bool:
    """Whether somebody with no part in this turn could acquire the session."""

    def look() -> bool:
        with own_loop() as do:
            return bool(do(free(memory)))

    return contextvars.Context().run(look)


async def test_tasks_and_threads_join(each_memory: Any) -> None:
    """What a turn starts in tasks and threads belongs to it, run_sync in a thread too."""

    def in_a_thread(text: str) -> str:
        with own_loop():
            return str(Runner.run_sync(local_agent(), text).final_output)

    @with_session_memory(memory=each_memory)
    async def outer() -> str:
        await asyncio.create_task(say("Hi, I'm Alice"))
        return await asyncio.to_thread(in_a_thread, "What's my name?")

    assert await outer(session_id="s") == "Your name is Alice."
    (record,) = await each_memory.turns("s")
    assert (record.runs, record.state) == (2, "completed")


async def test_a_turn_waits_for_a_run_that_outlives_its_function(each_memory: Any) -> None:
    """The session is held until the function has returned and its last run is over."""
    go_on = asyncio.Event()
    started = asyncio.Event()

    async def slow(call: Any) -> ModelStep:
        started.set()
        await go_on.wait()
        return assistant("late")

    tasks = []

    @with_session_memory(memory=each_memory)
    async def outer() -> None:
        agent = scripted_agent(ModelStep.respond(slow))
        tasks.append(asyncio.create_task(Runner.run(agent, "Hi")))
        await started.wait()

    await outer(session_id="s")
    assert not await free(each_memory)
    assert await states(each_memory) == ["running"]
    go_on.set()
    await tasks[0]
    assert await states(each_memory) == ["completed"]
    assert await stored(each_memory) == "U A"


async def test_a_context_that_outlives_its_turn_is_no_session(
    each_memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker started inside a turn is in no session once that is over, and this is told once."""
    over = asyncio.Event()
    agent = local_agent()

    async def work() -> Any:
        await over.wait()
        assert current_session() is None
        for _ in range(2):
            await Runner.run(agent, "I'm Bob")
        return current_session()

    @with_session_memory(memory=each_memory)
    async def alice() -> asyncio.Task[Any]:
        await say("Hi, I'm Alice")
        assert current_session() is not None
        return asyncio.create_task(work())

    caplog.set_level("WARNING", "session_middleware")
    worker = await alice(session_id="s")
    over.set()
    assert await worker is None
    assert await stored(each_memory) == "U A"
    assert await states(each_memory) == ["completed"]
    assert caplog.text.count("context_outlived_turn") == 1


async def test_a_call_that_names_its_session_in_a_context_that_outlives_its_turn(
    each_memory: Any,
) -> None:
    """It is a turn of its own, with the memory of the turn that the context was made in."""
    over = asyncio.Event()

    @with_session_memory(memory=each_memory)
    async def greet(text: str) -> str:
        return await say(text)

    async def work() -> None:
        await over.wait()
        await Runner.run(local_agent(), "Again", session_id="s")
        await Runner.run(local_agent(), "I'm Bob", session_id="bob")
        await greet("Hi", session_id="bob")
        with pytest.raises(SessionIdRequired):
            await greet("Hi")

    async with session_scope("s", memory=each_memory):
        await say("Hi, I'm Alice")
        worker = asyncio.create_task(work())
    over.set()
    await worker
    assert await stored(each_memory) == "U A U A"
    assert await stored(each_memory, "bob") == "U A U A"
    assert [len(record.items) for record in await each_memory.turns("bob")] == [2, 2]


@pytest.mark.parametrize("lost", [False, True])
async def test_the_memorys_methods_in_a_context_that_outlives_its_turn(
    each_memory: Any, lost: bool
) -> None:
    """They act as from outside, also where the turn had lost its session."""
    over = asyncio.Event()

    async def work() -> None:
        await over.wait()
        await each_memory.append_to_session("s", [{"role": "user", "content": "later"}])
        assert await each_memory.load_session("s")
        await each_memory.clear_session("s")

    worker = None
    with suppress(TurnLost):
        async with session_scope("s", memory=each_memory):
            await say("Hi, I'm Alice")
            worker = asyncio.create_task(work())
            if lost:
                await each_memory.release("s")
    over.set()
    assert worker is not None
    await worker
    assert not await each_memory.session_exists("s")


async def test_what_is_made_in_an_agents_tool_and_outlives_the_turn(each_memory: Any) -> None:
    """A server that a tool starts serves others without the session of the run."""
    over = asyncio.Event()
    workers = []

    async def serve() -> None:
        await over.wait()
        assert current_session() is None
        await say("I'm Bob")
        workers.append(await each_memory.load_session("s"))

    def start() -> str:
        workers.append(asyncio.create_task(serve()))
        return "started"

    agent = scripted_agent(call("start"), assistant("done"), tools=[tool("start", start)])
    run = with_session_memory(Runner.run, memory=each_memory)
    await run(agent, "Start it", session_id="s")
    over.set()
    await workers[0]
    assert letters(workers[1]) == "U C O A"


async def test_a_turn_inside_another_that_ended_first(each_memory: Any) -> None:
    """A task of the inner turn is in no session, and may still name the outer one."""
    over, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await over.wait()
        assert current_session() is None
        await say("no session")
        await Runner.run(local_agent(), "the outer one", session_id="outer")
        done.set()

    async with session_scope("outer", memory=each_memory):
        async with session_scope("inner", memory=each_memory):
            await say("Hi")
            worker = asyncio.create_task(work())
        over.set()
        await done.wait()
        await worker
    assert await stored(each_memory, "outer") == "U A"
    assert await stored(each_memory, "inner") == "U A"
    assert await states(each_memory, "outer") == ["completed"]


async def test_turns_that_start_each_other_are_not_kept(each_memory: Any) -> None:
    """A worker that starts its successor from within a turn does not collect turns for ever."""
    kept: list[int] = []
    made: weakref.WeakSet[ActiveTurn] = weakref.WeakSet()
    last = asyncio.get_running_loop().create_future()

    @with_session_memory(memory=each_memory)
    async def work(left: int) -> None:
        turn = turn_here()
        assert turn is not None
        made.add(turn)
        gc.collect()
        kept.append(len(made))
        if left:
            asyncio.get_running_loop().create_task(afterwards(left - 1))
        else:
            last.set_result(None)

    async def afterwards(left: int) -> None:
        await freed(each_memory)
        await work(left, session_id="s")

    await work(12, session_id="s")
    await last
    assert max(kept) < 10  # of 13; some may still be ending


async def test_a_time_limit_keeps_no_turn(each_memory: Any) -> None:
    """Turns that ended in time are freed, long before their time would be over."""
    made: list[weakref.ref[ActiveTurn]] = []
    for _ in range(3):
        async with session_scope("s", memory=each_memory, turn_timeout=3600):
            await say("Hi")
            turn = turn_here()
            assert turn is not None
            made.append(weakref.ref(turn))
            del turn
    # A task of the memory's own may have the context of the turn in which it began.
    await until(lambda: (gc.collect(), sum(kept() is not None for kept in made) <= 1)[1])


async def test_runs_at_once_in_one_turn(each_memory: Any) -> None:
    """Runs that are gathered stay whole, and none sees the other's half."""
    both_called = asyncio.Barrier(2)

    async def meet() -> str:
        await both_called.wait()
        return "met"

    agents = {
        name: scripted_agent(call("meet"), assistant(name), tools=[tool("meet", meet)])
        for name in "AB"
    }

    @with_session_memory(memory=each_memory)
    async def outer() -> None:
        await say("Hi")
        await asyncio.gather(*(Runner.run(agent, name) for name, agent in agents.items()))
        await say("Bye")

    await outer(session_id="s")
    assert await stored(each_memory) == "U A U C O A U C O A U A"
    items = await each_memory.load_session("s")
    for run in (items[2:6], items[6:10]):
        assert text_of(run[0]) == text_of(run[3])
        assert run[1]["call_id"] == run[2]["call_id"]
    for agent in agents.values():
        assert [letters(seen.input) for seen in model_of(agent).calls] == ["U A U", "U A U C O"]


async def test_streams_at_once_in_one_turn(each_memory: Any) -> None:
    """The same for streams that are read in turns."""

    @with_session_memory(memory=each_memory)
    async def outer() -> None:
        await asyncio.gather(
            *(
                consumed(
                    Runner.run_streamed(
                        scripted_agent(
                            call("look"), assistant(name), tools=[tool("look", lambda: 1)]
                        ),
                        name,
                    )
                )
                for name in "ABC"
            )
        )

    await outer(session_id="s")
    assert await stored(each_memory) == "U C O A U C O A U C O A"
    (record,) = await each_memory.turns("s")
    assert (record.runs, record.state) == (3, "completed")


# --- agents, tools and handoffs ------------------------------------------------------------


@both_ways
async def test_agents_used_as_tools_do_not_join(each_memory: Any, method: str) -> None:
    """An agent used as a tool sees no history and leaves nothing in the session."""
    helper = scripted_agent(assistant("from the helper"))
    agent = scripted_agent(
        calls(("ask", {"input": "x"}), ("ask", {"input": "y"})),
        assistant("done"),
        tools=[helper.as_tool("ask", "Asks.")],
    )
    model_of(helper).enqueue(assistant("again"))
    await carried_out("run", local_agent(), "Hi", each_memory)
    await carried_out(method, agent, "Ask", each_memory)
    assert await stored(each_memory) == "U A U C C O O A"
    assert [letters(seen.input) for seen in model_of(helper).calls] == ["U", "U"]
    assert (await each_memory.turns("s"))[0].runs == 1


async def test_a_tool_that_runs_with_a_session_of_its_own(each_memory: Any) -> None:
    """A tool may name another session, which is another turn, or its own, which joins."""

    async def ask(session_id: str) -> str:
        result = await Runner.run(local_agent(), "Hi, I'm Bob", session_id=session_id)
        return str(result.final_output)

    agent = scripted_agent(
        call("other"),
        call("same"),
        call("none"),
        assistant("done"),
        tools=[
            tool("other", lambda: ask("helper")),
            tool("same", lambda: ask("s")),
            tool("none", lambda: say("Hi")),
        ],
    )
    await carried_out("run", agent, "Ask", each_memory)
    assert await stored(each_memory, "helper") == "U A"
    (record,) = await each_memory.turns("s")
    assert record.runs == 2
    # run by run: the tool's own run comes after the one it was called from
    assert letters(record.items) == "U C O C O C O A U A"


async def test_a_run_inside_a_tool_does_not_see_the_outer_runs_half(each_memory: Any) -> None:
    """The call that is going on is not part of the history of the run inside it."""
    inner = scripted_agent(assistant("inner"))

    async def ask() -> str:
        return str((await Runner.run(inner, "Q", session_id="s")).final_output)

    agent = scripted_agent(call("ask"), assistant("done"), tools=[tool("ask", ask)])
    await carried_out("run", local_agent(), "Hi", each_memory)
    await carried_out("run", agent, "Ask", each_memory)
    assert letters(model_of(inner).calls[0].input) == "U A U"


@both_ways
async def test_handoffs_join_as_one_run(each_memory: Any, method: str) -> None:
    """A handoff goes on in the same run; the next turn sees all of it."""
    expert = Agent(name="Expert", model=model_of(scripted_agent(assistant("42"))))
    agent = scripted_agent(call("transfer_to_expert"), handoffs=[expert])
    await carried_out(method, agent, "What?", each_memory)
    follow_up = scripted_agent(assistant("yes"))
    await carried_out(method, follow_up, "Sure?", each_memory)
    assert letters(model_of(follow_up).calls[0].input) == "U C O A U"
    assert [record.agent for record in await each_memory.turns("s")] == ["Assistant", "Expert"]


# --- how it ends ---------------------------------------------------------------------------


@both_ways
async def test_the_session_is_free_after_every_ending_of_a_run(
    each_memory: Any, method: str
) -> None:
    """Completed, failed, refused by the SDK: the session can be acquired, the record says how."""
    await carried_out(method, local_agent(), "Hi", each_memory)
    failing = scripted_agent(ModelStep.raise_error(OSError("down")))
    with pytest.raises(OSError, match="down"):
        await carried_out(method, failing, "Hi", each_memory)
    with pytest.raises(TypeError):
        await carried_out(method, local_agent(), "Hi", each_memory, hooks="no hooks")
    assert await free(each_memory)
    assert (await states(each_memory))[:2] == ["completed", "failed"]


async def test_a_stream_that_nobody_reads(each_memory: Any) -> None:
    """A dropped stream completes in the background and frees the session."""
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    run(local_agent(), "Hi", session_id="s")
    await until(lambda: stored_so_far(each_memory, 2))
    async with session_scope("s", memory=each_memory):
        pass
    assert (await states(each_memory))[0] == "completed"


async def test_a_stream_whose_reader_leaves(each_memory: Any) -> None:
    """A reader that closes its iterator lets the run complete; on_departure="cancel" ends it."""
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    events = run(local_agent(), "Hi", session_id="s").stream_events()
    await anext(events)
    await events.aclose()
    async with session_scope("s", memory=each_memory):
        pass
    assert (await states(each_memory))[0] == "completed"

    run = with_session_memory(Runner.run_streamed, memory=each_memory, on_departure="cancel")
    hangs = scripted_agent(call("hangs"), tools=[tool("hangs", lambda: asyncio.Event().wait())])
    events = run(hangs, "Hi", session_id="t").stream_events()
    await anext(events)
    await events.aclose()
    async with session_scope("t", memory=each_memory):
        pass
    assert (await states(each_memory, "t"))[0] == "cancelled"


def test_a_stream_at_the_end_of_its_loop(each_memory: Any, do: Any) -> None:
    """asyncio.run may end while a stream runs: its turn has ended too, in the storage."""

    async def leave_it_running() -> None:
        hangs = scripted_agent(call("hangs"), tools=[tool("hangs", lambda: asyncio.Event().wait())])
        result = with_session_memory(Runner.run_streamed, memory=each_memory)(
            hangs, "Hi", session_id="s"
        )
        async for event in result.stream_events():
            if getattr(event, "name", "") == "tool_called":
                break

    asyncio.run(leave_it_running())
    assert do(states(each_memory)) == ["cancelled"]


async def test_a_turn_ends_whatever_its_model_said(each_memory: Any) -> None:
    """Half of a surrogate pair in an answer or a name is no reason to fail a run that is over."""
    agent = scripted_agent(assistant("half a \ud83d smile"))
    agent.name = "Smi\ude00ler"
    result = await carried_out("run", agent, "Hi", each_memory)
    assert result.final_output == "half a \ud83d smile"
    (record,) = await each_memory.turns("s")
    assert (record.state, record.agent) == ("completed", "Smi\ufffdler")
    assert record.output_text == "half a \ufffd smile"
    assert text_of(record.items[-1]) == "half a \ud83d smile"
    assert await free(each_memory)


async def test_discard_removes_what_a_failed_turn_stored(each_memory: Any) -> None:
    """on_failure="discard": exactly the turn's items go, when its last run is over."""
    remember = with_session_memory(memory=each_memory, on_failure="discard")
    await remember(say)("Hi, I'm Alice", session_id="s")

    @remember
    async def fails() -> None:
        await say("Forget this")
        raise LookupError

    @remember
    async def hangs() -> None:
        await say("And this")
        await asyncio.Event().wait()

    with pytest.raises(LookupError):
        await fails(session_id="s")
    task = asyncio.create_task(hangs(session_id="s"))
    await until(lambda: stored_so_far(each_memory, 2))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stored(each_memory) == "U A"
    assert await states(each_memory) == ["completed", "failed", "cancelled"]


async def test_a_turn_has_its_time(each_memory: Any) -> None:
    """After turn_timeout the session is free, and what still runs gets TurnLost."""

    @with_session_memory(memory=each_memory, turn_timeout=0.05)
    async def slow() -> None:
        await until(lambda: current_session() == ("s", None))
        await say("too late")

    with pytest.raises(TurnLost, match="took longer"):
        await slow(session_id="s")
    assert await free(each_memory)
    assert (await states(each_memory))[0] == "failed"
    assert await stored(each_memory) == ""


async def test_a_run_outlasts_its_turns_time(each_memory: Any) -> None:
    """A run that was going on when the time was over stores nothing more."""

    async def linger() -> str:
        await until(lambda: current_session() == ("s", None))
        return "late"

    agent = scripted_agent(call("linger"), assistant("done"), tools=[tool("linger", linger)])
    with pytest.raises(TurnLost, match="took longer"):
        await carried_out("run", agent, "Hi", each_memory, decoration={"turn_timeout": 0.05})
    assert await stored(each_memory) in ("U", "")
    assert await states(each_memory) == ["failed"]


@pytest.mark.parametrize("options", [{}, {"redact": lambda item: item}], ids=["plain", "redact"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_model_in_the_input_is_named(method: str, options: dict[str, Any]) -> None:
    """A pydantic item is refused by its class, before the session is acquired."""
    text = ResponseOutputText(text="hidden", type="output_text", annotations=[])
    given: Any = [
        {"role": "user", "content": "Hi"},
        ResponseOutputMessage(
            id="m", role="assistant", status="completed", type="message", content=[text]
        ),
    ]
    memory = InMemorySessionMemory()
    words = "got ResponseOutputMessage: pass its .model_dump"
    with pytest.raises(InvalidItem, match=words) as raised:
        await carried_out(method, local_agent(), given, memory, decoration=options)
    assert raised.value.position == 1
    assert "hidden" not in str(raised.value)
    assert await memory.list_sessions() == []
