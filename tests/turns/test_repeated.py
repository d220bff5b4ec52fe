"""Input that begins with the session's own history: it is neither stored nor shown twice."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, Runner, run_demo_loop

from session_middleware import last_turns, session_scope, with_session_memory
from session_middleware.testing.models import assistant, call, model_of, scripted_agent
from tests.support.sessions import METHODS, consumed, letters, stored, text_of, tool


def answering(text: str) -> Agent[Any]:
    """An agent that uses its tool once and then answers."""
    return scripted_agent(call("look"), assistant(text), tools=[tool("look", lambda: "seen")])


def without_letters(item: dict[str, Any]) -> dict[str, Any] | None:
    """Redact the words of messages."""
    return {**item, "content": "[gone]"} if item.get("role") == "user" else item


async def one_run(run: Callable[..., Any], agent: Agent[Any], given: Any) -> Any:
    """The result of a run, streamed to its end where it streams."""
    result = run(agent, given, session_id="s")
    return await (result if inspect.isawaitable(result) else consumed(result))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": last_turns(1)}, {"redact": without_letters}],
    ids=["whole", "window", "redact"],
)
async def test_a_history_that_is_passed_again_is_dropped(
    each_memory: Any, caplog: pytest.LogCaptureFixture, method: str, options: Any
) -> None:
    """result.to_input_list() and the next message: the session takes the message alone."""
    caplog.set_level("WARNING", "session_middleware")
    run = with_session_memory(getattr(Runner, method), memory=each_memory, **options)
    result = await one_run(run, answering("a0"), "q0")
    for number in (1, 2):
        agent = answering(f"a{number}")
        kept = result.to_input_list()
        given = [*kept, {"role": "user", "content": f"q{number}"}]
        result = await one_run(run, agent, given)
        assert given[: len(kept)] == kept  # the caller's list stays as it was
        shown = letters(model_of(agent).calls[0].input)
        assert shown == " ".join(["U C O A"] * (1 if options.get("window") else number) + ["U"])
    assert await stored(each_memory) == "U C O A U C O A U C O A"
    assert caplog.text.count("history_repeated") == 2


async def test_one_turn_warns_once(each_memory: Any, caplog: pytest.LogCaptureFixture) -> None:
    """However many runs of a turn are given the history, one warning tells of it."""
    caplog.set_level("WARNING", "session_middleware")
    async with session_scope("s", memory=each_memory):
        result = await Runner.run(answering("a0"), "q0")
        for number in (1, 2):
            given = [*result.to_input_list(), {"role": "user", "content": f"q{number}"}]
            result = await Runner.run(answering(f"a{number}"), given)
    assert await stored(each_memory) == "U C O A U C O A U C O A"
    assert caplog.text.count("history_repeated") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_demo_loop_in_a_scope(
    each_memory: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The SDK's own terminal chat keeps the conversation itself, and is stored once."""
    said = iter(["one", "two", "three", "exit"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(said))
    agent = scripted_agent(assistant("a"), assistant("b"), assistant("c"))
    async with session_scope("s", memory=each_memory):
        await run_demo_loop(agent, stream=stream)
    items = await each_memory.load_session("s")
    assert [text_of(item) for item in items] == ["one", "a", "two", "b", "three", "c"]


def test_a_blocking_run(each_memory: Any, do: Any) -> None:
    """The same for run_sync."""
    run = with_session_memory(Runner.run_sync, memory=each_memory)
    result = run(answering("a0"), "q0", session_id="s")
    run(
        answering("a1"),
        [*result.to_input_list(), {"role": "user", "content": "q1"}],
        session_id="s",
    )
    assert do(stored(each_memory)) == "U C O A U C O A"


@pytest.mark.parametrize("method", METHODS)
async def test_other_lists_are_stored_whole(
    each_memory: Any, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Examples that are no history of the session, and two messages at once, are new input."""
    caplog.set_level("WARNING", "session_middleware")
    run = with_session_memory(getattr(Runner, method), memory=each_memory)
    examples = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    for text in ("3+3", "4+4"):
        agent = scripted_agent(assistant("known"))
        await one_run(run, agent, [*examples, {"role": "user", "content": text}])
    await one_run(run, scripted_agent(assistant("x")), [{"role": "user", "content": "4+4"}] * 2)
    assert await stored(each_memory) == "U A U A U A U A U U A"
    assert "history_repeated" not in caplog.text


async def test_a_history_with_nothing_new(each_memory: Any) -> None:
    """The history alone, passed again, is no new input: the model goes on from it."""
    run = with_session_memory(Runner.run, memory=each_memory)
    result = await one_run(run, answering("a0"), "q0")
    await one_run(run, scripted_agent(assistant("more")), result.to_input_list())
    assert await stored(each_memory) == "U C O A A"
