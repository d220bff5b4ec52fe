"""What turns write, as plain functions of a connection with a transaction open.

Each function is one member of a group: it checks its fence before it changes anything, and may
be run again from the beginning when its transaction had to be given up. A fence is an UPDATE of
the session's row under the token; no row means that the turn is lost.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from session_middleware.errors import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    TurnInProgress,
    TurnLost,
    WrongSession,
)
from session_middleware.history import holds_output, up_to_last_output
from session_middleware.memory import CarriedRun, Item, Lease, Taken, TakeTurn, TurnEnd
from session_middleware.stores._base import decode_items

CLOCK_STEP = 1.0
"""Seconds by which a clock may be corrected without a lease looking like one from the future."""

_SESSION = """
    SELECT key, token, leased_turn, lease_until, lease_seconds,
        (SELECT max(turn) FROM turn WHERE session = key) AS newest
    FROM session WHERE session_id = ?
"""
_NEW_SESSION = "INSERT INTO session (session_id) VALUES (?) RETURNING key"
_GRANT = """
    UPDATE session SET token = ?, leased_turn = ?, lease_until = ?, lease_seconds = ?
    WHERE key = ?
"""
_RENEW = """
    UPDATE session SET lease_until = ? FROM json_each(?) AS held
    WHERE session.key = CAST(held.key AS INTEGER) AND token = held.value
    RETURNING token
"""
_FENCE = """
    UPDATE session SET created_at = coalesce(created_at, CURRENT_TIMESTAMP),
        updated_at = CURRENT_TIMESTAMP
    WHERE session_id = ? AND token = ? RETURNING key
"""
_FENCE_ONLY = "UPDATE session SET token = token WHERE session_id = ? AND token = ? RETURNING key"
_FENCE_TO_END = "UPDATE session SET token = NULL WHERE session_id = ? AND token = ? RETURNING key"
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
_TOUCH = "UPDATE session SET updated_at = CURRENT_TIMESTAMP WHERE key = ?"
_LET_GO = "UPDATE session SET token = NULL WHERE key = ?"
_DELETE_SESSION = "DELETE FROM session WHERE session_id = ?"

_PARKED_HERE = "SELECT turn, open FROM park WHERE identity = ? AND session = ?"
_PARKED_ELSEWHERE = "SELECT 1 FROM park WHERE identity = ? LIMIT 1"
_PARK = """
    INSERT INTO park (identity, session, turn, open) VALUES (?, ?, ?, 1)
    ON CONFLICT (identity, session) DO UPDATE SET turn = excluded.turn, open = 1
"""
_UNPARK = "UPDATE park SET open = 0 WHERE identity = ? AND session = ?"

_NEW_TURN = """
    INSERT INTO turn (session, turn, state, started_at, idempotency_key, input_digest)
    VALUES (?, ?, 'running', ?, ?, ?)
"""
_PAST_TURN = """
    INSERT INTO turn (session, turn, state, started_at, ended_at) VALUES (?, ?, 'completed', ?, ?)
"""
_SAME_KEY = """
    SELECT turn, state, input_digest FROM turn
    WHERE session = ? AND idempotency_key = ? AND state <> 'replaced' ORDER BY turn DESC LIMIT 1
"""
_STARTED = "SELECT started_at FROM turn WHERE session = ? AND turn = ?"
_RUNS_AGAIN = "UPDATE turn SET state = 'running', ended_at = NULL WHERE session = ? AND turn = ?"
_ABANDON = """
    UPDATE turn SET state = 'abandoned', ended_at = ?
    WHERE session = ? AND turn = ? AND state = 'running'
"""
_REPLACED = """
    UPDATE turn SET state = 'replaced', ended_at = coalesce(ended_at, ?)
    WHERE session = ? AND turn = ?
"""
_END = """
    UPDATE turn SET state = ?, ended_at = ?, agent = ?, error_type = ?, sdk_trace_ids = ?,
        otel_trace_id = ?, usage = ?, output_text = ?, history_digest = ?
    WHERE session = ? AND turn = ?
"""
_TRACES = "SELECT sdk_trace_ids FROM turn WHERE session = ? AND turn = ?"

_RUN = """
    INSERT INTO run (session, turn, run, state, input_digest) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (session, turn, run)
    DO UPDATE SET input_digest = coalesce(input_digest, excluded.input_digest)
