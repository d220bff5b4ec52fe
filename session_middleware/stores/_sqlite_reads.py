"""What is read, as plain functions of a connection with a transaction open.

Nothing here writes. Every statement finds its rows by key and in their order, so with a window
the cost depends on the window and not on the length of the history.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any

from pydantic_core import from_json

from session_middleware.history import LastItems, LastTurns, Turn
from session_middleware.memory import Item, Loaded, TurnRecord
from session_middleware.stores._base import decode_items, decode_joined
from session_middleware.stores._sqlite_moments import moment_of

_KEY = "SELECT key FROM session WHERE session_id = ?"
_IDS = "SELECT session_id FROM session WHERE created_at IS NOT NULL ORDER BY key"
_EXISTS = "SELECT 1 FROM session WHERE session_id = ? AND created_at IS NOT NULL"

_SEEN = "NOT (turn = :hidden_turn AND run IN (SELECT value FROM json_each(:hidden_runs)))"

TURNS_FROM = f"""
    SELECT turn, item FROM item WHERE session = :key AND turn >= :cut AND {_SEEN}
    ORDER BY turn, run, position
"""  # noqa: S608 - a constant of this module
# One text of all items, in their order. SQLite makes it in one step, without the interpreter, and
# it is decoded in one, which together takes half as long as row by row. The numbers of their turns
# are a text of their own: put between the items they would cost a copy of each.
TURNS_JOINED = f"""
    SELECT json_group_array(turn), CAST(group_concat(item) AS BLOB) FROM ({TURNS_FROM})
"""  # noqa: S608 - as above
ITEMS_JOINED = """
    SELECT count(*), CAST(group_concat(item) AS BLOB) FROM (
        SELECT item FROM item WHERE session = ? ORDER BY turn, run, position
    )
"""
TURN_OF_NTH_NEWEST_ITEM = f"""
    SELECT turn FROM item WHERE session = :key AND {_SEEN}
    ORDER BY turn DESC, run DESC, position DESC LIMIT 1 OFFSET :nth - 1
"""  # noqa: S608 - as above
# One seek for each turn: from a turn's first item straight to the one before it.
NTH_NEWEST_TURN = f"""
    WITH RECURSIVE newest (turn, nth) AS (
        SELECT (SELECT turn FROM item WHERE session = :key AND {_SEEN}
            ORDER BY turn DESC LIMIT 1), 1
        UNION ALL
        SELECT (SELECT turn FROM item WHERE session = :key AND turn < newest.turn AND {_SEEN}
            ORDER BY turn DESC LIMIT 1), nth + 1
        FROM newest WHERE newest.turn IS NOT NULL AND nth < :nth
    )
    SELECT turn FROM newest WHERE nth = :nth
"""  # noqa: S608 - as above
ANY_BEFORE = f"SELECT 1 FROM item WHERE session = :key AND turn < :cut AND {_SEEN} LIMIT 1"  # noqa: S608
SESSION_ITEMS = """
    SELECT item FROM item WHERE session = ?
    ORDER BY turn DESC, run DESC, position DESC
"""
TURN_ITEMS = """
    SELECT item FROM item WHERE session = ? AND turn = ? ORDER BY run DESC, position DESC
"""
RECORDS = """
    SELECT turn, state, started_at, ended_at, agent, error_type, idempotency_key, sdk_trace_ids,
        otel_trace_id, usage, output_text, history_digest
    FROM turn WHERE session = ? AND turn < ? ORDER BY turn DESC LIMIT ?
"""
RECORD_ITEMS = """
    SELECT turn, item FROM item WHERE session = ? AND turn BETWEEN ? AND ?
    ORDER BY turn, run, position
"""
RECORD_RUNS = """
    SELECT turn, count(*) FROM run WHERE session = ? AND turn BETWEEN ? AND ? GROUP BY turn
