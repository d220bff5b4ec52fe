"""From one table with a history in each row to turns, losing nothing.

Runs inside the transaction that gives a file its layout. It knows that table and the tables of
turns, nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from session_middleware.history import split
from session_middleware.stores.sql import text_of

_COLUMNS = ["session_id", "conversation_history", "created_at", "updated_at"]
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


def is_seed_table(connection: sqlite3.Connection) -> bool:
    """Whether ``sessions`` is a table of exactly the four columns, with the id as its key."""
    kind = connection.execute("SELECT type FROM sqlite_schema WHERE name = 'sessions'").fetchone()
    columns = connection.execute("PRAGMA table_info(sessions)").fetchall()
    return (
        kind == ("table",)
        and [column[1] for column in columns] == _COLUMNS
        and [column[5] for column in columns] == [1, 0, 0, 0]
    )


def copy_seed_table(connection: sqlite3.Connection) -> None:
    """Store every row's history as turns. A row that is no JSON array is kept as one raw text."""
    usual, connection.text_factory = (
        connection.text_factory,
        bytes,
    )  # a text may be no UTF-8, and still must not be lost
    try:
        rows = connection.execute(
            "SELECT session_id, conversation_history, created_at, updated_at FROM sessions"
        )
        for number, row in enumerate(rows, start=1):
            session_id, history, created_at, updated_at = map(_text, row)
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
            created_at = created_at or now
            updated_at = updated_at or created_at
            key = _new_session(connection, session_id, number, (created_at, updated_at))
            for turn, texts in enumerate(_turns(history or ""), start=1):
                _store_turn(connection, key, turn, texts, (created_at, updated_at))
    finally:
        connection.text_factory = usual


def _text(value: Any) -> str | None:
    """The value as text; bytes that are no UTF-8 as the characters of the same numbers."""
    if value is None:
        return None
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _new_session(
    connection: sqlite3.Connection, session_id: str | None, number: int, times: tuple[str, str]
) -> int:
    # A text key may be NULL in SQLite, and a blob may read like a text that is there already.
    names = [session_id] if session_id is not None else []
    for name in (*names, f"{session_id or 'without id'} (row {number})"):
        row = connection.execute(
            "INSERT INTO session (session_id, created_at, updated_at) VALUES (?, ?, ?) "
            "ON CONFLICT DO NOTHING RETURNING key",
            (name, *times),
        ).fetchone()
        if row is not None:
            return int(row[0])
    raise sqlite3.IntegrityError(f"row {number} of sessions has an id that is there twice")


def _turns(history: str) -> Iterator[list[str]]:
    """The texts of each turn's items, exactly as they stand in the history."""
    try:
        elements = list(_elements(history))
    except (ValueError, RecursionError):
        yield [history]
        return
    texts = iter(text for _, text in elements)
    for turn in split([item for item, _ in elements]):
        yield [next(texts) for _ in turn]


def _elements(history: str) -> Iterator[tuple[Any, str]]:
    """Each element of a JSON array with its own text."""
    at = _skip(history, 0)
    if history[at : at + 1] != "[":
        raise ValueError("no JSON array")
    at = _skip(history, at + 1)
    if history[at : at + 1] == "]":
        at += 1
    else:
        while True:
            value, end = _DECODER.raw_decode(history, at)
            yield value, history[at:end]
            at = _skip(history, end)
            mark, at = history[at : at + 1], at + 1
            if mark == "]":
                break
            if mark != ",":
                raise ValueError("no JSON array")
            at = _skip(history, at)
    if _skip(history, at) != len(history):
        raise ValueError("more than a JSON array")


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _store_turn(
    connection: sqlite3.Connection,
    key: int,
    turn: int,
    texts: list[str],
    times: tuple[str, str],
) -> None:
    started_at, ended_at = map(_moment, times)
    connection.execute(
        "INSERT INTO turn (session, turn, state, started_at, ended_at) "
        "VALUES (?, ?, 'completed', ?, ?)",
        (key, turn, started_at, ended_at),
    )
    connection.execute(
        "INSERT INTO run (session, turn, run, state) VALUES (?, ?, 1, 'completed')", (key, turn)
    )
    connection.executemany(
        "INSERT INTO item (session, turn, run, position, item) VALUES (?, ?, 1, ?, ?)",
        [(key, turn, position, text) for position, text in enumerate(texts)],
    )


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.now(UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return text_of(moment)
