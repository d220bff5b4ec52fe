"""Every piece of code in the document this package was asked for with, in this package's form.

There ``memory=`` is said on ``Agent``; here it is said once, on the decorator or to ``install``.
docs/seed.md names the test of each row. The models answer only from the input they are given.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from agents import Runner, TResponseInputItem, trace
from agents.testing import ModelCall, ModelStep

from session_middleware import (
    InMemorySessionMemory,
    SessionIdRequired,
    SessionMemory,
    SQLiteSessionMemory,
    installed,
    with_session_memory,
)
from session_middleware.testing.models import assistant, local_agent, scripted_agent
from tests.support.programs import Programs

CITY = "What city is the Golden Gate Bridge in?"
STATE = "What state is it in?"


def files() -> set[str]:
    """The names of the files in the current directory, which is the test's own."""
    return {file.name for file in Path.cwd().iterdir()}


def from_the_input(call: ModelCall) -> ModelStep:
    """Answer the two questions of the document, the second only if the first is in the input."""
    said = str(call.input)
    asks_state = call.input[-1]["content"] == STATE if isinstance(call.input, list) else False
    if not asks_state:
        return assistant("San Francisco")
    return assistant("California" if CITY in said and "San Francisco" in said else "?")


def bridge_agent() -> Any:
    """An agent for two questions."""
    return scripted_agent(*(ModelStep.respond(from_the_input) for _ in range(2)))


async def test_old_way_still_works() -> None:
    """Overview, old way: a history carried by hand is untouched, installed or not."""

    async def by_hand() -> str:
        agent = bridge_agent()
        with trace(workflow_name="Conversation", group_id="thread-1"):
            result = await Runner.run(agent, CITY)
            assert result.final_output == "San Francisco"
            new_input = [*result.to_input_list(), {"role": "user", "content": STATE}]
            result = await Runner.run(agent, new_input)
        return result.final_output

    assert await by_hand() == "California"
    with installed(memory=True):
        assert await by_hand() == "California"
    assert "agent_sessions.db" not in files()


async def test_new_way_installed(sdk_traces: Any) -> None:
    """Overview, new way, word for word but for Agent(memory=True): install(memory=True)."""
    agent = bridge_agent()
    with installed(memory=True), trace(workflow_name="Conversation", group_id="thread-1"):
        result = await Runner.run(agent, CITY, session_id="conversation_1")
        assert result.final_output == "San Francisco"
        result = await Runner.run(agent, STATE, session_id="conversation_1")
        assert result.final_output == "California"
    assert sdk_traces.group_ids == ["thread-1"]


async def test_new_way_decorated() -> None:
    """Overview, new way, as a decorator around an unchanged function."""
    agent = bridge_agent()

    @with_session_memory
    async def chat(question: str) -> str:
        return (await Runner.run(agent, question)).final_output

    assert await chat(CITY, session_id="conversation_1") == "San Francisco"
    assert await chat(STATE, session_id="conversation_1") == "California"


@pytest.mark.parametrize("memory_option", [None, "omitted"])
async def test_memory_none(memory_option: str | None) -> None:
    """Configuration 1: None, or nothing said: no session memory; a session_id is ignored."""
    agent = bridge_agent()

    async def chat(question: str) -> str:
        return (await Runner.run(agent, question)).final_output

    if memory_option is None:
        run = with_session_memory(chat, memory=None)
        assert await run(CITY, session_id="conversation_1") == "San Francisco"
        assert await run(STATE, session_id="conversation_1") == "?"
    else:
        assert await chat(CITY) == "San Francisco"
        assert await chat(STATE) == "?"
    assert files() == set()


async def test_memory_true() -> None:
    """Configuration 2: True: a file agent_sessions.db in the current directory."""
    agent = bridge_agent()
    with installed(memory=True):
        await Runner.run(agent, CITY, session_id="conversation_1")
    assert "agent_sessions.db" in files()


async def test_memory_instance() -> None:
    """Configuration 3: a SQLiteSessionMemory with a path of one's own."""
    agent = bridge_agent()
    async with SQLiteSessionMemory(db_path="my_conversations.db") as custom_memory:
        run = with_session_memory(Runner.run, memory=custom_memory)
        await run(agent, CITY, session_id="conversation_1")
        result = await run(agent, STATE, session_id="conversation_1")
    assert result.final_output == "California"
    assert "my_conversations.db" in files()


async def test_session_id_is_needed(memory: SessionMemory) -> None:
    """Usage: with memory on, a decorated call names its session; the error shows how."""
    agent = local_agent()
    run = with_session_memory(Runner.run, memory=memory)
    with pytest.raises(SessionIdRequired, match="session_id="):
        await run(agent, "Your message here")
    result = await run(agent, "Your message here", session_id="unique_session_identifier")
    assert result.final_output
    assert await memory.list_sessions() == ["unique_session_identifier"]


class CustomSessionMemory(SessionMemory):
    """The document's interface, its six methods in a dict; cleanup is optional."""

    def __init__(self) -> None:
        self.histories: dict[str, list[Any]] = {}

    async def load_session(self, session_id: str) -> list[TResponseInputItem]:
        return list(self.histories.get(session_id, []))

    async def save_session(
        self, session_id: str, conversation_history: list[TResponseInputItem]
    ) -> None:
        self.histories[session_id] = list(conversation_history)

    async def append_to_session(self, session_id: str, new_items: list[TResponseInputItem]) -> None:
        self.histories.setdefault(session_id, []).extend(new_items)

    async def clear_session(self, session_id: str) -> None:
        self.histories.pop(session_id, None)

    async def list_sessions(self) -> list[str]:
        return list(self.histories)

    async def session_exists(self, session_id: str) -> bool:
        return session_id in self.histories