"""

_EVERY_TURN = 2**62


def session_ids(connection: sqlite3.Connection) -> list[str]:
    """The ids of all sessions that something was stored or saved in, oldest first."""
    return [session_id for (session_id,) in connection.execute(_IDS)]


def exists(connection: sqlite3.Connection, session_id: str) -> bool:
    """Whether something was stored or saved in the session."""
    return connection.execute(_EXISTS, (session_id,)).fetchone() is not None


def load_turns(
    connection: sqlite3.Connection,
    session_id: str,
    newest: LastTurns | LastItems | None,
    hide: tuple[int, Collection[int]] | None,
    texts: bool,
) -> Loaded:
    """The history in whole turns, no more of it than the window keeps."""
    key = _key(connection, session_id)
    return Loaded([]) if key is None else load_turns_of(connection, key, newest, hide, texts)


def load_turns_of(
    connection: sqlite3.Connection,
    key: int,
    newest: LastTurns | LastItems | None,
    hide: tuple[int, Collection[int]] | None,
    texts: bool,
) -> Loaded:
    """The same of the session with this key."""
    hidden_turn, hidden_runs = hide or (-1, ())
    named: dict[str, Any] = {
        "key": key,
        "hidden_turn": hidden_turn,
        "hidden_runs": json.dumps(list(hidden_runs)),
    }
    cut = 0 if newest is None else _first_turn(connection, named, newest)
    turns, corrupt = _turns_from(connection, {**named, "cut": cut}, texts)
    older = None if cut == 0 else connection.execute(ANY_BEFORE, {**named, "cut": cut}).fetchone()
    return Loaded(turns, older is None, corrupt)


def _first_turn(
    connection: sqlite3.Connection, named: dict[str, Any], window: LastTurns | LastItems
) -> int:
    """The number of the first turn that the window keeps."""

    def turn_of(statement: str, nth: int) -> int | None:
        row = connection.execute(statement, {**named, "nth": nth}).fetchone()
        return None if row is None else row[0]

    if window.n == 0:
        return _EVERY_TURN
    if isinstance(window, LastTurns):
        oldest = turn_of(NTH_NEWEST_TURN, window.n)
        return 0 if oldest is None else oldest - oldest % window.step
    beyond = turn_of(TURN_OF_NTH_NEWEST_ITEM, window.n + 1)
    if beyond is None:  # there are not so many
        return 0
    newest = turn_of(TURN_OF_NTH_NEWEST_ITEM, 1)
    return beyond if beyond == newest else beyond + 1  # the newest turn is never cut


def _turns_from(
    connection: sqlite3.Connection, named: dict[str, Any], texts: bool
) -> tuple[list[Turn], int]:
    """The turns from ``cut`` on, and how many items cannot be read."""
    turns = None if texts else _turns_at_once(connection, named)
    if turns is not None:
        return turns, 0
    return _turns_of(connection.execute(TURNS_FROM, named).fetchall(), texts)


def _turns_at_once(connection: sqlite3.Connection, named: dict[str, Any]) -> list[Turn] | None:
    """The turns from ``cut`` on; None where each item must be looked at for itself."""
    try:
        numbers, text = connection.execute(TURNS_JOINED, named).fetchone()
    except sqlite3.DataError:  # longer than SQLite makes a text
        return None
    turn_of_each: list[int] = from_json(numbers)
    items = decode_joined(text, len(turn_of_each))
    return None if items is None else _in_turns(turn_of_each, items)


def _items_at_once(connection: sqlite3.Connection, key: int) -> list[Item] | None:
    """All items of the session; None where each must be looked at for itself."""
    try:
        count, text = connection.execute(ITEMS_JOINED, (key,)).fetchone()
    except sqlite3.DataError:  # as above
        return None
    return decode_joined(text, count)


def _turns_of(rows: Sequence[tuple[int, str]], texts: bool) -> tuple[list[Turn], int]:
    """The turns of these rows, and how many items cannot be read."""
    items, corrupt = decode_items([text for _, text in rows])
    if corrupt:
        rows = [row for row, item in zip(rows, items, strict=True) if item is not None]
    readable = [item for item in items if item is not None]
    kept = [text for _, text in rows] if texts else None
    return _in_turns([turn for turn, _ in rows], readable, kept), corrupt


def _in_turns(
    turn_of_each: list[int], items: list[Item], texts: list[str] | None = None
) -> list[Turn]:
    """These items, which are in the order of their turns, turn by turn."""
    turns, first = [], 0
    while first < len(items):
        turn = turn_of_each[first]
        after = bisect_right(turn_of_each, turn, first)
        own_texts = None if texts is None else texts[first:after]
        turns.append(Turn(turn, items[first:after], own_texts))
        first = after
    return turns


def load_items(
    connection: sqlite3.Connection, session_id: str, turn: int | None, limit: int | None
) -> list[Item]:
    """The newest ``limit`` items that can be read, of the session or of one turn."""
    key = _key(connection, session_id)
    if key is None or limit == 0:
        return []
    wanted = -1 if limit is None or limit < 0 else limit
    if turn is None and wanted < 0 and (items := _items_at_once(connection, key)) is not None:
        return items
    if turn is None:
        rows = connection.execute(SESSION_ITEMS, (key,))
    else:
        rows = connection.execute(TURN_ITEMS, (key, turn))
    newest_first: list[Item] = []
    while found := rows.fetchall() if wanted < 0 else rows.fetchmany(wanted):
        decoded, corrupt = decode_items([text for (text,) in found])
        newest_first += [item for item in decoded if item is not None]
        if wanted < 0 or not corrupt:
            break
        wanted = corrupt  # as many more, in place of those that cannot be read
    rows.close()
    return newest_first[::-1]


def records(
    connection: sqlite3.Connection, session_id: str, limit: int | None, before: int | None
) -> list[TurnRecord]:
    """The session's turns, newest first."""
    key = _key(connection, session_id)
    if key is None:
        return []
    most = -1 if limit is None else max(limit, 0)
    rows = connection.execute(
        RECORDS, (key, _EVERY_TURN if before is None else before, most)
    ).fetchall()
    if not rows:
        return []
    page = (key, rows[-1][0], rows[0][0])
    runs = dict(connection.execute(RECORD_RUNS, page).fetchall())
    stored, _ = _turns_of(connection.execute(RECORD_ITEMS, page).fetchall(), False)
    items = {turn.turn: turn.items for turn in stored}
    return [_record(session_id, row, runs, items) for row in rows]


def _record(
    session_id: str, row: Sequence[Any], runs: dict[int, int], items: dict[int, list[Item]]
) -> TurnRecord:
    number, state, started_at, ended_at, agent, error_type, key, traces, trace, usage = row[:10]
    own = items.get(number, [])
    return TurnRecord(
        session_id=session_id,
        turn=number,
        state=state,
        started_at=moment_of(started_at),
        ended_at=None if ended_at is None else moment_of(ended_at),
        agent=agent,
        error_type=error_type,
        item_count=len(own),
        runs=runs.get(number, 0),
        idempotency_key=key,
        sdk_trace_ids=tuple(json.loads(traces)),
        otel_trace_id=trace,
        usage=None if usage is None else json.loads(usage),
        output_text=row[10],
        history_digest=row[11],
        items=own,
    )


def _key(connection: sqlite3.Connection, session_id: str) -> int | None:
    row = connection.execute(_KEY, (session_id,)).fetchone()
    return None if row is None else int(row[0])
