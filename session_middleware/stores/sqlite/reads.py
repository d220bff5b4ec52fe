"""The reads of a memory, as plain functions of a connection with a transaction open.

Items are decoded when the transaction is over: a function that reads some returns the steps to
its result. Nothing here writes. Every statement finds its rows by key and in their order, so with
a window the cost depends on the window and not on the length of the history.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic_core import from_json

from session_middleware.history import LastItems, LastTurns, Turn, behind_compaction
from session_middleware.stores.items import COMPACTION_MARK
from session_middleware.stores.numbers import MOST, cut_window
from session_middleware.stores.records import Item, Lease, Loaded, TurnRecord
from session_middleware.stores.rules import told_state
from session_middleware.stores.sql import RECORD_COLUMNS, moment_of, record_of
from session_middleware.stores.sqlite import clock
from session_middleware.stores.sqlite.decoding import (
    PIECE,
    decode_each,
    decode_rows,
    decode_text,
    in_turns,
)
from session_middleware.stores.sqlite.group import Steps
from session_middleware.stores.sqlite.journal import entries_of, entry_rows
from session_middleware.stores.sqlite.session import SessionRow, named

T = TypeVar("T")

_Rows = list[tuple[int, str]]
"""The texts of items, each with the number of its turn."""

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
TURNS_LENGTHS = f"""
    SELECT json_group_array(length(CAST(item AS BLOB))) FROM ({TURNS_FROM})
"""  # noqa: S608 - as above
ITEMS_FROM = "SELECT item FROM item WHERE session = :key ORDER BY turn, run, position"
ITEMS_JOINED = f"""
    SELECT count(*), CAST(group_concat(item) AS BLOB) FROM ({ITEMS_FROM})
"""  # noqa: S608 - as above
ITEMS_LENGTHS = f"""
    SELECT json_group_array(length(CAST(item AS BLOB))) FROM ({ITEMS_FROM})
"""  # noqa: S608 - as above
TURN_OF_NTH_NEWEST_ITEM = f"""
    SELECT turn FROM item WHERE session = :key AND {_SEEN}
    ORDER BY turn DESC, run DESC, position DESC LIMIT 1 OFFSET :nth - 1
"""  # noqa: S608 - as above
# One seek for each turn: from a turn's first item straight to the one before it.
COMPACTED_BEFORE = f"""
    SELECT DISTINCT turn FROM item INDEXED BY item_compaction
    WHERE session = :key AND turn < :cut AND instr(item, '{COMPACTION_MARK}') AND {_SEEN}
    ORDER BY turn DESC LIMIT 3
"""  # noqa: S608 - as above
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
RUN_ITEMS = """
    SELECT item FROM item
    WHERE session = (SELECT key FROM session WHERE session_id = ?) AND turn = ? AND run = ?
    ORDER BY position
"""
NEWEST_ITEM = """
    SELECT session, turn, run, position, item FROM item
    WHERE session = (SELECT key FROM session WHERE session_id = ?)
    ORDER BY turn DESC, run DESC, position DESC LIMIT 1 OFFSET ?
"""
RECORDS = f"""
    SELECT {", ".join(RECORD_COLUMNS)}
    FROM turn WHERE session = ? AND turn < ? ORDER BY turn DESC LIMIT ?
"""  # noqa: S608 - of names of columns
RECORD_ITEMS = """
    SELECT turn, item FROM item WHERE session = ? AND turn BETWEEN ? AND ?
    ORDER BY turn, run, position
"""
RECORD_RUNS = """
    SELECT turn, count(*) FROM run WHERE session = ? AND turn BETWEEN ? AND ? GROUP BY turn
"""

PARKED = "SELECT count(*), min(ended_at) FROM turn WHERE state = 'awaiting_approval'"
FILE_BYTES = """
    SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()
