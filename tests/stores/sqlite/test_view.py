"""The file as other tools see it: the ``sessions`` view, and files that were there before."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_middleware.errors import (
    MemoryUnavailable,
    NotADatabase,
    TurnLost,
    UnsupportedSchema,
)
from session_middleware.history import split
from session_middleware.stores.records import AcquireRequest, TurnEnd
from session_middleware.stores.sqlite import SQLiteSessionMemory
from session_middleware.stores.sqlite import schema as schema

SEED_TABLE = """
    CREATE TABLE sessions (
        session_id TEXT PRIMARY KEY,
        conversation_history TEXT NOT NULL,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
        updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
    )
"""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def made(path: Path) -> None:
    async with SQLiteSessionMemory(path) as memory:
        await memory.ping()


def orphans(connection: sqlite3.Connection) -> int:
    """Rows of sessions that are gone."""
    total = 0
    for table in ("item", "run", "turn", "park"):
        statement = f"SELECT count(*) FROM {table} WHERE session NOT IN (SELECT key FROM session)"
        total += connection.execute(statement).fetchone()[0]
    return total


# --- reading ---------------------------------------------------------------------------------


async def test_view_shows_the_four_columns_and_the_exact_text(path, other_process):
    """The view's history is what json.dumps makes of the items, character for character."""
    history = [user('Grüße \u0000 \\ "x"'), answer("1e400"), {"type": "t", "n": [1.50, 2**70]}]
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", history)
        stored = await memory.load_items("a")
    cursor = other_process.execute("SELECT * FROM sessions WHERE session_id = 'a'")
    assert [column[0] for column in cursor.description] == [
        "session_id",
        "conversation_history",
        "created_at",
        "updated_at",
    ]
    (_, text, created_at, updated_at) = cursor.fetchone()
    assert json.loads(text) == history == stored
    assert text.startswith('[{"role": "user", "content": "Grüße \\u0000')
    datetime.strptime(created_at, "%Y-%m-%d %H:%M:%S")
    datetime.strptime(updated_at, "%Y-%m-%d %H:%M:%S")


async def test_view_leaves_out_sessions_that_were_only_acquired(path, other_process):
    """A session exists once something was stored or saved, in the view as in the API."""
    async with SQLiteSessionMemory(path) as memory:
        acquired = await memory.acquire(AcquireRequest("a", datetime.now(UTC)))
        assert await memory.list_sessions() == []
        assert not await memory.session_exists("a")
        assert other_process.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
        await memory.append_items(acquired.lease, 1, 0, [user("x")])
        assert await memory.list_sessions() == ["a"]
        assert other_process.execute("SELECT session_id FROM sessions").fetchall() == [("a",)]
        await memory.save_session("empty", [])
        assert await memory.session_exists("empty")


async def test_reading_one_session_through_the_view_scans_nothing(path, other_process):
    """A look-up by id is a search, whatever the number of sessions."""
    await made(path)
    plan = other_process.execute(
        "EXPLAIN QUERY PLAN SELECT conversation_history FROM sessions WHERE session_id = 'a'"
    ).fetchall()
    scans = [detail for *_, detail in plan if "SCAN" in detail and "SUBQUERY" not in detail]
    assert [scan for scan in scans if "(subquery" not in scan.lower()] == []


# --- writing ---------------------------------------------------------------------------------


async def test_insert_through_the_view_is_split_into_turns(path, other_process):
    """A flat history becomes turns: a user message after another kind of item begins one."""
    await made(path)
    history = [user("1"), user("1b"), answer("r"), user("2"), answer("r"), answer("s")]
    other_process.execute(
        "INSERT INTO sessions (session_id, conversation_history) VALUES ('a', ?)",
        (json.dumps(history),),
    )
    async with SQLiteSessionMemory(path) as memory:
        loaded = await memory.load_turns("a")
        records = await memory.turns("a")
    assert [turn.items for turn in loaded.turns] == split(history)
    assert [(record.turn, record.state, record.item_count) for record in records] == [
        (2, "completed", 3),
        (1, "completed", 3),
    ]
    row = other_process.execute("SELECT created_at, updated_at, flat FROM session").fetchone()
    assert None not in row[:2]
    assert row[2] is None


_ELEMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [user("x"), answer("y"), {"type": "message", "role": "user", "content": 1}]
        ),
        st.sampled_from(
            [{"type": "function_call", "role": "user"}, {"role": "user", "type": None}]
        ),
        st.sampled_from([1, 2.5, "text", 'q"uote', True, False, None, [], [1], {}]),
    ),
    max_size=8,
)


@given(histories=st.lists(_ELEMENTS, min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_view_and_python_split_alike(histories):
    """Whatever the elements are, SQL cuts a history where history.split cuts it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.make_ready(connection)
        for number, history in enumerate(histories):
            connection.execute(
                "INSERT INTO sessions (session_id, conversation_history) VALUES (?, ?)",
                (number, json.dumps(history)),
            )
            (text,) = connection.execute(
                "SELECT conversation_history FROM sessions WHERE session_id = ?", (number,)
            ).fetchone()
            assert json.loads(text) == history
            rows = connection.execute(
                "SELECT turn, item FROM item JOIN session ON key = session WHERE session_id = ? "
                "ORDER BY turn, run, position",
                (number,),
            ).fetchall()
            expected = [
                (turn, item) for turn, items in enumerate(split(history), 1) for item in items
            ]
            assert [(turn, json.loads(item)) for turn, item in rows] == expected


async def test_insert_of_an_id_that_is_there_fails_as_on_the_table(path, other_process):
    """A second INSERT is a constraint error; OR IGNORE keeps the old, OR REPLACE the new."""
    await made(path)
    insert = "INTO sessions (session_id, conversation_history) VALUES ('a', ?)"
    other_process.execute(f"INSERT {insert}", (json.dumps([user("1"), answer("2")]),))
    with pytest.raises(sqlite3.IntegrityError):
        other_process.execute(f"INSERT {insert}", ("[]",))
    read = "SELECT conversation_history FROM sessions"
    other_process.execute(f"INSERT OR IGNORE {insert}", ("[]",))
    assert json.loads(other_process.execute(read).fetchone()[0]) == [user("1"), answer("2")]
    other_process.execute(f"INSERT OR REPLACE {insert}", (json.dumps([user("3")]),))
    assert json.loads(other_process.execute(read).fetchone()[0]) == [user("3")]
    other_process.execute(f"REPLACE {insert}", (json.dumps([user("4")]),))
    assert json.loads(other_process.execute(read).fetchone()[0]) == [user("4")]
    assert other_process.execute("SELECT count(*) FROM item").fetchone() == (1,)
    assert orphans(other_process) == 0


async def test_update_and_delete_through_the_view(path, other_process):
    """UPDATE replaces a history, a name or a time; DELETE leaves nothing of the session."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
        await memory.append_to_session("b", [user("secret")])
        other_process.execute(
            "UPDATE sessions SET created_at = '2001-01-01' WHERE session_id = 'a'"
        )
        other_process.execute("UPDATE sessions SET session_id = 'c' WHERE session_id = 'a'")
        assert [record.turn for record in await memory.turns("c")] == [1]
        other_process.execute(
            "UPDATE sessions SET conversation_history = ?", (json.dumps([user("n"), answer("m")]),)
        )
        assert await memory.load_session("c") == [user("n"), answer("m")]
        assert other_process.execute(
            "SELECT created_at FROM sessions WHERE session_id = 'c'"
        ).fetchone() == ("2001-01-01",)
        with pytest.raises(sqlite3.IntegrityError):
            other_process.execute("UPDATE sessions SET session_id = 'b' WHERE session_id = 'c'")
        other_process.execute(
            "UPDATE OR REPLACE sessions SET session_id = 'b' WHERE session_id = 'c'"
        )
        assert await memory.list_sessions() == ["b"]
        assert orphans(other_process) == 0
        other_process.execute("DELETE FROM sessions WHERE session_id = 'b'")
        assert await memory.list_sessions() == []
        assert other_process.execute("SELECT count(*) FROM item").fetchone() == (0,)
        assert orphans(other_process) == 0


async def test_rows_of_the_view_are_counted_by_returning(path, other_process):
    """SQLite counts no row that a trigger changes; RETURNING gives each one, as the page says."""
    async with SQLiteSessionMemory(path) as memory:
        for session_id in ("old", "older", "new"):
            await memory.append_to_session(session_id, [user(session_id)])
        update = "UPDATE sessions SET updated_at = '2001-01-01' WHERE session_id <> 'new'"
        assert other_process.execute(f"{update} RETURNING session_id").fetchall() == [
            ("old",),
            ("older",),
        ]
        deleted = other_process.execute("DELETE FROM sessions WHERE updated_at < '2002-01-01'")
        assert deleted.rowcount == 0
        assert await memory.list_sessions() == ["new"]
        delete = "DELETE FROM sessions WHERE updated_at < '3000-01-01' RETURNING session_id"
        assert other_process.execute(delete).fetchall() == [("new",)]
        assert await memory.list_sessions() == []
        assert orphans(other_process) == 0


@pytest.mark.parametrize("history", [None, "", "no json", "{}", "3", '"text"'])
async def test_view_refuses_what_is_no_history(path, other_process, history):
    """What is no JSON array cannot be written, by INSERT or UPDATE, and nothing changes."""
    await made(path)
    insert = "INSERT INTO sessions (session_id, conversation_history) VALUES (?, ?)"
    other_process.execute(insert, ("a", "[]"))
    with pytest.raises(sqlite3.IntegrityError, match="JSON array"):
        other_process.execute(insert, ("b", history))
    with pytest.raises(sqlite3.IntegrityError, match="JSON array"):
        other_process.execute("UPDATE sessions SET conversation_history = ?", (history,))
    with pytest.raises(sqlite3.IntegrityError, match="session_id"):
        other_process.execute(insert, (None, "[]"))
    assert other_process.execute("SELECT session_id FROM sessions").fetchall() == [("a",)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET conversation_history = '[]' WHERE session_id = 'a'",
        "UPDATE sessions SET updated_at = '2001-01-01' WHERE session_id = 'a'",
        "DELETE FROM sessions WHERE session_id = 'a'",
        "REPLACE INTO sessions (session_id, conversation_history) VALUES ('a', '[]')",
    ],
)
async def test_a_write_through_the_view_ends_the_lease(path, other_process, statement):
    """Whoever holds the session loses it to a write through the view."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
        acquired = await memory.acquire(AcquireRequest("a", datetime.now(UTC)))
        other_process.execute(statement)
        with pytest.raises(TurnLost):
            await memory.append_items(acquired.lease, 1, 0, [user("2")])
        assert all(record.state != "running" for record in await memory.turns("a"))


async def test_a_lease_alone_is_not_in_the_way_of_an_insert(path, other_process):
    """A session that was acquired and holds nothing yet can be inserted; the turn is lost."""
    async with SQLiteSessionMemory(path) as memory:
        acquired = await memory.acquire(AcquireRequest("a", datetime.now(UTC)))
        other_process.execute(
            "INSERT INTO sessions (session_id, conversation_history) VALUES ('a', '[]')"
        )
        with pytest.raises(TurnLost):
            await memory.end_turn(acquired.lease, TurnEnd("completed", datetime.now(UTC)))
        assert await memory.turns("a") == []


# --- files that were there before ------------------------------------------------------------


async def test_seed_table_is_migrated_in_place(path, other_process):
    """A file with the single table becomes one of turns; texts, times and ids are kept."""
    history = [user("1"), answer("2"), user("3")]
    other_process.execute(SEED_TABLE)
    other_process.execute("CREATE TABLE users (name TEXT)")
    rows = {
        "pretty": json.dumps(history, indent=2),
        "compact": json.dumps(history, separators=(",", ":")),
        "empty": " [ ] ",
        "raw": "not [json",
        "object": "[1, {}",
        "nan": '[{"role": "user", "content": NaN}]',
        "scalars": '[1.50, "x", {"role": "user"}]',
    }
    for name, text in rows.items():
        other_process.execute(
            "INSERT INTO sessions VALUES (?, ?, '2024-01-02 03:04:05', '2024-02-02 03:04:05')",
            (name, text),
        )
    other_process.execute(
        "INSERT INTO sessions (session_id, conversation_history) VALUES (NULL, '[]')"
    )
    other_process.execute(
        "INSERT INTO sessions (session_id, conversation_history) VALUES ('blob', ?)",
        (b"[\xff]",),
    )
    async with SQLiteSessionMemory(path) as memory:
        assert await memory.load_session("pretty") == history
        assert await memory.load_session("compact") == history
        assert await memory.load_session("empty") == []
        assert len((await memory.load_turns("pretty")).turns) == 2
        assert (await memory.load_turns("raw")).corrupt == 1
        assert (await memory.load_turns("scalars")).corrupt == 2
        (record,) = [r for r in await memory.turns("pretty") if r.turn == 1]
        assert record.started_at == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert len(await memory.list_sessions()) == len(rows) + 2
    view = dict(other_process.execute("SELECT session_id, conversation_history FROM sessions"))
    assert view["scalars"] == rows["scalars"]
    assert json.loads(view["raw"]) == [rows["raw"]]
    assert json.loads(view["blob"]) == ["[ÿ]"]
    assert other_process.execute("SELECT * FROM users").fetchall() == []
    assert other_process.execute(
        "SELECT created_at, updated_at FROM sessions WHERE session_id = 'raw'"
    ).fetchone() == ("2024-01-02 03:04:05", "2024-02-02 03:04:05")


def _other_columns(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE sessions (id INTEGER PRIMARY KEY, user_id INTEGER)")


def _more_columns(connection: sqlite3.Connection) -> None:
    connection.execute(SEED_TABLE.rstrip().rstrip(")") + ", extra TEXT)")


def _other_program(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA application_id = 77")
    connection.execute("CREATE TABLE t (x)")


def _other_tables(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE users (name TEXT)")


def _other_version(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA user_version = 3")
    connection.execute(SEED_TABLE)


def _taken_name(connection: sqlite3.Connection) -> None:
    connection.execute(SEED_TABLE)
    connection.execute("CREATE TABLE item (x)")


def _newer(connection: sqlite3.Connection) -> None:
    schema.make_ready(connection)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.execute("UPDATE layout SET readable_from = ?", (schema.VERSION + 1,))


@pytest.mark.parametrize(
    "prepare",
    [
        _other_columns,
        _more_columns,
        _other_program,
        _other_tables,
        _other_version,
        _taken_name,
        _newer,
    ],
)
async def test_a_file_that_is_not_ours_is_refused_untouched(path, prepare):
    """Another program's file, or a newer version's, is not written to, not by one byte."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        prepare(connection)
    before = path.read_bytes()
    async with SQLiteSessionMemory(path) as memory:
        for _ in range(2):
            with pytest.raises(UnsupportedSchema, match="left as it is"):
                await memory.load_session("a")
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


async def test_a_newer_file_that_allows_it_is_used(path, other_process):
    """During a rollout the old workers go on with a file that the new ones have upgraded."""
    await made(path)
    other_process.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
    assert other_process.execute("PRAGMA user_version").fetchone() == (schema.VERSION + 1,)


async def test_a_file_that_is_no_database_is_refused_untouched(path):
    """A text file is NotADatabase, with the driver's error as cause."""
    path.write_bytes(b"this is a diary, and no database at all\n" * 100)
    before = path.read_bytes()
    async with SQLiteSessionMemory(path) as memory:
        with pytest.raises(NotADatabase) as caught:
            await memory.append_to_session("a", [user("1")])
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert path.read_bytes() == before


async def test_a_missing_folder_and_a_folder_are_named(tmp_path):
    """The message says which path is wrong, the cause is the operating system's error."""
    async with SQLiteSessionMemory(tmp_path / "nowhere" / "chat.db") as memory:
        with pytest.raises(MemoryUnavailable, match="no folder") as caught:
            await memory.load_session("a")
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        (tmp_path / "nowhere").mkdir()
        assert await memory.load_session("a") == []
    async with SQLiteSessionMemory(tmp_path) as memory:
        with pytest.raises(MemoryUnavailable, match="is a folder") as caught:
            await memory.load_session("a")
        assert isinstance(caught.value.__cause__, OSError)


async def test_an_old_sqlite_is_refused(path, monkeypatch):
    """An SQLite before 3.37 lacks what the layout uses; no file is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    async with SQLiteSessionMemory(path) as memory:
        with pytest.raises(MemoryUnavailable, match=r"3\.37"):
            await memory.load_session("a")
    assert not path.exists()


async def test_new_files_are_readable_for_their_owner_only(path):
    """The database and what SQLite puts beside it have mode 0600."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    assert modes == {"chat.db": 0o600, "chat.db-wal": 0o600, "chat.db-shm": 0o600}


async def test_what_is_cleared_is_gone_from_the_file(path):
    """A cleared session's words are in no page of the file any more."""
    word = b"incriminating"
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user(word.decode() * 50)])
        await memory.append_to_session("b", [user("1")])
    assert word in path.read_bytes()
    async with SQLiteSessionMemory(path) as memory:
        await memory.clear_session("a")
    assert word not in path.read_bytes()
