"""What turns write, as plain functions of a connection with a transaction open.

Each function is one member of a group, which undoes it when it raises; it may be run again from
the beginning when its transaction had to be given up. A fence is an UPDATE of the session's row
under the token, and comes first; no row means that the turn is lost.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from session_middleware.errors import TurnLost
from session_middleware.history import up_to_last_output
from session_middleware.memory import Item, Lease, RunItems, TurnEnd
from session_middleware.stores._base import decode_items
from session_middleware.stores._sqlite_moments import text_of

_FENCE = """
    UPDATE session SET created_at = coalesce(created_at, CURRENT_TIMESTAMP),
        updated_at = CURRENT_TIMESTAMP
    WHERE session_id = ? AND token = ? RETURNING key
"""
_FENCE_ONLY = "UPDATE session SET token = token WHERE session_id = ? AND token = ? RETURNING key"
_FENCE_TO_END = "UPDATE session SET token = NULL WHERE session_id = ? AND token = ? RETURNING key"
_FENCE_AND_END = """
    UPDATE session SET token = NULL, created_at = coalesce(created_at, CURRENT_TIMESTAMP),
        updated_at = CURRENT_TIMESTAMP
    WHERE session_id = ? AND token = ? RETURNING key
"""
_FENCE_TO_EMPTY = """
    UPDATE session SET created_at = NULL WHERE session_id = ? AND token = ? RETURNING key
"""
_OPEN_SESSION = """
    INSERT INTO session (session_id, created_at, updated_at)
    VALUES (?, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)
    ON CONFLICT (session_id) DO UPDATE SET
        created_at = coalesce(created_at, CURRENT_TIMESTAMP), updated_at = CURRENT_TIMESTAMP
    RETURNING key
"""
_CEASE = """
    UPDATE session SET created_at = NULL
    WHERE key = ?1 AND NOT EXISTS (SELECT 1 FROM item WHERE session = ?1)
"""
_TOUCH = "UPDATE session SET updated_at = CURRENT_TIMESTAMP WHERE key = ?"
_DELETE_SESSION = "DELETE FROM session WHERE session_id = ?"
_PARK = """
    INSERT INTO park (identity, session, turn, open) VALUES (?, ?, ?, 1)
    ON CONFLICT (identity, session) DO UPDATE SET turn = excluded.turn, open = 1
"""
_PAST_TURN = """
    INSERT INTO turn (session, turn, state, started_at, ended_at) VALUES (?, ?, 'completed', ?, ?)
"""
# A turn is not over as long as another of its runs waits for approval.
_WAITS = """
    ?3 = 'completed' AND EXISTS (SELECT 1 FROM park WHERE session = ?1 AND turn = ?2 AND open)
"""
_END = f"""
    UPDATE turn SET state = CASE WHEN {_WAITS} THEN 'awaiting_approval' ELSE ?3 END,
        output_text = CASE WHEN {_WAITS} THEN NULL ELSE ?4 END,
        ended_at = ?5, agent = ?6, error_type = ?7, otel_trace_id = ?8, usage = ?9,
        history_digest = ?10, sdk_trace_ids = coalesce(?11, sdk_trace_ids)
    WHERE session = ?1 AND turn = ?2
"""  # noqa: S608 - of constants of this module
_TRACES = "SELECT sdk_trace_ids FROM turn WHERE session = ? AND turn = ?"
_RUN = """
    INSERT INTO run (session, turn, run, state, input_digest) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (session, turn, run) DO UPDATE SET
        state = excluded.state, input_digest = coalesce(input_digest, excluded.input_digest)
"""
_RUN_STATE = """
    INSERT INTO run (session, turn, run, state) VALUES (?, ?, ?, ?)
    ON CONFLICT (session, turn, run) DO UPDATE SET state = excluded.state
"""
_RUN_DIGEST = "SELECT input_digest FROM run WHERE session = ? AND turn = ? AND run = ?"
_ITEM = """
    INSERT INTO item (session, turn, run, position, item) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING
"""
_STORED = """
    SELECT position, item FROM item
    WHERE session = ? AND turn = ? AND run = ? AND position BETWEEN ? AND ? ORDER BY position
