"""The writes of turns, as plain functions of a connection with a transaction open.

Each function is one member of a group, which undoes it when it raises; it may be run again from
the beginning when its transaction had to be given up. What it stores was encoded before, since
other processes wait for the file meanwhile. A fence is an UPDATE of the session's row
under the token, and comes first; no row means that the turn is lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from session_middleware.stores.records import Lease, RunItems
from session_middleware.stores.rules import lost
from session_middleware.stores.sql import END_COLUMNS, joined_ids, text_of
from session_middleware.stores.sqlite import journal as calls
from session_middleware.stores.sqlite.driver import OtherItems
from session_middleware.stores.sqlite.journal import Ending, JournalRows
from session_middleware.stores.sqlite.reads import NEWEST_ITEM, StoredItem

# A session that becomes visible by the writes of a lease is ``opened`` by its token.
NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
"""The moment that the storage tells of a session's activity, to the millisecond."""

_FENCE = f"""
    UPDATE session SET opened = CASE WHEN created_at IS NULL THEN token ELSE opened END,
        created_at = coalesce(created_at, {NOW}), updated_at = {NOW}
    WHERE session_id = ? AND token = ? RETURNING key
"""  # noqa: S608 - of a constant of this module
_FENCE_ONLY = "UPDATE session SET token = token WHERE session_id = ? AND token = ? RETURNING key"
_FENCE_TO_END = "UPDATE session SET token = NULL WHERE session_id = ? AND token = ? RETURNING key"
_FENCE_AND_END = f"""
    UPDATE session SET token = NULL,
        opened = CASE WHEN created_at IS NULL THEN token ELSE opened END,
        created_at = coalesce(created_at, {NOW}), updated_at = {NOW}
    WHERE session_id = ? AND token = ? RETURNING key
"""  # noqa: S608 - of a constant of this module
_FENCE_TO_EMPTY = """
    UPDATE session SET created_at = NULL, title = NULL, metadata = NULL
    WHERE session_id = ? AND token = ? RETURNING key
"""
_OPEN_SESSION = f"""
    INSERT INTO session (session_id, created_at, updated_at)
    VALUES (?, {NOW}, {NOW})
    ON CONFLICT (session_id) DO UPDATE SET opened = NULL,
        created_at = coalesce(created_at, {NOW}), updated_at = {NOW}
    RETURNING key
"""  # noqa: S608 - of a constant of this module
_CEASE = """
    UPDATE session SET created_at = NULL, opened = NULL, title = NULL, metadata = NULL
    WHERE key = ?1 AND opened = ?2 AND NOT EXISTS (SELECT 1 FROM item WHERE session = ?1)
"""
_TOUCH = f"UPDATE session SET updated_at = {NOW} WHERE key = ?"  # noqa: S608
_LABELS = "SELECT created_at, title, metadata FROM session WHERE session_id = ?"
_LABEL_AGAIN = """
    UPDATE session SET created_at = coalesce(?, created_at), title = ?, metadata = ? WHERE key = ?
"""
_DELETE_SESSION = "DELETE FROM session WHERE session_id = ?"
_PAST_TURN = """
    INSERT INTO turn (session, turn, state, started_at, ended_at) VALUES (?, ?, 'completed', ?, ?)
"""
# A turn is not over as long as another of its runs waits for approval.
_WAITS = """
    :state = 'completed' AND EXISTS (
        SELECT 1 FROM park WHERE session = :session AND turn = :turn AND open
    )
"""
_AT_END = {
    "state": f"CASE WHEN {_WAITS} THEN 'awaiting_approval' ELSE :state END",
    "output_text": f"CASE WHEN {_WAITS} THEN NULL ELSE :output_text END",
}
_END = f"""
    UPDATE turn SET {", ".join(f"{name} = {_AT_END.get(name, f':{name}')}" for name in END_COLUMNS)}
    WHERE session = :session AND turn = :turn
"""  # noqa: S608 - of constants of this module and names of columns
NO_TRACES = "[]"
"""The column ``sdk_trace_ids`` of a turn that has not ended before."""
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
_DROP_ANSWER = """
    UPDATE turn SET output_text = NULL
    WHERE session = ? AND turn = ? AND output_text IS NOT NULL
"""
_DROP_ITEM = "DELETE FROM item WHERE session = ? AND turn = ? AND run = ? AND position = ?"
_DROP_RUN_ITEMS = "DELETE FROM item WHERE session = ? AND turn = ? AND run = ?"
_DROP_TURN_ITEMS = "DELETE FROM item WHERE session = ? AND turn = ?"
_DROP_TURN = (
    "DELETE FROM turn WHERE session = ? AND turn = ?",
    "DELETE FROM run WHERE session = ? AND turn = ?",
)
_EMPTY_SESSION = (
    "DELETE FROM item WHERE session = ?1",
    "DELETE FROM park WHERE session = ?1",
    "DELETE FROM call WHERE session = ?1 AND turn = ?2",
    "DELETE FROM run WHERE session = ?1 AND turn <> ?2",
    "DELETE FROM turn WHERE session = ?1 AND turn <> ?2",
)
_NEWEST_TURN = "SELECT max(turn) FROM turn WHERE session = ?"


# --- writing under a lease -------------------------------------------------------------------


def _fence(connection: sqlite3.Connection, statement: str, lease: Lease) -> int:
    """Run the fence ``statement``; returns the key of the session's row."""
    rows = connection.execute(statement, (lease.session_id, lease.token)).fetchall()
    if not rows:
        raise lost(lease)
    return int(rows[0][0])


