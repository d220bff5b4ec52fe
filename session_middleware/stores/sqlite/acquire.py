"""The lease of a session in SQLite: acquired, renewed, released.

Plain functions of a connection with a write transaction open, as members of a group: each checks
everything before it changes anything, and may be run again from the beginning when its
transaction had to be given up. What is refused and taken over is decided by ``stores.rules``.
Leases count in the machine's clock, which ``clock`` reads, and end by wall time after a boot.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from session_middleware.errors import SessionBusy
from session_middleware.history import holds_output
from session_middleware.stores.items import decode_items
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    CarriedRun,
    JournalEntry,
    Lease,
    Loaded,
    Manifest,
)
from session_middleware.stores.rules import (
    Decision,
    Facts,
    KeyedTurn,
    Obstacle,
    Outcome,
    ParkedRun,
    decide,
    refusal,
)
from session_middleware.stores.sql import moment_of, text_of
from session_middleware.stores.sqlite import clock, tickets
from session_middleware.stores.sqlite.clock import Now
from session_middleware.stores.sqlite.group import Steps
from session_middleware.stores.sqlite.journal import entries_of, entry_rows
from session_middleware.stores.sqlite.reads import load_turns_of
from session_middleware.stores.sqlite.session import SessionRow, named
from session_middleware.stores.sqlite.writes import NOW, store

SHORT = 200
"""Histories of at most so many items are read in the transaction that acquires the session."""

_NEW_SESSION = "INSERT INTO session (session_id) VALUES (?) RETURNING key"
_GRANT = """
    UPDATE session SET token = ?1, leased_turn = ?2, lease_until = ?3, lease_seconds = ?4,
        clock_token = ?1, lease_clock = ?5, lease_boot = ?6
    WHERE key = ?7
"""
_GRANT_AND_TOUCH = f"""
    UPDATE session SET token = ?1, leased_turn = ?2, lease_until = ?3, lease_seconds = ?4,
        clock_token = ?1, lease_clock = ?5, lease_boot = ?6,
        opened = CASE WHEN created_at IS NULL THEN ?1 END,
        created_at = coalesce(created_at, {NOW}), updated_at = {NOW}
    WHERE key = ?7
"""  # noqa: S608 - of a constant
# A power failure may take the newest fences that were granted: those after it are larger still.
_NEXT_FENCE = "UPDATE fence SET last = max(last + 1, ?) WHERE key = 1 RETURNING last"
_RENEW = """
    UPDATE session SET lease_until = ?, lease_clock = ? FROM json_each(?) AS held
    WHERE session.key = CAST(held.key AS INTEGER) AND token = held.value
    RETURNING token
"""
_LEASED = "SELECT leased_turn FROM session WHERE key = ? AND token = ?"
_GIVE_UP = "UPDATE session SET token = NULL WHERE key = ?"
_PARKED_HERE = "SELECT turn, open FROM park WHERE identity = ? AND session = ?"
_PARKED_ELSEWHERE = "SELECT 1 FROM park WHERE identity = ? LIMIT 1"
_DELETED = "SELECT 1 FROM tombstone WHERE identity = ? AND until > ?"
_NEW_TURN = """
    INSERT INTO turn
        (session, turn, state, started_at, idempotency_key, input_digest, otel_trace_id)
    VALUES (?, ?, 'running', ?, ?, ?, ?)
"""
_SAME_KEY = """
    SELECT turn, state, input_digest,
        EXISTS (SELECT 1 FROM park WHERE session = turn.session AND turn = turn.turn AND open)
            AS waits
    FROM turn WHERE session = ? AND idempotency_key = ? AND state <> 'replaced'
    ORDER BY turn DESC LIMIT 1
"""
_STARTED = "SELECT started_at FROM turn WHERE session = ? AND turn = ?"
_RUNS_AGAIN = """
    UPDATE turn SET state = 'running', ended_at = NULL,
        otel_trace_id = coalesce(?, otel_trace_id)
    WHERE session = ? AND turn = ?