"""
_RUN_ITEMS = "SELECT item FROM item WHERE session = ? AND turn = ? AND run = ? ORDER BY position"
_NEWEST_ITEMS = """
    SELECT session, turn, run, position, item FROM item
    WHERE session = (SELECT key FROM session WHERE session_id = ?)
    ORDER BY turn DESC, run DESC, position DESC
"""
_DROP_ITEM = "DELETE FROM item WHERE session = ? AND turn = ? AND run = ? AND position = ?"
_DROP_RUN_ITEMS = "DELETE FROM item WHERE session = ? AND turn = ? AND run = ?"
_DROP_TURN_ITEMS = "DELETE FROM item WHERE session = ? AND turn = ?"
_EMPTY_SESSION = (
    "DELETE FROM item WHERE session = ?1",
    "DELETE FROM park WHERE session = ?1",
    "DELETE FROM run WHERE session = ?1 AND turn <> ?2",
    "DELETE FROM turn WHERE session = ?1 AND turn <> ?2",
)
_NEWEST_TURN = "SELECT max(turn) FROM turn WHERE session = ?"


# --- writing under a lease -------------------------------------------------------------------


def _fence(connection: sqlite3.Connection, statement: str, lease: Lease) -> int:
    """Run the fence ``statement``; returns the key of the session's row."""
    rows = connection.execute(statement, (lease.session_id, lease.token)).fetchall()
    if not rows:
        raise TurnLost(
            f"turn {lease.turn} no longer holds session {lease.session_id!r}: it was taken "
            "over, cleared, saved over or released, and nothing was written. Start a new turn"
        )
    return int(rows[0][0])


def write(
    connection: sqlite3.Connection,
    lease: Lease,
    items: Sequence[RunItems],
    how: TurnEnd | None,
    opened: bool = False,
) -> None:
    """Store the items, and the turn's end if it is given.

    Storing the same at the same place once more changes nothing.

    Args:
        opened: the session exists only by what was stored when it was taken; with that withdrawn
            it does not any more.
    """
    something = any(new.texts for new in items)
    if how is None:
        key = _fence(connection, _FENCE if something else _FENCE_ONLY, lease)
    else:
        key = _fence(connection, _FENCE_AND_END if something else _FENCE_TO_END, lease)
    states: Mapping[int, str] = {} if how is None else how.runs
    for new in items:
        store(connection, key, lease.turn, new, states.get(new.run, "running"))
    if opened and any(new.withdraws for new in items):
        connection.execute(_CEASE, (key,))
    if how is None:
        return
    others = states.keys() - {new.run for new in items}
    if others:
        connection.executemany(_RUN_STATE, [(key, lease.turn, run, states[run]) for run in others])
    _end(connection, key, lease.turn, how)


def store(
    connection: sqlite3.Connection, key: int, turn: int, new: RunItems, state: str = "running"
) -> None:
    """Store these items of a run, which is in that state; the fence is the caller's."""
    connection.execute(_RUN, (key, turn, new.run, state, new.input_digest))
    if new.instead:
        connection.execute(_DROP_RUN_ITEMS, (key, turn, new.run))
    rows = [(key, turn, new.run, at, text) for at, text in enumerate(new.texts, new.position)]
    if connection.executemany(_ITEM, rows).rowcount == len(rows) or not rows:
        return
    last = rows[-1][3]
    stored = connection.execute(_STORED, (key, turn, new.run, new.position, last)).fetchall()
    if [text for _, text in stored] != new.texts:
        raise ValueError(
            f"run {new.run} of turn {turn} has other items from {new.position} to {last}"
        )


def retry(connection: sqlite3.Connection, lease: Lease, failed: int, run: int) -> int:
    """Let ``run`` go on after the last tool output of ``failed``; returns its items."""
    key = _fence(connection, _FENCE_ONLY, lease)
    turn = lease.turn
    row = connection.execute(_RUN_DIGEST, (key, turn, failed)).fetchone()
    if row is None:
        return 0
    texts = [text for (text,) in connection.execute(_RUN_ITEMS, (key, turn, failed))]
    decoded = decode_items(texts)[0]
    kept = up_to_last_output(decoded)
    connection.execute(_DROP_RUN_ITEMS, (key, turn, failed))
    connection.execute(_RUN_STATE, (key, turn, failed, "replaced"))
    connection.execute(_RUN, (key, turn, run, "running", row[0]))
    connection.executemany(
        _ITEM, [(key, turn, run, at, text) for at, text in enumerate(texts[:kept])]
    )
    return kept