"""
_RUN_STATE = """
    INSERT INTO run (session, turn, run, state) VALUES (?, ?, ?, ?)
    ON CONFLICT (session, turn, run) DO UPDATE SET state = excluded.state
"""
_RUN_DIGEST = "SELECT input_digest FROM run WHERE session = ? AND turn = ? AND run = ?"
_RUNS = "SELECT run, state, input_digest FROM run WHERE session = ? AND turn = ? ORDER BY run"

_ITEM = """
    INSERT INTO item (session, turn, run, position, item) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING
"""
_STORED = """
    SELECT position, item FROM item
    WHERE session = ? AND turn = ? AND run = ? AND position BETWEEN ? AND ? ORDER BY position
"""
_RUN_ITEMS = "SELECT item FROM item WHERE session = ? AND turn = ? AND run = ? ORDER BY position"
_TURN_ITEMS = "SELECT item FROM item WHERE session = ? AND turn = ? ORDER BY run, position"
_NEWEST_ITEMS = """
    SELECT turn, run, position, item FROM item
    WHERE session = (SELECT key FROM session WHERE session_id = ?)
    ORDER BY turn DESC, run DESC, position DESC
"""
_DROP_ITEM = "DELETE FROM item WHERE session = ? AND turn = ? AND run = ? AND position = ?"
_DROP_RUN_ITEMS = "DELETE FROM item WHERE session = ? AND turn = ? AND run = ?"
_DROP_TURN_ITEMS = "DELETE FROM item WHERE session = ? AND turn = ?"

_MOVE_TO_TURN = (
    "UPDATE item SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE run SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE park SET turn = ? WHERE session = ? AND turn = ?",
)
_EMPTY_SESSION = (
    "DELETE FROM item WHERE session = ?1",
    "DELETE FROM park WHERE session = ?1",
    "DELETE FROM run WHERE session = ?1 AND turn <> ?2",
    "DELETE FROM turn WHERE session = ?1 AND turn <> ?2",
)


def text_of(moment: datetime) -> str:
    """A moment as it is stored: UTC, to the microsecond, ordered as text."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")


def moment_of(text: str) -> datetime:
    """The moment of a stored text."""
    return datetime.fromisoformat(text).astimezone(UTC)


# --- taking a session ------------------------------------------------------------------------


@dataclass(slots=True)
class _Session:
    """A session's row, and what its lease means at this moment."""

    key: int
    token: int | None
    leased: int
    until: float
    seconds: float
    newest: int

    @classmethod
    def read(cls, connection: sqlite3.Connection, session_id: str) -> _Session | None:
        row = connection.execute(_SESSION, (session_id,)).fetchone()
        if row is None:
            return None
        key, token, leased, until, seconds, newest = row
        return cls(key, token, leased or 0, until or 0.0, seconds or 0.0, newest or 0)

    def is_held(self, now: float) -> bool:
        # A lease that ends later than it could was granted before the clock was set back.
        return self.token is not None and now < self.until <= now + self.seconds + CLOCK_STEP