"""

_EVERY_TURN = MOST + 1


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
    closely: bool = False,
) -> Steps[Loaded | None]:
    """The history in whole turns, no more of it than the window keeps.

    None where some item cannot be read; it is left out ``closely``, and counted.
    """
    key = _key(connection, session_id)
    if key is None:
        return at_once(Loaded([]))
    return load_turns_of(connection, key, newest, hide, texts, closely)


def load_turns_of(
    connection: sqlite3.Connection,
    key: int,
    newest: LastTurns | LastItems | None,
    hide: tuple[int, Collection[int]] | None,
    texts: bool,
    closely: bool = False,
) -> Steps[Loaded | None]:
    """The same of the session with this key."""
    newest = cut_window(newest)
    hidden_turn, hidden_runs = hide or (-1, ())
    named: dict[str, Any] = {
        "key": key,
        "hidden_turn": hidden_turn,
        "hidden_runs": json.dumps(list(hidden_runs)),
    }
    cut = 0 if newest is None else _first_turn(connection, named, newest)
    named["cut"] = cut
    complete = cut == 0 or connection.execute(ANY_BEFORE, named).fetchone() is None
    older = [] if complete else _compacted_before(connection, named)
    joined = None if texts or closely else _joined(connection, TURNS_JOINED, TURNS_LENGTHS, named)
    if joined is not None:
        return _loaded(*joined, complete, older)
    rows = connection.execute(TURNS_FROM, named).fetchall()
    return _loaded_closely(rows, texts, complete, older)


def _joined(
    connection: sqlite3.Connection, statement: str, lengths: str, named: Mapping[str, Any]
) -> tuple[Any, bytes | None, str | None] | None:
    """A number or numbers, the items as one text, and their lengths where it is a long one.

    None where the text is longer than SQLite makes one.
    """
    try:
        numbers, text = connection.execute(statement, named).fetchone()
    except sqlite3.DataError:
        return None
    if text is None or len(text) <= PIECE:
        return numbers, text, None
    return numbers, text, connection.execute(lengths, named).fetchone()[0]


def _loaded(
    numbers: str, text: bytes | None, lengths: str | None, complete: bool, older: _Rows
) -> Steps[Loaded | None]:
    turn_of_each: list[int] = from_json(numbers)
    items = yield from decode_text(text, len(turn_of_each), lengths)
    if items is None:
        return None
    turns = yield from _with_compaction(in_turns(turn_of_each, items), older)
    return Loaded(turns, complete, 0)


def _loaded_closely(rows: _Rows, texts: bool, complete: bool, older: _Rows) -> Steps[Loaded | None]:
    turns, corrupt = yield from decode_rows(rows, texts)
    turns = yield from _with_compaction(turns, older)
    return Loaded(turns, complete, corrupt)


def at_once(result: T) -> Steps[T]:
    """What needs no more steps."""
    return result
    yield


def _compacted_before(connection: sqlite3.Connection, named: Mapping[str, Any]) -> _Rows:
    """The newest older turns that may hold a compaction item, as rows in their order."""
    rows: _Rows = []
    for (number,) in connection.execute(COMPACTED_BEFORE, named).fetchall():
        found = connection.execute(TURN_ITEMS, (named["key"], number)).fetchall()
        rows = [*((number, text) for (text,) in reversed(found)), *rows]
    return rows


def _with_compaction(turns: list[Turn], older: _Rows) -> Steps[list[Turn]]:
    """These turns, behind the older one that holds the newest compaction item, if one does."""
    candidates, _ = yield from decode_rows(older, False)
    return behind_compaction(candidates, turns)


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


def load_items(
    connection: sqlite3.Connection,
    session_id: str,
    turn: int | None,
    limit: int | None,
    closely: bool = False,
) -> Steps[list[Item] | None]:
    """The newest ``limit`` items that can be read, of the session or of one turn.

    None where some item cannot be read; it is left out ``closely``.
    """
    key = _key(connection, session_id)
    if key is None or limit == 0:
        return at_once([])
    wanted = -1 if limit is None or limit < 0 else limit
    if turn is None and wanted < 0 and not closely:
        joined = _joined(connection, ITEMS_JOINED, ITEMS_LENGTHS, {"key": key})
        if joined is not None:
            count, text, lengths = joined
            return decode_text(text, count, lengths)
    if turn is None:
        rows = connection.execute(SESSION_ITEMS, (key,))
    else:
        rows = connection.execute(TURN_ITEMS, (key, turn))
    # Closely, more may be needed in place of those that cannot be read.
    found = rows.fetchall() if wanted < 0 or closely else rows.fetchmany(wanted)
    rows.close()
    return _newest([text for (text,) in found], wanted, closely)


def _newest(texts: Sequence[str], wanted: int, closely: bool) -> Steps[list[Item] | None]:
    decoded = yield from decode_each(texts)
    items = [item for item in decoded if item is not None]
    if len(items) < len(decoded) and not closely:
        return None
    newest = items if wanted < 0 else items[:wanted]
    return newest[::-1]


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item where it is stored.

    Attributes:
        place: the key of its session, its turn, its run and its position.
        text: its JSON.
        unreadable: how many newer items of the session are no JSON objects.
    """

    place: tuple[int, int, int, int]
    text: str
    unreadable: int