def _end(connection: sqlite3.Connection, key: int, turn: int, how: TurnEnd) -> None:
    """Write how the turn, whose session is let go already, ended."""
    if how.discard:
        connection.execute(_DROP_TURN_ITEMS, (key, turn))
    if how.park:
        connection.executemany(_PARK, [(identity, key, turn) for identity in how.park])
    traces = None
    if how.sdk_trace_ids:
        (earlier,) = _one(connection, _TRACES, (key, turn))
        traces = json.dumps(list(dict.fromkeys((*json.loads(earlier), *how.sdk_trace_ids))))
    usage = None if how.usage is None else json.dumps(how.usage)
    connection.execute(
        _END,
        (
            key,
            turn,
            how.state,
            how.output_text,
            text_of(how.ended_at),
            how.agent,
            how.error_type,
            how.otel_trace_id,
            usage,
            how.history_digest,
            traces,
        ),
    )


# --- writing without one ---------------------------------------------------------------------


def pop(connection: sqlite3.Connection, session_id: str, lease: Lease | None) -> Item | None:
    """Remove the newest item that can be read."""
    if lease is not None:
        _fence(connection, _FENCE_ONLY, lease)
    newest = connection.execute(_NEWEST_ITEMS, (session_id,))
    for key, turn, run, position, text in newest:
        (item,), _ = decode_items([text])
        if item is not None:
            newest.close()
            connection.execute(_DROP_ITEM, (key, turn, run, position))
            connection.execute(_TOUCH, (key,))
            return item
    return None


def append_turn(connection: sqlite3.Connection, session_id: str, texts: Sequence[str]) -> None:
    """Store the texts as a completed turn of their own."""
    (key,) = _one(connection, _OPEN_SESSION, (session_id,))
    (newest,) = _one(connection, _NEWEST_TURN, (key,))
    _store_turn(connection, key, (newest or 0) + 1, texts)


def replace(
    connection: sqlite3.Connection,
    session_id: str,
    turns: Sequence[Sequence[str]],
    lease: Lease | None,
) -> None:
    """Put these turns in place of the history."""
    forget(connection, session_id, lease)
    (key,) = _one(connection, _OPEN_SESSION, (session_id,))
    if lease is None:
        for turn, texts in enumerate(turns, start=1):
            _store_turn(connection, key, turn, texts)
        return
    everything = [text for texts in turns for text in texts]
    connection.execute(_RUN, (key, lease.turn, 0, "running", None))
    connection.executemany(
        _ITEM, [(key, lease.turn, 0, at, text) for at, text in enumerate(everything)]
    )


def forget(connection: sqlite3.Connection, session_id: str, lease: Lease | None) -> None:
    """Remove the session; with a lease, all but its turn, which goes on empty."""
    if lease is None:
        connection.execute(_DELETE_SESSION, (session_id,))
        return
    key = _fence(connection, _FENCE_TO_EMPTY, lease)
    for statement in _EMPTY_SESSION:
        connection.execute(statement, (key, lease.turn)[: statement.count("?")])


def _store_turn(connection: sqlite3.Connection, key: int, turn: int, texts: Sequence[str]) -> None:
    now = text_of(datetime.now(UTC))
    connection.execute(_PAST_TURN, (key, turn, now, now))
    connection.execute(_RUN, (key, turn, 1, "completed", None))
    connection.executemany(_ITEM, [(key, turn, 1, at, text) for at, text in enumerate(texts)])


def _one(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...]
) -> tuple[Any, ...]:
    """The single row of the statement, which is read to its end as RETURNING asks for."""
    row: tuple[Any, ...]
    (row,) = connection.execute(statement, parameters).fetchall()
    return row