def write(
    connection: sqlite3.Connection,
    lease: Lease,
    items: Sequence[RunItems],
    ending: Ending | None,
) -> None:
    """Store the items, and the turn's end if it is given.

    Storing the same at the same place once more changes nothing. A session that was opened by
    this lease is not visible any more when all of its items are withdrawn or discarded.
    """
    how = None if ending is None else ending.how
    words = how is not None and how.output_text is not None
    shows = words or any(new.texts for new in items)
    if how is None:
        key = _fence(connection, _FENCE if shows else _FENCE_ONLY, lease)
    else:
        key = _fence(connection, _FENCE_AND_END if shows else _FENCE_TO_END, lease)
    states: Mapping[int, str] = {} if how is None else how.runs
    for new in items:
        store(connection, key, lease.turn, new, states.get(new.run, "running"))
    if ending is not None:
        others = states.keys() - {new.run for new in items}
        if others:
            ended = [(key, lease.turn, run, states[run]) for run in others]
            connection.executemany(_RUN_STATE, ended)
        _end(connection, key, lease.turn, ending)
    removes = any(new.withdraws for new in items) or (how is not None and how.discard)
    if removes and not words:
        connection.execute(_CEASE, (key, lease.token))


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
        raise OtherItems(
            f"run {new.run} of turn {turn} has other items from {new.position} to {last}"
        )


def retry(connection: sqlite3.Connection, lease: Lease, failed: int, run: int, kept: int) -> None:
    """Let ``run`` take over the first ``kept`` items of ``failed``, and drop the others."""
    key = _fence(connection, _FENCE_ONLY, lease)
    turn = lease.turn
    row = connection.execute(_RUN_DIGEST, (key, turn, failed)).fetchone()
    if row is None:
        return
    texts = [text for (text,) in connection.execute(_RUN_ITEMS, (key, turn, failed))]
    connection.execute(_DROP_RUN_ITEMS, (key, turn, failed))
    connection.execute(_RUN_STATE, (key, turn, failed, "replaced"))
    connection.execute(_RUN, (key, turn, run, "running", row[0]))
    connection.executemany(
        _ITEM, [(key, turn, run, at, text) for at, text in enumerate(texts[:kept])]
    )


def journal(connection: sqlite3.Connection, lease: Lease, entries: JournalRows) -> None:
    """Keep these entries of the turn's journal."""
    calls.keep(connection, _fence(connection, _FENCE_ONLY, lease), lease.turn, entries)


def _end(connection: sqlite3.Connection, key: int, turn: int, ending: Ending) -> None:
    """Write the end of the turn, whose lease has ended already."""
    if ending.how.unlisted:
        for statement in _DROP_TURN:
            connection.execute(statement, (key, turn))
        return
    if ending.how.discard:
        connection.execute(_DROP_TURN_ITEMS, (key, turn))
    calls.end(connection, key, turn, ending)
    values = {**ending.values, "session": key, "turn": turn}
    (earlier,) = _one(connection, _TRACES, (key, turn))
    if earlier != NO_TRACES:  # it was parked
        values["sdk_trace_ids"] = joined_ids(earlier, ending.how.sdk_trace_ids)
    connection.execute(_END, values)


# --- writing without one ---------------------------------------------------------------------


def pop(
    connection: sqlite3.Connection, session_id: str, lease: Lease | None, newest: StoredItem
) -> bool:
    """Remove this item; False where it is no longer the newest that can be read.

    The answer of its turn goes with it: the last thing that a turn stores is its answer.
    """
    if lease is not None:
        _fence(connection, _FENCE_ONLY, lease)
    rows = connection.execute(NEWEST_ITEM, (session_id, newest.unreadable)).fetchall()
    if rows != [(*newest.place, newest.text)]:
        return False
    key, turn, run, position = newest.place
    connection.execute(_DROP_ITEM, (key, turn, run, position))
    connection.execute(_DROP_ANSWER, (key, turn))
    connection.execute(_TOUCH, (key,))
    return True


def append_turn(connection: sqlite3.Connection, session_id: str, texts: Sequence[str]) -> None:
    """Store the texts as a completed turn of their own."""
    (key,) = _one(connection, _OPEN_SESSION, (session_id,))
    (newest,) = _one(connection, _NEWEST_TURN, (key,))
    _store_turns(connection, key, (newest or 0) + 1, [texts])


def replace(
    connection: sqlite3.Connection,
    session_id: str,
    turns: Sequence[Sequence[str]],
    lease: Lease | None,
) -> None:
    """Put these turns in place of the history."""
    labels = connection.execute(_LABELS, (session_id,)).fetchone()
    forget(connection, session_id, lease)
    if lease is None:
        (key,) = _one(connection, _OPEN_SESSION, (session_id,))
    else:
        key = _fence(connection, _FENCE, lease)
    if labels is not None:
        connection.execute(_LABEL_AGAIN, (*labels, key))
    if lease is None:
        _store_turns(connection, key, 1, turns)
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


def _store_turns(
    connection: sqlite3.Connection, key: int, first: int, turns: Sequence[Sequence[str]]
) -> None:
    """Store these completed turns, from the number ``first`` on."""
    now = text_of(datetime.now(UTC))
    numbered = list(enumerate(turns, start=first))
    connection.executemany(_PAST_TURN, [(key, turn, now, now) for turn, _ in numbered])
    connection.executemany(_RUN, [(key, turn, 1, "completed", None) for turn, _ in numbered])
    connection.executemany(
        _ITEM,
        [(key, turn, 1, at, text) for turn, texts in numbered for at, text in enumerate(texts)],
    )


def _one(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...]
) -> tuple[Any, ...]:
    """The single row of the statement, which is read to its end as RETURNING asks for."""
    row: tuple[Any, ...]
    (row,) = connection.execute(statement, parameters).fetchall()
    return row
