"""Listing and removing sessions in SQLite, and approvals, in the order of ``ManagedStore``.

Plain functions of a connection with a transaction open. What reads may return the steps to its
result; what writes is one member of a group.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from session_middleware.stores.cursors import Cursor
from session_middleware.stores.listing import decided, info_of, relabelled
from session_middleware.stores.managed_store import (
    EXCERPT,
    LONGEST_SHOWN,
    LOOKED_AT,
    Labels,
    NewestTurn,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
)
from session_middleware.stores.records import Lease, TurnRecord
from session_middleware.stores.rules import told_state
from session_middleware.stores.sql import (
    calls_of,
    calls_text,
    date_of,
    metadata_of,
    text_of,
)
from session_middleware.stores.sqlite import clock, reads, writes
from session_middleware.stores.sqlite.copies import KEY
from session_middleware.stores.sqlite.decoding import decode_each
from session_middleware.stores.sqlite.group import Steps
from session_middleware.stores.sqlite.journal import Ending
from session_middleware.stores.sqlite.session import SessionRow, named

_SORTED_BY = {"updated": "updated_at", "created": "created_at", "id": "''"}

# The first item and the last of a session, unless it is too long to be looked into.
_ITEM_AT = f"""
    (SELECT CASE WHEN length(item) <= {LONGEST_SHOWN} THEN item END FROM item
        WHERE session = key ORDER BY turn {{0}}, run {{0}}, position {{0}} LIMIT 1)
"""  # noqa: S608 - of a constant
_PAGE = f"""
    SELECT session_id, created_at, updated_at, title, metadata, {{sort}} AS sorted_by,
        key, token, leased_turn, lease_seconds,
        CASE WHEN lease_boot = :boot AND clock_token = token THEN lease_clock - :machine
            ELSE lease_until - :wall END AS seconds_left,
        (SELECT max(turn) FROM turn WHERE session = key) AS newest,
        (SELECT state FROM turn WHERE session = key ORDER BY turn DESC LIMIT 1) AS state,
        (SELECT count(*) FROM turn WHERE session = key) AS turns,
        (SELECT count(*) FROM item WHERE session = key) AS items,
        (SELECT sum(length(CAST(item AS BLOB))) FROM item WHERE session = key) AS size,
        {_ITEM_AT.format("")} AS first,
        {_ITEM_AT.format("DESC")} AS last,
        (SELECT substr(output_text, 1, {EXCERPT}) FROM turn
            WHERE session = key AND output_text IS NOT NULL ORDER BY turn DESC LIMIT 1) AS answer
    FROM session WHERE created_at IS NOT NULL {{where}}
    ORDER BY {{order}} LIMIT :limit
"""  # noqa: S608 - of constants of this module

_NEWEST_ITEMS = f"""
    SELECT item FROM (SELECT item FROM item WHERE session = ?
        ORDER BY turn DESC, run DESC, position DESC LIMIT {LOOKED_AT})
    WHERE length(item) <= {LONGEST_SHOWN}
"""  # noqa: S608 - of constants

_LABELS = "SELECT key, title, metadata FROM session WHERE session_id = ? AND created_at IS NOT NULL"
_LABEL = "UPDATE session SET title = ?, metadata = ? WHERE key = ?"

_REMOVE_WORDS = (
    "DELETE FROM item WHERE session = ? AND turn = ?",
    "DELETE FROM park WHERE session = ? AND turn = ?",
    "UPDATE call SET item = NULL, output = NULL WHERE session = ? AND turn = ?",
    """
    UPDATE turn SET output_text = NULL,
        state = CASE state WHEN 'awaiting_approval' THEN 'cancelled' ELSE state END
    WHERE session = ? AND turn = ?
    """,
)
_TOUCH = f"UPDATE session SET updated_at = {writes.NOW} WHERE session_id = ?"  # noqa: S608
_DELETE = "DELETE FROM session WHERE session_id = ? RETURNING created_at IS NOT NULL"
_DELETE_IDLE = """
    DELETE FROM session WHERE session_id = ? AND created_at IS NOT NULL AND updated_at <= ?
    RETURNING 1
