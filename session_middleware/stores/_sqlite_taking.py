"""Who holds a session: taking it, keeping it, letting it go.

Plain functions of a connection with a write transaction open, as members of a group: each checks
everything before it changes anything, and may be run again from the beginning when its
transaction had to be given up. The wall clock decides leases, as it is one for all processes
of a machine.
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
    WrongSession,
)
from session_middleware.history import holds_output
from session_middleware.memory import (
    CarriedRun,
    Item,
    Lease,
    Loaded,
    Reading,
    Taken,
    TakeTurn,
)
from session_middleware.stores._base import decode_items
from session_middleware.stores._sqlite_moments import moment_of, text_of
from session_middleware.stores._sqlite_reads import load_turns_of
from session_middleware.stores._sqlite_turns import store

CLOCK_STEP = 1.0
"""Seconds by which a clock may be corrected without a lease looking like one from the future."""

SHORT = 200
"""So many items of a history are read by who takes the session, at once."""

_SESSION = """
    SELECT key, token, leased_turn, lease_until, lease_seconds,
        (SELECT max(turn) FROM turn WHERE session = key) AS newest,
        (SELECT count(*) FROM (SELECT 1 FROM item WHERE session = key LIMIT ?)) AS items,
        created_at IS NOT NULL AS exists_
    FROM session WHERE session_id = ?
"""
_NEW_SESSION = "INSERT INTO session (session_id) VALUES (?) RETURNING key"
_GRANT = """
    UPDATE session SET token = ?, leased_turn = ?, lease_until = ?, lease_seconds = ?
    WHERE key = ?
"""
_GRANT_AND_TOUCH = """
    UPDATE session SET token = ?, leased_turn = ?, lease_until = ?, lease_seconds = ?,
        created_at = coalesce(created_at, CURRENT_TIMESTAMP), updated_at = CURRENT_TIMESTAMP
    WHERE key = ?
"""
_RENEW = """
    UPDATE session SET lease_until = ? FROM json_each(?) AS held
    WHERE session.key = CAST(held.key AS INTEGER) AND token = held.value
    RETURNING token
"""
_LEASED = "SELECT leased_turn FROM session WHERE key = ? AND token = ?"
_LET_GO = "UPDATE session SET token = NULL WHERE key = ?"
_PARKED_HERE = "SELECT turn, open FROM park WHERE identity = ? AND session = ?"
_PARKED_ELSEWHERE = "SELECT 1 FROM park WHERE identity = ? LIMIT 1"
_UNPARK = "UPDATE park SET open = 0 WHERE identity = ? AND session = ?"
_NEW_TURN = """
    INSERT INTO turn (session, turn, state, started_at, idempotency_key, input_digest)
    VALUES (?, ?, 'running', ?, ?, ?)
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
_RUNS = "SELECT run, state, input_digest FROM run WHERE session = ? AND turn = ? ORDER BY run"
_RUN_ITEMS = "SELECT item FROM item WHERE session = ? AND turn = ? AND run = ? ORDER BY position"
_TURN_ITEMS = "SELECT item FROM item WHERE session = ? AND turn = ? ORDER BY run, position"
_MOVE_TO_TURN = (
    "UPDATE item SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE run SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE park SET turn = ? WHERE session = ? AND turn = ?",
)


@dataclass(slots=True)
class _Session:
    """A session's row, and what its lease means at this moment."""

    key: int
    token: int | None
    leased: int
    until: float
    seconds: float
    newest: int
    items: int
    exists: bool

    @classmethod
    def read(
        cls, connection: sqlite3.Connection, session_id: str, count_to: int = 0
    ) -> _Session | None:
        """Read it; of its items no more than ``count_to`` are counted."""
        row = connection.execute(_SESSION, (count_to, session_id)).fetchone()
        if row is None:
            return None
        key, token, leased, until, seconds, newest, items, exists = row
        return cls(
            key, token, leased or 0, until or 0.0, seconds or 0.0, newest or 0, items, bool(exists)
        )

    def is_held(self, now: float) -> bool:
        # A lease that ends later than it could was granted before the clock was set back.
        return self.token is not None and now < self.until <= now + self.seconds + CLOCK_STEP


def take(
    connection: sqlite3.Connection, request: TakeTurn, lease: float
) -> tuple[Taken, int, bool]:
    """Take the session for ``lease`` seconds.

    Also returns the key of its row, and whether it exists by what was stored of the request.
    """
    now = time.time()
    session, resumed, earlier = look_up(connection, request, now)
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
        session.key = connection.execute(_NEW_SESSION, (request.session_id,)).fetchall()[0][0]
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
    anew = resumed is None and earlier is None
    new = request.input if anew else None
    token = secrets.randbits(63)
    granted = _GRANT if new is None else _GRANT_AND_TOUCH
    connection.execute(granted, (token, turn, now + lease, lease, key))
    runs = [] if anew else connection.execute(_RUNS, (key, turn)).fetchall()
    loaded = None
    if anew and request.read is not None:
        loaded = _read_if_short(connection, session, request.read)
    if new is not None:
        store(connection, key, turn, new)
    taken = Taken(
        Lease(request.session_id, turn, token),
        next_run=max((run for run, _, _ in runs), default=0 if new is None else new.run) + 1,
        resumed=resumed is not None,
        carried=() if resumed is not None else _carried(connection, key, turn, runs),
        loaded=loaded,
        stored=new is not None,
    )
    return taken, key, new is not None and not session.exists


def look_up(
    connection: sqlite3.Connection, request: TakeTurn, now: float | None = None
) -> tuple[_Session, int | None, int | None]:
    """The session, the parked turn that the request continues, and the one that it retries."""
    count_to = 0 if request.read is None else SHORT + 1
    session = _Session.read(connection, request.session_id, count_to)
    if session is None:
        session = _Session(0, None, 0, 0.0, 0.0, 0, 0, False)
    resumed = _parked_turn(connection, request, session)
    earlier = None
    if resumed is None:
        earlier = _earlier_attempt(connection, request, session, now or time.time())
    return session, resumed, earlier


def _read_if_short(
    connection: sqlite3.Connection, session: _Session, what: Reading
) -> Loaded | None:
    """The history, where reading it keeps those who want to write waiting for no longer."""
    if not session.items:
        return Loaded([])
    if session.items > SHORT:
        return None
    return load_turns_of(connection, session.key, what.newest, None, what.texts)


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


def _items(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...]
) -> list[Item]:
    texts = [text for (text,) in connection.execute(statement, parameters)]
    return [item for item in decode_items(texts)[0] if item is not None]


# --- keeping it, and letting it go -----------------------------------------------------------


def renew(connection: sqlite3.Connection, held: Mapping[int, int], lease: float) -> set[int]:
    """Give every one of these sessions (key to token) the whole lease again.

    Returns the tokens that still hold; the others were taken over.
    """
    rows = connection.execute(_RENEW, (time.time() + lease, json.dumps(held))).fetchall()
    return {token for (token,) in rows}


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
        row = connection.execute(_LEASED, (key, token)).fetchone()
        if row is not None:
            _let_go(connection, key, row[0])


def _let_go(connection: sqlite3.Connection, key: int, turn: int) -> None:
    connection.execute(_LET_GO, (key,))
    connection.execute(_ABANDON, (text_of(datetime.now(UTC)), key, turn))
