"""Conversations of the SDK's own sessions come over, with their dates."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from agents import Runner, SQLiteSession
from agents.extensions.memory import AdvancedSQLiteSession, SQLAlchemySession

from session_middleware import (
    InvalidOption,
    MissingExtra,
    NotADatabase,
    SQLiteSessionMemory,
    UnsupportedSchema,
    import_sdk_sessions,
)
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.sessions import counted


async def talk(session: Any, *texts: str) -> list[Any]:
    """Run an agent that uses a tool in the SDK's session; returns its items."""
    for text in texts:
        agent = scripted_agent(call("look"), assistant(text), tools=[counted("look", [])])
        await Runner.run(agent, text, session=session)
    items: list[Any] = await session.get_items()
    return items


async def test_a_file_of_sqlite_sessions(tmp_path: Path, each_memory: Any) -> None:
    """Every session, in turns, with the dates of its messages; once more changes nothing."""
    path = tmp_path / "old.db"
    items = {}
    for session_id in ("a", "b"):
        session = SQLiteSession(session_id, path)
        items[session_id] = await talk(session, "one", "two")
        session.close()
    _date(path, "2024-05-06 07:08:09")
    assert await import_sdk_sessions(path, each_memory) == 2
    assert await import_sdk_sessions(str(path), each_memory) == 0
    for session_id in items:
        assert await each_memory.load_session(session_id) == items[session_id]
        records = await each_memory.turns(session_id)
        assert [(record.turn, record.item_count) for record in records] == [(2, 4), (1, 4)]
        assert {str(record.started_at) for record in records} == {"2024-05-06 07:08:09+00:00"}
        info = await each_memory.session_info(session_id)
        assert str(info.created_at) == str(info.updated_at) == "2024-05-06 07:08:09+00:00"
        assert info.first_question == "one"


async def test_branches_become_sessions_of_their_own(tmp_path: Path, each_memory: Any) -> None:
    """The branch that is opened by default is the session; usage comes along."""
    path = tmp_path / "old.db"
    session = AdvancedSQLiteSession(session_id="s", db_path=path, create_tables=True)
    for text in ("one", "two"):
        result = await Runner.run(scripted_agent(assistant(text)), text, session=session)
        await session.store_run_usage(result)
    main = await session.get_items()
    await session.create_branch_from_turn(2, "retry")
    await talk(session, "again")
    branch = await session.get_items()
    session.close()
    assert await import_sdk_sessions(path, each_memory) == 2
    assert await each_memory.load_session("s") == main
    assert await each_memory.load_session("s:retry") == branch
    assert len(await each_memory.turns("s")) == 2
    assert all(record.usage is not None for record in await each_memory.turns("s"))


async def test_a_database_of_sqlalchemy_sessions(tmp_path: Path, each_memory: Any) -> None:
    """By its URL, or by the engine that the caller has."""
    url = f"sqlite+aiosqlite:///{tmp_path}/old.db"
    session = SQLAlchemySession.from_url("s", url=url, create_tables=True)
    items = await talk(session, "one", "two")
    assert await import_sdk_sessions(url, each_memory) == 1
    assert await import_sdk_sessions(session._engine, each_memory) == 0
    assert await each_memory.load_session("s") == items
    await session._engine.dispose()


async def test_any_session_object(each_memory: Any) -> None:
    """Of which nothing is known but its items."""
    session = SQLiteSession("s")
    items = await talk(session, "one", "two")
    assert await import_sdk_sessions(session, each_memory) == 1
    assert await import_sdk_sessions(session, each_memory) == 0
    assert await each_memory.load_session("s") == items
    assert len(await each_memory.turns("s")) == 2
    session.close()


async def test_into_a_scope(tmp_path: Path, each_memory: Any) -> None:
    """Under the tenant's ids."""
    session = SQLiteSession("s", tmp_path / "old.db")
    await talk(session, "one")
    session.close()
    scope = each_memory.scoped("tenant")
    assert await import_sdk_sessions(tmp_path / "old.db", scope) == 1
    assert await each_memory.list_sessions() == ["tenant:s"]


async def test_tables_of_other_names(tmp_path: Path, each_memory: Any) -> None:
    path = tmp_path / "old.db"
    session = SQLiteSession("s", path, sessions_table="mine", messages_table="words")
    await talk(session, "one")
    session.close()
    with pytest.raises(InvalidOption, match="agent_sessions"):
        await import_sdk_sessions(path, each_memory)
    tables = {"sessions_table": "mine", "messages_table": "words"}
    assert await import_sdk_sessions(path, each_memory, **tables) == 1
    with pytest.raises(InvalidOption):
        await import_sdk_sessions(path, each_memory, sessions_table="x; DROP TABLE mine")


async def test_a_message_that_is_no_json_is_not_lost(tmp_path: Path, each_memory: Any) -> None:
    """It lies in the memory as it was, and is left out of what is read."""
    path = tmp_path / "old.db"
    session = SQLiteSession("s", path)
    await talk(session, "one")
    session.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE agent_messages SET message_data = 'torn {' WHERE id = 2")
    connection.close()
    assert await import_sdk_sessions(path, each_memory) == 1
    assert (await each_memory.session_info("s")).items == 4
    assert len(await each_memory.load_session("s")) == 3


async def test_a_file_of_the_sdks_opened_as_ours_says_so(tmp_path: Path) -> None:
    """It is left as it is, and the error names the way."""
    session = SQLiteSession("s", tmp_path / "old.db")
    await talk(session, "one")
    session.close()
    memory = SQLiteSessionMemory(tmp_path / "old.db")
    with pytest.raises(UnsupportedSchema, match="import_sdk_sessions"):
        await memory.list_sessions()
    await memory.cleanup()


async def test_what_is_no_source_is_refused(
    tmp_path: Path, each_memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_text("not a database, and long enough to be looked into" * 30)
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(NotADatabase):
        await import_sdk_sessions(tmp_path / "text.db", each_memory)
    for source in (tmp_path / "none.db", tmp_path, tmp_path / "empty.db", 3, object()):
        with pytest.raises(InvalidOption):
            await import_sdk_sessions(source, each_memory)
    monkeypatch.setitem(__import__("sys").modules, "sqlalchemy.ext.asyncio", None)
    with pytest.raises(MissingExtra, match="pip install"):
        await import_sdk_sessions("postgresql+asyncpg://u@h/db", each_memory)


def _date(path: Path, moment: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE agent_messages SET created_at = ?", (moment,))
        connection.execute(
            "UPDATE agent_sessions SET created_at = ?, updated_at = ?", (moment,) * 2
        )
    connection.close()
