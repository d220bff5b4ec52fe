"""Copies of a session's turns in SQLite: read for an export, written by an import.

Plain functions of a connection with a transaction open.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from session_middleware.stores.managed_store import RunCopy, SessionInfo, TurnCopy
from session_middleware.stores.records import Lease
from session_middleware.stores.rules import lost
from session_middleware.stores.sql import RECORD_COLUMNS, journal_values, record_of, text_of
from session_middleware.stores.sql_copies import (
    PARKED_COLUMNS,
    TURN_COLUMNS,
    parked_of,
    parked_values,
    turn_values,
)
from session_middleware.stores.sqlite.group import Steps
from session_middleware.stores.sqlite.journal import entries_of, entry_rows, keep
from session_middleware.stores.sqlite.session import named

KEY = "SELECT key FROM session WHERE session_id = ?"
_TURNS = f"""
    SELECT {", ".join(RECORD_COLUMNS)}, input_digest
    FROM turn WHERE session = ? AND turn > ? ORDER BY turn LIMIT ?
"""  # noqa: S608 - of names of columns
_RUNS = """
    SELECT turn, run, state, input_digest FROM run
    WHERE session = ? AND turn BETWEEN ? AND ? ORDER BY turn, run
"""
_ITEMS = """
    SELECT turn, run, item FROM item
    WHERE session = ? AND turn BETWEEN ? AND ? ORDER BY turn, run, position
"""
_PARKED = f"""
    SELECT {", ".join(PARKED_COLUMNS)} FROM park
    WHERE session = ? AND turn BETWEEN ? AND ? ORDER BY turn, identity
"""  # noqa: S608 - of names of columns

_FENCE_TO_REPLACE = """
    UPDATE session SET token = NULL, opened = NULL, created_at = ?, updated_at = ?, title = ?,
        metadata = ?
    WHERE session_id = ? AND token = ? RETURNING key
"""
_DROP = tuple(f"DELETE FROM {table} WHERE session = ?" for table in ("item", "run", "turn", "park"))  # noqa: S608
_PUT_TURN = f"""
    INSERT INTO turn (session, {", ".join(TURN_COLUMNS)})
    VALUES (:session, {", ".join(f":{name}" for name in TURN_COLUMNS)})
"""  # noqa: S608 - of names of columns
_PUT_RUN = "INSERT INTO run (session, turn, run, state, input_digest) VALUES (?, ?, ?, ?, ?)"
_PUT_ITEM = "INSERT INTO item (session, turn, run, position, item) VALUES (?, ?, ?, ?, ?)"
_PUT_PARKED = f"""
    INSERT INTO park (session, {", ".join(PARKED_COLUMNS)})
    VALUES (:session, {", ".join(f":{name}" for name in PARKED_COLUMNS)})
"""  # noqa: S608 - as above
_FENCE = "SELECT last FROM fence WHERE key = 1"
_RAISE_FENCE = "UPDATE fence SET last = max(last, ?) WHERE key = 1"


def read_copies(
    connection: sqlite3.Connection, session_id: str, after: int, limit: int
) -> Steps[list[TurnCopy]]:
    """The next turns with a number above ``after``."""
    rows = connection.execute(KEY, (session_id,)).fetchall()
    key = rows[0][0] if rows else 0
    turns = named(connection, _TURNS, (key, after, limit))
    if not turns:
        return _copies(session_id, [], [], [], [], [])
    span = (key, turns[0]["turn"], turns[-1]["turn"])
    return _copies(
        session_id,
        turns,
        named(connection, _RUNS, span),
        connection.execute(_ITEMS, span).fetchall(),
        entry_rows(connection, *span),
        named(connection, _PARKED, span),
    )


def _copies(
    session_id: str,
    turns: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    items: Sequence[tuple[int, int, str]],
    entries: Sequence[Mapping[str, Any]],
    parked: Sequence[Mapping[str, Any]],
) -> Steps[list[TurnCopy]]:
    journal = entries_of(entries)
    texts: dict[tuple[int, int], list[str]] = {}
    for turn, run, text in items:
        texts.setdefault((turn, run), []).append(text)
    copies = []
    for row in turns:
        number = row["turn"]
        own = [
            RunCopy(
                run["run"],
                run["state"],
                run["input_digest"],
                tuple(texts.get((number, run["run"]), ())),
            )
            for run in runs
            if run["turn"] == number
        ]
        copies.append(
            TurnCopy(
                record_of(session_id, row, runs=len(own), items=[]),
                row["input_digest"],
                tuple(own),
                tuple(journal.get(number, ())),
                tuple(parked_of(each) for each in parked if each["turn"] == number),
            )
        )
        yield
    return copies


def write_copies(
    connection: sqlite3.Connection,
    lease: Lease,
    info: SessionInfo,
    turns: Sequence[TurnCopy],
    fence: int,
) -> None:
    """Put these turns in place of the session's, and end the lease."""
    metadata = json.dumps(info.metadata) if info.metadata else None
    dates = (_text(info.created_at), _text(info.updated_at))
    values = (*dates, info.title, metadata, lease.session_id, lease.token)
    rows = connection.execute(_FENCE_TO_REPLACE, values).fetchall()
    if not rows:
        raise lost(lease)
    key = rows[0][0]
    for statement in _DROP:
        connection.execute(statement, (key,))
    for copy in turns:
        _put(connection, key, copy)
    connection.execute(_RAISE_FENCE, (fence,))


def _put(connection: sqlite3.Connection, key: int, copy: TurnCopy) -> None:
    turn = copy.record.turn
    connection.execute(_PUT_TURN, {"session": key, **turn_values(copy)})
    for run in copy.runs:
        connection.execute(_PUT_RUN, (key, turn, run.run, run.state, run.input_digest))
        texts = enumerate(run.texts)
        connection.executemany(_PUT_ITEM, [(key, turn, run.run, at, text) for at, text in texts])
    keep(connection, key, turn, [journal_values(entry) for entry in copy.journal])
    parked = [{"session": key, **parked_values(turn, each)} for each in copy.parked]
    connection.executemany(_PUT_PARKED, parked)


def _text(moment: datetime) -> str:
    """A date of a session as SQLite's own functions write it, finer where it is finer."""
    text = text_of(moment)[:26]
    return text[:23] if text.endswith("000") else text  # one text for one moment


def newest_fence(connection: sqlite3.Connection) -> int:
    """The fence of the newest lease."""
    ((last,),) = connection.execute(_FENCE).fetchall()
    return int(last)