"""
_MANIFEST = "SELECT manifest FROM turn WHERE session = ? AND turn = ?"
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
_MOVE_TO_TURN = (
    "UPDATE item SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE run SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE park SET turn = ? WHERE session = ? AND turn = ?",
    "UPDATE call SET turn = ? WHERE session = ? AND turn = ?",
)


@dataclass(frozen=True, slots=True)
class Granted:
    """A session that was acquired, and what the memory needs to keep it.

    Attributes:
        key: of the session's row.
        loading: the steps to the history that the request asked to read.
        earlier: the texts of the runs of an earlier attempt, with their numbers and digests.
    """

    acquired: Acquired
    key: int
    loading: Steps[Loaded | None] | None = None
    earlier: Sequence[tuple[int, str | None, list[str]]] = ()

    def decoded(self) -> Acquired:
        """The session with what was read of it. A long history is left to be loaded."""
        changes: dict[str, Any] = {}
        if self.loading is not None:
            try:
                next(self.loading)
            except StopIteration as finished:
                changes["loaded"] = finished.value
            self.loading.close()
        if self.earlier:
            changes["carried"] = tuple(_carried_run(*run) for run in self.earlier)
        return replace(self.acquired, **changes) if changes else self.acquired


def acquire(
    connection: sqlite3.Connection, request: AcquireRequest, lease: float
) -> Granted | SessionBusy:
    """Acquire the session for ``lease`` seconds, or raise why not.

    For a request with a ticket SessionBusy is returned: raised, it would undo the ticket's place.
    """
    now = clock.now()
    count_to = 0 if request.read is None else SHORT + 1
    session = SessionRow.read(connection, request.session_id, now, count_to)
    try:
        decision = _decide(connection, request, session, now)
    except SessionBusy as busy:
        if request.ticket is None:
            raise
        tickets.show(connection, request.session_id, request.ticket, now.wall)
        return busy
    if request.ticket is not None and session.has_line:
        tickets.withdraw(connection, request.session_id, request.ticket)
    if session.key == 0:
        session.key = connection.execute(_NEW_SESSION, (request.session_id,)).fetchall()[0][0]
    key = session.key
    if decision.abandons is not None:
        connection.execute(_ABANDON, (text_of(request.started_at), key, decision.abandons))
    turn = _begin(connection, request, session, decision)
    begins = decision.outcome is Outcome.BEGIN
    new = request.input if begins else None
    token = secrets.randbits(63)
    grant = _GRANT if new is None else _GRANT_AND_TOUCH
    ends = (now.wall + lease, lease, now.machine + lease, now.boot)
    connection.execute(grant, (token, turn, *ends, key))
    ((fence,),) = connection.execute(_NEXT_FENCE, (int(now.wall * 1_000_000),)).fetchall()
    runs = [] if begins else connection.execute(_RUNS, (key, turn)).fetchall()
    loading, empty = None, None
    if begins and request.read is not None:  # but no long one: other writers wait meanwhile
        if not session.items:
            empty = Loaded([])
        elif session.items <= SHORT:
            what = request.read
            loading = load_turns_of(connection, key, what.newest, None, what.texts)
    if new is not None:
        store(connection, key, turn, new)
    retries = decision.outcome is Outcome.RETRY
    resumed = decision.outcome is Outcome.CONTINUE
    acquired = Acquired(
        Lease(request.session_id, turn, token, fence),
        next_run=max((run for run, _, _ in runs), default=0 if new is None else new.run) + 1,
        resumed=resumed,
        loaded=empty,
        stored=new is not None,
        took_over=decision.abandons,
        # Decoded here, since a lease that comes with what nobody can read is not granted.
        manifest=_manifest(connection, key, turn) if resumed else None,
        started_at=_started_at(connection, key, turn) if resumed else None,
        journal=() if begins else _journal(connection, key, turn),
    )
    earlier = _texts_of(connection, key, turn, runs) if retries else ()
    return Granted(acquired, key, loading, earlier)


def _manifest(connection: sqlite3.Connection, key: int, turn: int) -> Manifest | None:
    ((text,),) = connection.execute(_MANIFEST, (key, turn)).fetchall()
    return None if text is None else json.loads(text)


def _journal(connection: sqlite3.Connection, key: int, turn: int) -> tuple[JournalEntry, ...]:
    return tuple(entries_of(entry_rows(connection, key, turn, turn)).get(turn, ()))


def _started_at(connection: sqlite3.Connection, key: int, turn: int) -> datetime | None:
    rows = named(connection, _STARTED, (key, turn))
    return moment_of(rows[0]["started_at"]) if rows else None


def look_up(connection: sqlite3.Connection, request: AcquireRequest) -> None:
    """Raise what ``acquire`` would raise but for SessionBusy."""
    now = clock.now()
    session = SessionRow.read(connection, request.session_id, now)
    with suppress(SessionBusy):
        _decide(connection, request, session, now)


def _decide(
    connection: sqlite3.Connection, request: AcquireRequest, session: SessionRow, now: Now
) -> Decision:
    """What the rules say of the request; raises the refusal.

    Items of a duplicate are left to be loaded: nothing is decoded in a transaction.
    """
    facts = Facts(
        session.lease(),
        None if request.resume is None else _parked(connection, request.resume, session, now.wall),
        None if request.idempotency_key is None else _same_key(connection, request, session),
        bool(session.has_line)
        and tickets.others_before(connection, request.session_id, request.ticket, now.wall),
    )
    decision = decide(request, facts)
    if decision.outcome.grants:
        return decision
    obstacle = Obstacle(request.session_id, decision.turn)
    if decision.turn is not None and decision.outcome in (
        Outcome.BUSY,
        Outcome.IN_PROGRESS,
        Outcome.RESUMING,
    ):
        started = named(connection, _STARTED, (session.key, decision.turn))
        obstacle = replace(
            obstacle,
            since=moment_of(started[0]["started_at"]) if started else None,
            until=datetime.fromtimestamp(now.wall + session.seconds_left, UTC),
            retry_after=session.seconds_left,
        )
    raise refusal(decision.outcome, obstacle)


def may_be_next(connection: sqlite3.Connection, session_id: str, ticket: int) -> bool:
    """Whether the session is free, and nobody waits for it who came before the ticket."""
    now = clock.now()
    lease = SessionRow.read(connection, session_id, now).lease()
    if lease is not None and not lease.expired:
        return False
    return not tickets.others_before(connection, session_id, ticket, now.wall)


def _parked(
    connection: sqlite3.Connection, identity: str, session: SessionRow, now: float
) -> ParkedRun | None:
    for row in named(connection, _PARKED_HERE, (identity, session.key)):
        return ParkedRun(row["turn"], bool(row["open"]))
    if named(connection, _DELETED, (identity, now)):
        return ParkedRun(deleted=True)
    return ParkedRun() if named(connection, _PARKED_ELSEWHERE, (identity,)) else None


def _same_key(
    connection: sqlite3.Connection, request: AcquireRequest, session: SessionRow
) -> KeyedTurn | None:
    for row in named(connection, _SAME_KEY, (session.key, request.idempotency_key)):
        return KeyedTurn(**{**row, "waits": bool(row["waits"])})
    return None


def _begin(
    connection: sqlite3.Connection, request: AcquireRequest, session: SessionRow, decision: Decision
) -> int:
    """Make the turn that the lease is for the running one; returns its number."""
    key = session.key
    if decision.outcome is Outcome.CONTINUE and decision.turn is not None:
        connection.execute(_RUNS_AGAIN, (request.otel_trace_id, key, decision.turn))
        return decision.turn
    turn = session.newest + 1
    started_at = text_of(request.started_at)
    connection.execute(
        _NEW_TURN,
        (
            key,
            turn,
            started_at,
            request.idempotency_key,
            request.input_digest,
            request.otel_trace_id,
        ),
    )
    if decision.outcome is Outcome.RETRY:
        for move in _MOVE_TO_TURN:
            connection.execute(move, (turn, key, decision.turn))
        connection.execute(_REPLACED, (started_at, key, decision.turn))
    return turn


def _texts_of(
    connection: sqlite3.Connection,
    key: int,
    turn: int,
    runs: Sequence[tuple[int, str, str | None]],
) -> list[tuple[int, str | None, list[str]]]:
    texts = []
    for run, state, digest in runs:
        if state != "replaced":
            rows = connection.execute(_RUN_ITEMS, (key, turn, run)).fetchall()
            texts.append((run, digest, [text for (text,) in rows]))
    return texts


def _carried_run(run: int, digest: str | None, texts: Sequence[str]) -> CarriedRun:
    items = [item for item in decode_items(texts)[0] if item is not None]
    return CarriedRun(run, digest, len(items), holds_output(items))


# --- renewed and released --------------------------------------------------------------------


def renew(connection: sqlite3.Connection, held: Mapping[int, int], lease: float) -> set[int]:
    """Give every one of these sessions (key to token) the whole lease again.

    Returns the tokens that still hold; the others were taken over.
    """
    now = clock.now()
    ends = (now.wall + lease, now.machine + lease)
    rows = connection.execute(_RENEW, (*ends, json.dumps(held))).fetchall()
    return {token for (token,) in rows}


def release(connection: sqlite3.Connection, session_id: str) -> bool:
    """End the lease of the session; returns whether anybody held it."""
    session = SessionRow.read(connection, session_id, clock.now())
    if session.token is None:
        return False
    _give_up(connection, session.key, session.leased_turn)
    return True


def release_held(connection: sqlite3.Connection, held: Mapping[int, int]) -> None:
    """End the leases of those sessions (key to token) that are still held under that token."""
    for key, token in held.items():
        row = connection.execute(_LEASED, (key, token)).fetchone()
        if row is not None:
            _give_up(connection, key, row[0])


def _give_up(connection: sqlite3.Connection, key: int, turn: int) -> None:
    connection.execute(_GIVE_UP, (key,))
    connection.execute(_ABANDON, (text_of(datetime.now(UTC)), key, turn))