"""

_FIND_TRACE = """
    SELECT session_id, trace.turn FROM trace
    JOIN session ON key = trace.session
    JOIN turn ON turn.session = key AND turn.turn = trace.turn
    WHERE trace_id = ? ORDER BY started_at DESC LIMIT 1
"""
_WAITING = """
    SELECT session_id, park.turn, identity, calls, park.state,
        coalesce(since, (SELECT coalesce(ended_at, started_at) FROM turn
            WHERE session = key AND turn = park.turn)) AS waits_since,
        key, token, leased_turn, lease_seconds,
        CASE WHEN lease_boot = :boot AND clock_token = token THEN lease_clock - :machine
            ELSE lease_until - :wall END AS seconds_left
    FROM park JOIN session ON key = park.session
    WHERE open AND alias_of IS NULL
        AND (:session_id IS NULL OR session_id = :session_id)
        AND (:prefix IS NULL OR substr(session_id, 1, length(:prefix)) = :prefix)
        AND (:turn IS NULL OR park.turn = :turn)
    ORDER BY waits_since, session_id, park.turn, identity
"""
_DECIDE = """
    UPDATE park SET calls = ?
    WHERE identity = ? AND session = (SELECT key FROM session WHERE session_id = ?)
"""


# --- sessions ----------------------------------------------------------------------------------


def page(connection: sqlite3.Connection, query: SessionQuery) -> Steps[list[SessionInfo]]:
    """One page of the sessions, in one query."""
    now = clock.now()
    sort = _SORTED_BY[query.order]
    newest_first = query.order != "id"
    where, values = _where(query, sort)
    statement = _PAGE.format(
        sort=sort,
        where=where,
        order=f"{sort} DESC, session_id DESC" if newest_first else "session_id",
    )
    moment = {"boot": now.boot, "machine": now.machine, "wall": now.wall}
    rows = named(connection, statement, {**moment, **values, "limit": query.limit})
    return _infos(rows, query)


def _where(query: SessionQuery, sort: str) -> tuple[str, dict[str, Any]]:
    where, values = "", {}
    if query.session_id is not None:
        where += " AND session_id = :session_id"
        values["session_id"] = query.session_id
    if query.idle_since is not None:
        where += " AND updated_at <= :idle_since"
        values["idle_since"] = text_of(query.idle_since)
    if query.prefix is not None:
        # By the ids' own index: the sessions of one user may be few among many.
        where += (
            " AND session_id >= :prefix AND substr(session_id, 1, length(:prefix)) = :prefix"
            " AND session_id < :beyond"
        )
        values |= {"prefix": query.prefix, "beyond": query.prefix + "\U0010ffff"}
    if query.after is not None and query.order == "id":
        where += " AND session_id > :after_id"
        values["after_id"] = query.after.session_id
    elif query.after is not None:
        where += f" AND ({sort}, session_id) < (:after_key, :after_id)"
        values |= {"after_key": query.after.key, "after_id": query.after.session_id}
    return where, values


def _infos(rows: Sequence[Mapping[str, Any]], query: SessionQuery) -> Steps[list[SessionInfo]]:
    infos = []
    for row in rows:
        state = row["state"]
        if state is not None:
            state = told_state(row["newest"], state, _lease(row))
        infos.append(
            info_of(
                row["session_id"],
                created_at=date_of(row["created_at"]),
                updated_at=date_of(row["updated_at"]),
                turns=row["turns"],
                items=row["items"],
                size=row["size"] or 0,
                title=row["title"],
                metadata=metadata_of(row["metadata"]),
                state=state,
                first=row["first"],
                last=row["last"],
                answer=row["answer"],
                cursor=Cursor(query.order, str(row["sorted_by"]), row["session_id"]),
            )
        )
        yield
    return infos


def _lease(row: Mapping[str, Any]) -> Any:
    names = ("key", "token", "leased_turn", "lease_seconds", "seconds_left")
    known = {name: row[name] for name in names if row[name] is not None}
    return SessionRow(**known).lease()


def newest_turns(
    connection: sqlite3.Connection, session_ids: Sequence[str]
) -> Steps[list[NewestTurn | None]]:
    """The newest turn of each of these sessions."""
    found, now = [], clock.now()
    for session_id in session_ids:
        session = SessionRow.read(connection, session_id, now)
        record = reads.newest_record(connection, session_id, session)
        texts = [text for (text,) in connection.execute(_NEWEST_ITEMS, (session.key,))]
        found.append((record, texts))
    return _newest_turns(found)


def _newest_turns(
    found: Sequence[tuple[TurnRecord | None, Sequence[str]]],
) -> Steps[list[NewestTurn | None]]:
    newest = []
    for record, texts in found:
        items = yield from decode_each(texts)
        newest.append(None if record is None else NewestTurn(record, items.count(None)))
        yield
    return newest


def label(connection: sqlite3.Connection, session_id: str, labels: Labels) -> bool:
    """Change title and metadata; False where there is no such session."""
    row = connection.execute(_LABELS, (session_id,)).fetchone()
    if row is None:
        return False
    key, title, metadata = row
    connection.execute(_LABEL, (*relabelled(title, metadata, labels), key))
    return True


# --- removing ----------------------------------------------------------------------------------


def remove_turns(
    connection: sqlite3.Connection, lease: Lease, turns: Sequence[int], ending: Ending
) -> None:
    """Remove every word of these turns, and end the lease's own."""
    writes.write(connection, lease, (), ending)
    (key,) = connection.execute(KEY, (lease.session_id,)).fetchall()[0]
    for statement in _REMOVE_WORDS:
        connection.executemany(statement, [(key, turn) for turn in turns])
    connection.execute(_TOUCH, (lease.session_id,))