def take(connection: sqlite3.Connection, request: TakeTurn, lease: float) -> tuple[Taken, int]:
    """Take the session for ``lease`` seconds; also returns the key of its row."""
    now = time.time()
    session = _Session.read(connection, request.session_id)
    if session is None:
        session = _Session(0, None, 0, 0.0, 0.0, 0)
    resumed = _parked_turn(connection, request, session)
    earlier = None
    if resumed is None:
        earlier = _earlier_attempt(connection, request, session, now)
    if session.is_held(now):
        since = _started(connection, session)
        until = datetime.fromtimestamp(session.until, UTC)
        raise SessionBusy(
            f"turn {session.leased} holds session {request.session_id!r}: wait for it, or "
            "release the session",
            turn=session.leased,
            since=since,
            until=until,
            retry_after=session.until - now,
        )
    if session.key == 0:
        (session.key,) = _one(connection, _NEW_SESSION, (request.session_id,))
    key = session.key
    if session.token is not None and session.leased != earlier:
        connection.execute(_ABANDON, (text_of(request.started_at), key, session.leased))
    if resumed is not None:
        turn = resumed
        connection.execute(_RUNS_AGAIN, (key, turn))
        connection.execute(_UNPARK, (request.resume, key))
    else:
        turn = session.newest + 1
        started_at = text_of(request.started_at)
        digest = request.input_digest
        connection.execute(_NEW_TURN, (key, turn, started_at, request.idempotency_key, digest))
    if earlier is not None:
        for move in _MOVE_TO_TURN:
            connection.execute(move, (turn, key, earlier))
        connection.execute(_REPLACED, (text_of(request.started_at), key, earlier))
    token = secrets.randbits(63)
    connection.execute(_GRANT, (token, turn, now + lease, lease, key))
    runs = []
    if resumed is not None or earlier is not None:
        runs = connection.execute(_RUNS, (key, turn)).fetchall()
    taken = Taken(
        Lease(request.session_id, turn, token),
        next_run=max((run for run, _, _ in runs), default=0) + 1,
        resumed=resumed is not None,
        carried=() if resumed is not None else _carried(connection, key, turn, runs),
    )
    return taken, key


def _parked_turn(
    connection: sqlite3.Connection, request: TakeTurn, session: _Session
) -> int | None:
    """The parked turn that this request continues, if it names one."""
    if request.resume is None:
        return None
    row = connection.execute(_PARKED_HERE, (request.resume, session.key)).fetchone()
    if row is None:
        if connection.execute(_PARKED_ELSEWHERE, (request.resume,)).fetchone() is None:
            return None
        raise WrongSession(
            "this run was parked in another session: resume it with the session_id it was "
            "started with"
        )
    turn, is_open = row
    if not is_open:
        raise DuplicateTurn(
            f"turn {turn} of session {request.session_id!r} was resumed from this state before: "
            "use what that turn stored",
            turn=turn,
            items=_items(connection, _TURN_ITEMS, (session.key, turn)),
        )
    return int(turn)


def _earlier_attempt(
    connection: sqlite3.Connection, request: TakeTurn, session: _Session, now: float
) -> int | None:
    """The turn with the same idempotency key that this request retries, if there is one."""
    if request.idempotency_key is None:
        return None
    row = connection.execute(_SAME_KEY, (session.key, request.idempotency_key)).fetchone()
    if row is None:
        return None
    turn, state, digest = row
    name = f"turn {turn} of session {request.session_id!r}"
    if len({request.input_digest, digest} - {None}) == 2:
        raise IdempotencyConflict(
            f"{name} had the same idempotency key and another input: use a new key for a new input"
        )
    if state == "running" and turn == session.leased and session.is_held(now):
        raise TurnInProgress(
            f"{name} with the same idempotency key is running: wait for its outcome",
            turn=turn,
            since=_started(connection, session),
            until=datetime.fromtimestamp(session.until, UTC),
            retry_after=session.until - now,
        )
    if state in ("completed", "awaiting_approval"):
        raise DuplicateTurn(
            f"{name} had the same idempotency key and is {state}: use what it stored",
            turn=turn,
            items=_items(connection, _TURN_ITEMS, (session.key, turn)),
        )
    return int(turn)


def _started(connection: sqlite3.Connection, session: _Session) -> datetime | None:
    row = connection.execute(_STARTED, (session.key, session.leased)).fetchone()
    return None if row is None else moment_of(row[0])


def _carried(
    connection: sqlite3.Connection,
    key: int,
    turn: int,
    runs: Sequence[tuple[int, str, str | None]],
) -> tuple[CarriedRun, ...]:
    carried = []
    for run, state, digest in runs:
        if state != "replaced":
            items = _items(connection, _RUN_ITEMS, (key, turn, run))
            carried.append(CarriedRun(run, digest, len(items), holds_output(items)))
    return tuple(carried)


def renew(connection: sqlite3.Connection, held: Mapping[int, int], lease: float) -> set[int]:
    """Give every one of these sessions (key to token) the whole lease again.

    Returns the tokens that still hold; the others were taken over.
    """
    rows = connection.execute(_RENEW, (time.time() + lease, json.dumps(held))).fetchall()
    return {token for (token,) in rows}


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


