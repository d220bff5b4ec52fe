"""Who holds a session: acquiring it, renewing its lease, ending it.

SQL, and how its rows become what the core gets. The function in the database decides by the table
of ``stores.rules`` and reports the name of an outcome with its facts, in one round trip; the words
of a refusal are made there. The server's clock decides leases: ``clock_timestamp()``, which goes
on within a transaction, as ``now()`` does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from session_middleware.history import holds_output
from session_middleware.stores import rules
from session_middleware.stores.postgres import reads
from session_middleware.stores.postgres.texts import storable
from session_middleware.stores.records import Acquired, AcquireRequest, CarriedRun, Lease

# --- functions in the database ---------------------------------------------------------------

# A lease that ends later than it could was granted before the clock was set back, by more than
# the second by which clocks are corrected all the time.
_HELD = """
CREATE FUNCTION {held}(p_session {session}, p_now timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT p_session.token IS NOT NULL AND p_now < p_session.lease_until
        AND p_session.lease_until <= p_now + (p_session.lease_seconds + 1) * interval '1 second'
$$
"""

# The runs, items and calls of an earlier attempt become a later turn's.
_MOVE = """
CREATE FUNCTION {move}(p_session text, p_from bigint, p_to bigint) RETURNS void
LANGUAGE sql AS $$
    UPDATE {item} SET turn = p_to WHERE session_id = p_session AND turn = p_from;
    UPDATE {run} SET turn = p_to WHERE session_id = p_session AND turn = p_from;
    UPDATE {park} SET turn = p_to WHERE session_id = p_session AND turn = p_from;
    UPDATE {call} SET turn = p_to WHERE session_id = p_session AND turn = p_from;
$$
"""

# The row of the session is locked first, so that of two who ask at once one comes after the other.
# The client chooses p_token. A request that is repeated after a broken connection finds the session
# acquired under its own token, and is told so.
_ACQUIRE = """
CREATE FUNCTION {acquire}(
    p_session text,
    p_token bigint,         -- NULL: only look what would be refused
    p_lease double precision,
    p_started_at timestamptz,
    p_key text,
    p_digest text,
    p_resume text,
    p_adopt boolean,        -- a run that was not parked here may begin a turn
    p_trace text,
    p_ticket bigint,
    p_read boolean,         -- read the history, through the window that follows
    p_window text,
    p_n bigint,
    p_step bigint,
    p_each boolean,
    p_run bigint,           -- the run whose input is stored; NULL: none
    p_position bigint,
    p_run_digest text,
    p_input text[],
    OUT outcome text,       -- one of stores.rules
    OUT turn bigint,        -- the turn that was acquired, or that stands in the way
    OUT fence bigint,
    OUT since timestamptz,
    OUT until timestamptz,
    OUT retry_after double precision,
    OUT next_run bigint,
    OUT stored boolean,
    OUT took_over bigint,   -- the turn that was abandoned
    OUT manifest text,
    OUT journal json,       -- the calls of a turn that is continued or retried
    OUT runs bigint[],      -- the runs of an earlier attempt
    OUT digests text[],
    OUT sizes bigint[],
    OUT items text[],       -- their items, or those of a turn that was done before
    OUT turns bigint[],     -- the history: see load
    OUT counts bigint[],
    OUT joined bytea,
    OUT texts text[],
    OUT complete boolean,
    OUT first_turn bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_session {session};
    v_found boolean;
    v_now timestamptz;
    v_held boolean;
    v_earlier record;
    v_turn bigint;
    v_stored boolean;
BEGIN
    LOOP
        SELECT s.* INTO v_session FROM {session} s WHERE s.session_id = p_session FOR UPDATE;
        v_found := FOUND;
        v_now := clock_timestamp();  -- after the wait for the row
        v_held := v_found AND {held}(v_session, v_now);
        v_turn := NULL;
        outcome := 'begin';
        EXIT WHEN v_found AND v_session.token = p_token;
        IF p_resume IS NOT NULL THEN
            SELECT k.turn, k.open INTO v_earlier FROM {park} k
                WHERE k.session_id = p_session AND k.identity = p_resume;
            IF FOUND THEN
                v_turn := v_earlier.turn;
                outcome := CASE
                    WHEN NOT v_earlier.open THEN 'resumed'
                    WHEN v_held AND v_session.leased_turn = v_turn THEN 'resuming'
                    ELSE 'continue'
                END;
            ELSIF EXISTS (
                SELECT FROM {tombstone} d WHERE d.identity = p_resume AND d.until > v_now
            ) THEN
                outcome := 'deleted';
            ELSIF EXISTS (SELECT FROM {park} k WHERE k.identity = p_resume) THEN
                outcome := 'other_session';
            ELSIF NOT p_adopt THEN
                outcome := 'unknown';
            END IF;
        END IF;
        IF outcome = 'begin' AND p_key IS NOT NULL THEN
            SELECT t.turn, t.state, t.input_digest, EXISTS (
                    SELECT FROM {park} k
                    WHERE k.session_id = p_session AND k.turn = t.turn AND k.open
                ) AS waits
                INTO v_earlier FROM {turn} t
                WHERE t.session_id = p_session AND t.idempotency_key = p_key
                    AND t.state <> 'replaced'
                ORDER BY t.turn DESC LIMIT 1;
            IF FOUND THEN
                v_turn := v_earlier.turn;
                outcome := CASE
                    WHEN v_earlier.input_digest <> p_digest THEN 'other_input'
                    WHEN v_earlier.state = 'running' AND v_held
                        AND v_session.leased_turn = v_turn THEN 'in_progress'
                    WHEN v_earlier.state = 'completed' THEN 'done'
                    WHEN v_earlier.state = 'awaiting_approval' OR v_earlier.waits
                        THEN 'awaiting_approval'
                    ELSE 'retry'
                END;
            END IF;
        END IF;
        IF outcome IN ('begin', 'continue', 'retry') AND v_held THEN
            outcome := 'busy';
            v_turn := v_session.leased_turn;
        ELSIF outcome IN ('begin', 'continue', 'retry') AND p_token IS NOT NULL
            AND {others_before}(p_session, p_ticket, v_now)
        THEN
            outcome := 'busy';
            v_turn := NULL;
        END IF;
        turn := v_turn;
        IF outcome = 'busy' AND p_ticket IS NOT NULL THEN
            PERFORM {show_ticket}(p_session, p_ticket, v_now);
        END IF;
        IF outcome IN ('busy', 'in_progress', 'resuming') AND v_turn IS NOT NULL THEN
            SELECT t.started_at INTO since FROM {turn} t
                WHERE t.session_id = p_session AND t.turn = v_turn;
            until := v_session.lease_until;
            retry_after := extract(epoch FROM until - v_now);
        ELSIF outcome IN ('done', 'awaiting_approval', 'resumed') THEN
            items := ARRAY(SELECT i.item FROM {item} i
                WHERE i.session_id = p_session AND i.turn = v_turn ORDER BY i.run, i.position);
        END IF;
        IF p_token IS NULL OR outcome NOT IN ('begin', 'continue', 'retry') THEN
            RETURN;
        END IF;
        EXIT WHEN v_found;
        INSERT INTO {session} (session_id) VALUES (p_session) ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;

    IF v_session.token = p_token THEN  -- an earlier try of this request was not answered
        v_turn := v_session.leased_turn;
        outcome := v_session.leased_as;
        p_read := false;
    ELSE
        IF v_session.token IS NOT NULL
            AND NOT (outcome = 'retry' AND v_session.leased_turn = v_turn)
        THEN
            took_over := v_session.leased_turn;
            UPDATE {turn} t SET state = 'abandoned', ended_at = p_started_at
                WHERE t.session_id = p_session AND t.turn = v_session.leased_turn
                    AND t.state = 'running';
        END IF;
        IF outcome = 'continue' THEN
            UPDATE {turn} t SET state = 'running', ended_at = NULL,
                    otel_trace_id = coalesce(p_trace, t.otel_trace_id)
                WHERE t.session_id = p_session AND t.turn = v_turn;
        ELSE
            INSERT INTO {turn} AS t
                    (session_id, turn, state, started_at, idempotency_key, input_digest,
                    otel_trace_id)
                SELECT p_session, 1 + coalesce(max(o.turn), 0), 'running', p_started_at, p_key,
                    p_digest, p_trace
                FROM {turn} o WHERE o.session_id = p_session
                RETURNING t.turn INTO turn;
            IF outcome = 'retry' THEN
                PERFORM {move}(p_session, v_turn, turn);
                UPDATE {turn} t
                    SET state = 'replaced', ended_at = coalesce(t.ended_at, p_started_at)
                    WHERE t.session_id = p_session AND t.turn = v_turn;
            END IF;
            v_turn := turn;
        END IF;
    END IF;

    IF p_ticket IS NOT NULL THEN
        DELETE FROM {ticket} w WHERE w.session_id = p_session AND w.ticket = p_ticket;
    END IF;
    turn := v_turn;
    v_stored := outcome = 'begin' AND p_run IS NOT NULL;
    stored := v_stored;
    fence := nextval('{fence}');
    UPDATE {session} s SET
        token = p_token,
        leased_turn = v_turn,
        leased_as = outcome,
        lease_until = clock_timestamp() + p_lease * interval '1 second',
        lease_seconds = p_lease,
        opened = v_stored AND (s.created_at IS NULL
            OR s.opened AND s.token IS NOT DISTINCT FROM p_token),
        created_at = CASE WHEN v_stored
            THEN coalesce(s.created_at, clock_timestamp()) ELSE s.created_at END,
        updated_at = CASE WHEN v_stored THEN clock_timestamp() ELSE s.updated_at END
        WHERE s.session_id = p_session;
    IF outcome = 'begin' THEN
        IF p_read THEN
            SELECT l.turns, l.counts, l.joined, l.texts, l.complete, l.first_turn
                INTO turns, counts, joined, texts, complete, first_turn
                FROM {load}(p_session, p_window, p_n, p_step, -1, '{}', p_each) l;
        END IF;
        IF v_stored THEN
            PERFORM {store}(p_session, v_turn, p_run, p_position, p_run_digest, 'running', false,
                p_input);
        END IF;
        next_run := 1 + coalesce(p_run, 0);
        RETURN;
    END IF;
    SELECT 1 + coalesce(max(r.run), 0) INTO next_run FROM {run} r
        WHERE r.session_id = p_session AND r.turn = v_turn;
    journal := {calls}(p_session, v_turn);
    IF outcome = 'continue' THEN
        SELECT t.manifest INTO manifest FROM {turn} t
            WHERE t.session_id = p_session AND t.turn = v_turn;
    END IF;
    IF outcome = 'retry' THEN
        SELECT array_agg(c.run ORDER BY c.run), array_agg(c.input_digest ORDER BY c.run),
            array_agg(c.size ORDER BY c.run)
        INTO runs, digests, sizes
        FROM (
            SELECT r.run, r.input_digest, (SELECT count(*) FROM {item} i
                WHERE i.session_id = p_session AND i.turn = v_turn AND i.run = r.run) AS size
            FROM {run} r
            WHERE r.session_id = p_session AND r.turn = v_turn AND r.state <> 'replaced'
        ) c;
        items := ARRAY(SELECT i.item FROM {item} i
            WHERE i.session_id = p_session AND i.turn = v_turn AND i.run = ANY (runs)
            ORDER BY i.run, i.position);
    END IF;
END
$$
"""

FUNCTIONS = (_HELD, _MOVE, _ACQUIRE)

# --- statements ------------------------------------------------------------------------------

ACQUIRE = """
    SELECT * FROM {acquire}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
        $17, $18, $19)
"""
# A row that somebody writes to is left to the next renewal, so that no session waits for another.
# Loses nothing that matters when the server crashes: the lease ends a little earlier then.
RENEW = """
    WITH asynchronous AS MATERIALIZED (
        SELECT set_config('synchronous_commit', 'off', true)
    ), held AS MATERIALIZED (
        SELECT h.session_id, h.token FROM unnest($1::text[], $2::bigint[]) AS h (session_id, token),
            asynchronous
    ), there AS MATERIALIZED (
        SELECT s.session_id FROM {session} s JOIN held h USING (session_id, token)
        FOR UPDATE OF s SKIP LOCKED
    ), renewed AS (
        UPDATE {session} s
        SET lease_until = clock_timestamp() + $3::double precision * interval '1 second'
        FROM there WHERE s.session_id = there.session_id
    )
    SELECT h.token FROM held h LEFT JOIN {session} s USING (session_id)
    WHERE s.token IS DISTINCT FROM h.token
"""
RELEASE = """
    WITH freed AS (
        UPDATE {session} s SET token = NULL
        FROM (SELECT session_id, leased_turn FROM {session}
            WHERE session_id = $1 AND token IS NOT NULL FOR UPDATE) AS held
        WHERE s.session_id = held.session_id RETURNING held.session_id, held.leased_turn
    ), abandoned AS (
        UPDATE {turn} t SET state = 'abandoned', ended_at = clock_timestamp()
        FROM freed WHERE t.session_id = freed.session_id AND t.turn = freed.leased_turn
            AND t.state = 'running'
    )
    SELECT count(*) > 0 OR $2::boolean AS released, count({wake}(session_id)::text) FROM freed
"""
RELEASE_ALL = """
    WITH freed AS (
        UPDATE {session} s SET token = NULL
        FROM unnest($1::text[], $2::bigint[]) AS h (session_id, token)
        WHERE s.session_id = h.session_id AND s.token = h.token
        RETURNING s.session_id, s.leased_turn, h.token
    ), abandoned AS (
        UPDATE {turn} t SET state = 'abandoned', ended_at = clock_timestamp()
        FROM freed WHERE t.session_id = freed.session_id AND t.turn = freed.leased_turn
            AND t.state = 'running'
    )
    SELECT token, {wake}(session_id) FROM freed
"""


# --- what goes in, what comes out ------------------------------------------------------------


def arguments(request: AcquireRequest, token: int | None, lease: float) -> tuple[object, ...]:
    """What ACQUIRE takes; without a token nothing is acquired."""
    read, new = request.read, request.input
    window = reads.window_arguments(None if read is None else read.newest)
    return (
        request.session_id,
        token,
        lease,
        request.started_at,
        storable(request.idempotency_key),
        storable(request.input_digest),
        storable(request.resume),
        request.adopt,
        storable(request.otel_trace_id),
        request.ticket,
        read is not None,
        *window,
        read is not None and read.texts,
        *((None,) * 4 if new is None else (new.run, new.position, new.input_digest, new.texts)),
    )


def refusal(request: AcquireRequest, row: Mapping[str, Any]) -> Exception | None:
    """The error of an outcome that does not grant the session."""
    outcome = rules.Outcome(row["outcome"])
    if outcome.grants:
        return None
    obstacle = rules.Obstacle(
        request.session_id,
        turn=row["turn"],
        since=row["since"],
        until=row["until"],
        retry_after=row["retry_after"],
        items=reads.items_of(row["items"] or []),
    )
    return rules.refusal(outcome, obstacle)


def acquired(request: AcquireRequest, token: int, row: Mapping[str, Any]) -> Acquired:
    """What was acquired under this token."""
    outcome = rules.Outcome(row["outcome"])
    found = None
    if request.read is not None and row["complete"] is not None:
        found = reads.loaded(row)
    return Acquired(
        Lease(request.session_id, row["turn"], token, row["fence"]),
        next_run=row["next_run"],
        resumed=outcome is rules.Outcome.CONTINUE,
        carried=_carried(row["runs"], row["digests"], row["sizes"], row["items"]),
        loaded=found,
        stored=row["stored"],
        took_over=row["took_over"],
        manifest=None if row["manifest"] is None else json.loads(row["manifest"]),
        journal=reads.journal_of(row["journal"]),
    )


def _carried(
    runs: Sequence[int] | None,
    digests: Sequence[str | None] | None,
    sizes: Sequence[int] | None,
    texts: Sequence[str] | None,
) -> tuple[CarriedRun, ...]:
    carried, first = [], 0
    for run, digest, size in zip(runs or (), digests or (), sizes or (), strict=True):
        items = reads.items_of((texts or ())[first : first + size])
        carried.append(CarriedRun(run, digest, len(items), holds_output(items)))
        first += size
    return tuple(carried)