async def test_custom_memory() -> None:
    """Session Memory Interface: a subclass with these six methods is all a run needs."""
    custom_memory = CustomSessionMemory()
    agent = bridge_agent()
    run = with_session_memory(Runner.run, memory=custom_memory)
    await run(agent, CITY, session_id="conversation_1")
    result = await run(agent, STATE, session_id="conversation_1")
    assert result.final_output == "California"
    roles = [item["role"] for item in custom_memory.histories["conversation_1"]]
    assert roles == ["user", "assistant", "user", "assistant"]


async def test_schema() -> None:
    """Database Schema: sessions with its four columns; the history is a JSON array."""
    agent = bridge_agent()
    async with SQLiteSessionMemory("schema.db") as memory:
        run = with_session_memory(Runner.run, memory=memory)
        await run(agent, CITY, session_id="conversation_1")
    connection = sqlite3.connect("schema.db")
    cursor = connection.execute("SELECT * FROM sessions")
    columns = [column[0] for column in cursor.description]
    rows = cursor.fetchall()
    lengths = connection.execute(
        "SELECT json_array_length(conversation_history) FROM sessions"
    ).fetchall()
    connection.close()
    assert columns == ["session_id", "conversation_history", "created_at", "updated_at"]
    assert [row[0] for row in rows] == ["conversation_1"]
    assert lengths == [(2,)]


async def test_concurrent_sessions(memory: SessionMemory) -> None:
    """SQLite Session Memory: it serves several sessions at once and keeps them apart."""
    agent = local_agent()
    run = with_session_memory(Runner.run, memory=memory)
    names = [f"P{number}" for number in range(10)]
    await asyncio.gather(*(run(agent, f"I'm {name}", session_id=name) for name in names))
    answers = await asyncio.gather(
        *(run(agent, "What's my name?", session_id=name) for name in names)
    )
    assert [answer.final_output for answer in answers] == [f"Your name is {n}." for n in names]


async def test_multiple_sessions() -> None:
    """Examples, Multiple Sessions: Alice and Bob, and back to Alice."""
    agent = local_agent()

    async def say(text: str, session_id: str) -> str:
        return (await Runner.run(agent, text, session_id=session_id)).final_output

    with installed(memory=True):
        await say("Hi, I'm Alice", "user_alice")
        assert await say("What's my name?", "user_alice") == "Your name is Alice."
        await say("Hi, I'm Bob", "user_bob")
        assert await say("What's my name?", "user_bob") == "Your name is Bob."
        assert await say("What did I tell you?", "user_alice") == "You told me: Hi, I'm Alice"


async def test_custom_database_path(tmp_path: Path) -> None:
    """Examples, Custom Database Path: an absolute path."""
    path = tmp_path / "conversations.db"
    async with SQLiteSessionMemory(db_path=str(path)) as memory:
        with installed(memory=memory):
            await Runner.run(bridge_agent(), CITY, session_id="conversation_1")
    assert "conversations.db" in files()


async def test_session_management() -> None:
    """Examples, Session Management: list, exists, clear, cleanup."""
    memory = SQLiteSessionMemory()
    assert await memory.list_sessions() == []
    await memory.append_to_session("session_1", [{"role": "user", "content": "hello"}])
    assert await memory.list_sessions() == ["session_1"]
    assert await memory.session_exists("session_1")
    await memory.clear_session("session_1")
    assert not await memory.session_exists("session_1")
    await memory.cleanup()


async def test_run_without_session_id_is_untouched(memory: SessionMemory) -> None:
    """Backward Compatibility: installed, a run that names no session is as it was."""
    with installed(memory=memory):
        result = await Runner.run(local_agent(), "Hi, I'm Alice")
    assert result.final_output == "Nice to meet you, Alice."
    assert await memory.list_sessions() == []


def test_history_survives_a_restart(programs: Programs, tmp_path: Path) -> None:
    """Benefits 4: another process goes on where the first one ended."""
    script = (
        "import sys, asyncio\n"
        "from agents import Runner, Agent, set_tracing_disabled\n"
        "from session_middleware import install\n"
        "from session_middleware.testing.models import LocalModel\n"
        "set_tracing_disabled(True)\n"
        "install(memory=True)\n"
        "agent = Agent(name='Assistant', model=LocalModel())\n"
        "print(asyncio.run(Runner.run(agent, sys.argv[1], session_id='a')).final_output)\n"
    )
    for text, expected in [
        ("Hi, I'm Alice", "Nice to meet you, Alice."),
        ("What's my name?", "Your name is Alice."),
    ]:
        done = programs.run("-W", "error", "-c", script, text, cwd=tmp_path)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")


async def test_pluggable() -> None:
    """Benefits 5: another memory, the same code."""
    agent = local_agent()
    for memory in (InMemorySessionMemory(), CustomSessionMemory()):
        run = with_session_memory(Runner.run, memory=memory)
        await run(agent, "Hi, I'm Alice", session_id="a")
        result = await run(agent, "What's my name?", session_id="a")
        assert result.final_output == "Your name is Alice."