def newest_item(
    connection: sqlite3.Connection, session_id: str, unreadable: int
) -> StoredItem | None:
    """The newest item of the session but for so many."""
    row = connection.execute(NEWEST_ITEM, (session_id, unreadable)).fetchone()
    return None if row is None else StoredItem(row[:4], row[4], unreadable)


def run_items(connection: sqlite3.Connection, lease: Lease, run: int) -> Steps[list[Item | None]]:
    """The items of a run of the lease's turn; None in place of each that cannot be read."""
    rows = connection.execute(RUN_ITEMS, (lease.session_id, lease.turn, run)).fetchall()
    return decode_each([text for (text,) in rows])


def records(
    connection: sqlite3.Connection, session_id: str, limit: int | None, before: int | None
) -> Steps[list[TurnRecord]]:
    """The session's turns, newest first."""
    session = SessionRow.read(connection, session_id, clock.now())
    if not session.key:
        return at_once([])
    key, lease = session.key, session.lease()
    most = -1 if limit is None else max(limit, 0)
    rows = named(connection, RECORDS, (key, _EVERY_TURN if before is None else before, most))
    if not rows:
        return at_once([])
    page = (key, rows[-1]["turn"], rows[0]["turn"])
    runs = dict(connection.execute(RECORD_RUNS, page).fetchall())
    entries = entry_rows(connection, *page)
    stored = connection.execute(RECORD_ITEMS, page).fetchall()
    for row in rows:
        row["state"] = told_state(row["turn"], row["state"], lease)
    return _records(session_id, rows, runs, stored, entries)


def _records(
    session_id: str,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[int, int],
    stored: Sequence[tuple[int, str]],
    entries: Sequence[Mapping[str, Any]],
) -> Steps[list[TurnRecord]]:
    turns, _ = yield from decode_rows(stored, False)
    journal = entries_of(entries)
    items = {turn.turn: turn.items for turn in turns}
    return [
        record_of(
            session_id,
            row,
            runs=runs.get(row["turn"], 0),
            items=items.get(row["turn"], []),
            journal=journal.get(row["turn"], ()),
        )
        for row in rows
    ]


def newest_record(
    connection: sqlite3.Connection, session_id: str, session: SessionRow
) -> TurnRecord | None:
    """The record of the session's newest turn, without its items; None where it has no turn."""
    for row in named(connection, RECORDS, (session.key, _EVERY_TURN, 1)):
        place = (session.key, row["turn"], row["turn"])
        runs = dict(connection.execute(RECORD_RUNS, place).fetchall())
        row["state"] = told_state(row["turn"], row["state"], session.lease())
        return record_of(
            session_id,
            row,
            runs=runs.get(row["turn"], 0),
            items=[],
            journal=entries_of(entry_rows(connection, *place)).get(row["turn"], ()),
        )
    return None


def figures(connection: sqlite3.Connection) -> dict[str, float]:
    """What a dashboard shows of the file."""
    ((parked, since),) = connection.execute(PARKED).fetchall()
    ((size,),) = connection.execute(FILE_BYTES).fetchall()
    told: dict[str, float] = {"turn.parked": parked, "memory.file.size": size}
    if since is not None:
        told["turn.parked.age"] = moment_of(since).timestamp()
    return told


def _key(connection: sqlite3.Connection, session_id: str) -> int | None:
    row = connection.execute(_KEY, (session_id,)).fetchone()
    return None if row is None else int(row[0])