def append(
    connection: sqlite3.Connection,
    lease: Lease,
    run: int,
    position: int,
    texts: Sequence[str],
    input_digest: str | None,
) -> None:
    """Store the texts; storing the same at the same place once more changes nothing."""
    key = _fence(connection, _FENCE if texts else _FENCE_ONLY, lease)
    connection.execute(_RUN, (key, lease.turn, run, "running", input_digest))
    rows = [(key, lease.turn, run, at, text) for at, text in enumerate(texts, start=position)]
    if connection.executemany(_ITEM, rows).rowcount == len(rows) or not rows:
        return
    last = position + len(texts) - 1
    stored = connection.execute(_STORED, (key, lease.turn, run, position, last)).fetchall()
    if [text for _, text in stored] != list(texts):
        raise ValueError(
            f"run {run} of turn {lease.turn} has other items from {position} to {last}"
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


def end(connection: sqlite3.Connection, lease: Lease, how: TurnEnd) -> None:
    """Write the turn's end and let the session go."""
    key = _fence(connection, _FENCE_TO_END, lease)
    turn = lease.turn
    connection.executemany(_RUN_STATE, [(key, turn, run, state) for run, state in how.runs.items()])
    if how.discard:
        connection.execute(_DROP_TURN_ITEMS, (key, turn))
    (earlier,) = _one(connection, _TRACES, (key, turn))
    traces = list(dict.fromkeys((*json.loads(earlier), *how.sdk_trace_ids)))
    usage = None if how.usage is None else json.dumps(how.usage)
    connection.execute(
        _END,
        (
            how.state,
            text_of(how.ended_at),
            how.agent,
            how.error_type,
            json.dumps(traces),
            how.otel_trace_id,
            usage,
            how.output_text,
            how.history_digest,
            key,
            turn,
        ),
    )
    connection.executemany(_PARK, [(identity, key, turn) for identity in how.park])


# --- writing without one ---------------------------------------------------------------------


def pop(connection: sqlite3.Connection, session_id: str, lease: Lease | None) -> Item | None:
    """Remove the newest item that can be read."""
    if lease is not None:
        _fence(connection, _FENCE_ONLY, lease)
    session = _Session.read(connection, session_id)
    if session is None:
        return None
    newest = connection.execute(_NEWEST_ITEMS, (session_id,))
    for turn, run, position, text in newest:
        (item,), _ = decode_items([text])
        if item is not None:
            newest.close()
            connection.execute(_DROP_ITEM, (session.key, turn, run, position))
            connection.execute(_TOUCH, (session.key,))
            return item
    return None


def release(connection: sqlite3.Connection, session_id: str) -> bool:
    """Take the session away from whoever holds it."""
    session = _Session.read(connection, session_id)
    if session is None or session.token is None:
        return False
    _let_go(connection, session.key, session.leased)
    return True


def release_held(connection: sqlite3.Connection, held: Mapping[int, int]) -> None:
    """Let go those of these sessions (key to token) that are still held under that token."""
    for key, token in held.items():
        row = connection.execute(
            "SELECT leased_turn FROM session WHERE key = ? AND token = ?", (key, token)
        ).fetchone()
        if row is not None:
            _let_go(connection, key, row[0])


def _let_go(connection: sqlite3.Connection, key: int, turn: int) -> None:
    connection.execute(_LET_GO, (key,))
    connection.execute(_ABANDON, (text_of(datetime.now(UTC)), key, turn))


def append_turn(connection: sqlite3.Connection, session_id: str, texts: Sequence[str]) -> None:
    """Store the texts as a completed turn of their own."""
    (key,) = _one(connection, _OPEN_SESSION, (session_id,))
    (newest,) = _one(connection, "SELECT max(turn) FROM turn WHERE session = ?", (key,))
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


# --- small ones ------------------------------------------------------------------------------


def _one(connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...]) -> tuple:
    """The single row of the statement, which is read to its end as RETURNING asks for."""
    (row,) = connection.execute(statement, parameters).fetchall()
    return row


def _items(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...]
) -> list[Item]:
    texts = [text for (text,) in connection.execute(statement, parameters)]
    return [item for item in decode_items(texts)[0] if item is not None]