def delete_sessions(
    connection: sqlite3.Connection, session_ids: Sequence[str], idle_since: datetime | None
) -> int:
    """Remove these sessions; return how many of them anybody could see."""
    deleted, now = 0, clock.now()
    for session_id in session_ids:
        if idle_since is None:
            rows = connection.execute(_DELETE, (session_id,)).fetchall()
        else:
            lease = SessionRow.read(connection, session_id, now).lease()
            if lease is not None and not lease.expired:
                continue
            rows = connection.execute(_DELETE_IDLE, (session_id, text_of(idle_since))).fetchall()
        deleted += sum(seen for (seen,) in rows)
    return deleted


# --- traces and approvals ----------------------------------------------------------------------


def find_trace(connection: sqlite3.Connection, trace_id: str) -> tuple[str, int] | None:
    """The session and turn with that trace id; the newest."""
    row: tuple[str, int] | None = connection.execute(_FIND_TRACE, (trace_id,)).fetchone()
    return row


def waiting(connection: sqlite3.Connection, query: PendingQuery) -> list[PendingTurn]:
    """The runs that wait for approval, the one that waits longest first."""
    found = _waiting(connection, query.session_id, query.prefix)
    return found if query.limit is None else found[: query.limit]


def _waiting(
    connection: sqlite3.Connection,
    session_id: str | None,
    prefix: str | None = None,
    turn: int | None = None,
) -> list[PendingTurn]:
    now = clock.now()
    values = {
        **{"boot": now.boot, "machine": now.machine, "wall": now.wall},
        **{"session_id": session_id, "prefix": prefix, "turn": turn},
    }
    found = []
    for row in named(connection, _WAITING, values):
        lease = _lease(row)
        at_work = lease is not None and not lease.expired and lease.turn == row["turn"]
        if not at_work or turn is not None:
            found.append(
                PendingTurn(
                    row["session_id"],
                    row["turn"],
                    date_of(row["waits_since"]),
                    calls_of(row["calls"]),
                    row["state"],
                    row["identity"],
                )
            )
    return found


def note_decision(
    connection: sqlite3.Connection,
    session_id: str,
    turn: int,
    call_id: str,
    approved: bool,
    message: str | None,
) -> None:
    """Keep the decision with the parked run."""
    runs = _waiting(connection, session_id, turn=turn)
    run, calls = decided(runs, session_id, turn, call_id, approved, message)
    connection.execute(_DECIDE, (calls_text(calls), run.identity, session_id))
