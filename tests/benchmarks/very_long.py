"""Sessions too long to be written through the memory: rows put into its file directly."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from .subjects import one_turn


def fill(path: Path, session_id: str, items: int) -> None:
    """Give the file a session of so many items, four a turn; the file must be ours already."""
    texts = [json.dumps(item, ensure_ascii=False) for item in one_turn(1)]
    turns = items // len(texts)
    with closing(sqlite3.connect(path)) as connection, connection:
        (key,) = connection.execute(
            "INSERT INTO session (session_id, created_at, updated_at)"
            " VALUES (?, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP) RETURNING key",
            (session_id,),
        ).fetchone()
        numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
        connection.execute(
            "INSERT INTO turn (session, turn, state, started_at, ended_at) "
            + numbers
            + "SELECT ?, n, 'completed', '2026-01-01 00:00:00.000000+00:00',"
            " '2026-01-01 00:00:01.000000+00:00' FROM n",
            (turns, key),
        )
        connection.execute(
            "INSERT INTO run (session, turn, run, state) "
            + numbers
            + "SELECT ?, n, 1, 'completed' FROM n",
            (turns, key),
        )
        connection.execute(
            "INSERT INTO item (session, turn, run, position, item) "
            + numbers
            + "SELECT ?, n, 1, text.key, text.value FROM n, json_each(?) AS text ORDER BY n, 4",
            (turns, key, json.dumps(texts)),
        )
