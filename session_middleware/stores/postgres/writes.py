"""What turns write, and what is written outside of them.

SQL, and its arguments. A fence is an UPDATE of the session's row under the token, and comes first:
it waits for whoever writes at that moment and then looks again, which EXISTS would not. A function
that is repeated after a broken connection is told so, and finds what its earlier try has done.
"""

from __future__ import annotations

from collections.abc import Sequence

from session_middleware.stores.postgres.ends import end_as_json
from session_middleware.stores.postgres.texts import storable
from session_middleware.stores.records import Lease, RunItems, TurnEnd

OTHER_ITEMS = "SM001"
"""The SQLSTATE of our own for items at a place that has others."""

# --- functions in the database ---------------------------------------------------------------

_STORE = """
CREATE FUNCTION {store}(
    p_session text, p_turn bigint, p_run bigint, p_position bigint, p_digest text, p_state text,
    p_instead boolean, p_texts text[]
) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_stored bigint;
BEGIN
    INSERT INTO {run} AS r (session_id, turn, run, state, input_digest)
        VALUES (p_session, p_turn, p_run, p_state, p_digest)
        ON CONFLICT (session_id, turn, run) DO UPDATE SET
            state = excluded.state, input_digest = coalesce(r.input_digest, excluded.input_digest);
    IF p_instead THEN
        DELETE FROM {item} i
            WHERE i.session_id = p_session AND i.turn = p_turn AND i.run = p_run;
    END IF;
    IF cardinality(p_texts) = 0 THEN
        RETURN;
    END IF;
    INSERT INTO {item} (session_id, turn, run, position, item)
        SELECT p_session, p_turn, p_run, p_position + n.nth - 1, n.text
        FROM unnest(p_texts) WITH ORDINALITY AS n (text, nth)
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS v_stored = ROW_COUNT;
    IF v_stored < cardinality(p_texts)
        AND NOT {is_stored}(p_session, p_turn, p_run, p_position, p_texts)
    THEN
        RAISE EXCEPTION 'run % of turn % has other items from %', p_run, p_turn, p_position
            USING ERRCODE = 'SM001';
    END IF;
END
$$
"""

_IS_STORED = """
CREATE FUNCTION {is_stored}(
    p_session text, p_turn bigint, p_run bigint, p_position bigint, p_texts text[]
) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM unnest(p_texts) WITH ORDINALITY AS n (text, nth)
        LEFT JOIN {item} i ON i.session_id = p_session AND i.turn = p_turn AND i.run = p_run
            AND i.position = p_position + n.nth - 1
        WHERE i.item IS DISTINCT FROM n.text
    )
$$
"""

_WRITE = """
CREATE FUNCTION {write}(
    p_session text, p_turn bigint, p_token bigint,
    p_runs bigint[], p_positions bigint[], p_counts bigint[], p_digests text[],
    p_instead boolean[], p_states text[], p_texts text[],
    p_end json,             -- NULL: the turn goes on
    p_again boolean         -- an earlier try was not answered
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_words boolean := p_end ->> 'output_text' IS NOT NULL;
    v_shows boolean := v_words OR cardinality(p_texts) > 0;
    v_removes boolean := coalesce((p_end ->> 'discard')::boolean, false);
    v_first bigint := 1;
BEGIN
    UPDATE {session} s SET
        token = CASE WHEN p_end IS NULL THEN s.token END,
        opened = s.opened OR v_shows AND s.created_at IS NULL,
        created_at = CASE WHEN v_shows
            THEN coalesce(s.created_at, clock_timestamp()) ELSE s.created_at END,
        updated_at = CASE WHEN v_shows THEN clock_timestamp() ELSE s.updated_at END
        WHERE s.session_id = p_session AND s.token = p_token;
    IF NOT FOUND THEN
        RETURN CASE WHEN p_again AND {was_written}(
            p_session, p_turn, p_token, p_runs, p_positions, p_counts, p_texts, p_end
        ) THEN 'stored' ELSE 'lost' END;
    END IF;
    FOR v_at IN 1 .. cardinality(p_runs) LOOP
        PERFORM {store}(p_session, p_turn, p_runs[v_at], p_positions[v_at], p_digests[v_at],
            p_states[v_at], p_instead[v_at], p_texts[v_first : v_first + p_counts[v_at] - 1]);
        v_first := v_first + p_counts[v_at];
        v_removes := v_removes OR p_instead[v_at] AND p_counts[v_at] = 0;
    END LOOP;
    IF p_end IS NOT NULL THEN
        PERFORM {finish}(p_session, p_turn, p_token, p_end);
    END IF;
    IF v_removes AND NOT v_words THEN
        UPDATE {session} s SET created_at = NULL, opened = false, title = NULL, metadata = NULL
            WHERE s.session_id = p_session AND s.opened
                AND NOT EXISTS (SELECT FROM {item} i WHERE i.session_id = p_session);
    END IF;
    RETURN 'stored';
END
$$
"""

# The end of a turn is known by the token that wrote it, an append by its place and its items.
_WAS_WRITTEN = """
CREATE FUNCTION {was_written}(
    p_session text, p_turn bigint, p_token bigint, p_runs bigint[], p_positions bigint[],
    p_counts bigint[], p_texts text[], p_end json
) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_first bigint := 1;
BEGIN
    IF (p_end ->> 'unlisted')::boolean THEN
        RETURN NOT EXISTS (
            SELECT FROM {turn} t WHERE t.session_id = p_session AND t.turn = p_turn
        );
    ELSIF p_end IS NOT NULL THEN
        RETURN EXISTS (SELECT FROM {turn} t WHERE t.session_id = p_session AND t.turn = p_turn
            AND t.written_by = p_token);
    END IF;
    FOR v_at IN 1 .. cardinality(p_runs) LOOP
        IF NOT {is_stored}(p_session, p_turn, p_runs[v_at], p_positions[v_at],
            p_texts[v_first : v_first + p_counts[v_at] - 1])
        THEN
            RETURN false;
        END IF;
        v_first := v_first + p_counts[v_at];
    END LOOP;
    RETURN v_first > 1;
END
$$
"""

_RETRY = """
CREATE FUNCTION {retry}(
    p_session text, p_turn bigint, p_token bigint, p_failed bigint, p_run bigint, p_kept bigint
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_digest text;
BEGIN
    UPDATE {session} s SET token = s.token WHERE s.session_id = p_session AND s.token = p_token;
    IF NOT FOUND THEN
        RETURN 'lost';
    END IF;
    SELECT r.input_digest INTO v_digest FROM {run} r
        WHERE r.session_id = p_session AND r.turn = p_turn AND r.run = p_failed;
    IF NOT FOUND THEN
        RETURN 'stored';
    END IF;
    INSERT INTO {item} (session_id, turn, run, position, item)
        SELECT p_session, p_turn, p_run, row_number() OVER (ORDER BY i.position) - 1, i.item
        FROM {item} i WHERE i.session_id = p_session AND i.turn = p_turn AND i.run = p_failed
        ORDER BY i.position LIMIT p_kept;
    DELETE FROM {item} i WHERE i.session_id = p_session AND i.turn = p_turn AND i.run = p_failed;
    UPDATE {run} r SET state = 'replaced'
        WHERE r.session_id = p_session AND r.turn = p_turn AND r.run = p_failed;
    INSERT INTO {run} AS r (session_id, turn, run, state, input_digest)
        VALUES (p_session, p_turn, p_run, 'running', v_digest)
        ON CONFLICT (session_id, turn, run) DO UPDATE SET
            input_digest = coalesce(r.input_digest, excluded.input_digest);
    RETURN 'stored';
END
$$
"""

_POP = """
CREATE FUNCTION {pop}(
    p_session text, p_token bigint, p_turn bigint, p_run bigint, p_position bigint,
    p_again boolean
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE {session} s SET updated_at = clock_timestamp()
        WHERE s.session_id = p_session AND s.token IS NOT DISTINCT FROM coalesce(p_token, s.token);
    IF NOT FOUND THEN
        RETURN CASE WHEN p_token IS NULL THEN 'gone' ELSE 'lost' END;
    END IF;
    DELETE FROM {item} i WHERE i.session_id = p_session AND i.turn = p_turn AND i.run = p_run
        AND i.position = p_position;
    RETURN CASE WHEN FOUND OR p_again THEN 'stored' ELSE 'gone' END;
END
$$
"""

_ADD_TURN = """
CREATE FUNCTION {add_turn}(p_session text, p_mark bigint, p_texts text[]) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_turn bigint;
BEGIN
    INSERT INTO {turn} AS t (session_id, turn, state, started_at, ended_at, written_by)
        SELECT p_session, 1 + coalesce(max(o.turn), 0), 'completed', clock_timestamp(),
            clock_timestamp(), p_mark
        FROM {turn} o WHERE o.session_id = p_session
        RETURNING t.turn INTO v_turn;
    PERFORM {store}(p_session, v_turn, 1, 0, NULL, 'completed', false, p_texts);
END
$$
"""

_OPEN = """
CREATE FUNCTION {open}(p_session text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO {session} AS s (session_id, created_at, updated_at)
        VALUES (p_session, clock_timestamp(), clock_timestamp())
        ON CONFLICT (session_id) DO UPDATE SET opened = false,
            created_at = coalesce(s.created_at, excluded.created_at),
            updated_at = excluded.updated_at
$$
"""

# p_mark is chosen by the client: a turn that was stored by an earlier try is known by it.
_APPEND_TURN = """
CREATE FUNCTION {append_turn}(p_session text, p_mark bigint, p_texts text[], p_again boolean)
RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM {open}(p_session);
    IF NOT p_again OR NOT EXISTS (
        SELECT FROM {turn} t WHERE t.session_id = p_session AND t.written_by = p_mark
    ) THEN
        PERFORM {add_turn}(p_session, p_mark, p_texts);
    END IF;
    RETURN 'stored';
END
$$
"""

# p_keep: another history comes in its place, so its date, title and metadata stay.
_FORGET = """
CREATE FUNCTION {forget}(p_session text, p_turn bigint, p_token bigint, p_keep boolean)
RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF p_token IS NULL AND NOT p_keep THEN
        DELETE FROM {session} s WHERE s.session_id = p_session;
    ELSE
        UPDATE {session} s SET
            token = p_token,
            opened = false,
            created_at = CASE WHEN p_keep THEN s.created_at END,
            title = CASE WHEN p_keep THEN s.title END,
            metadata = CASE WHEN p_keep THEN s.metadata END
            WHERE s.session_id = p_session AND (p_token IS NULL OR s.token = p_token);
        IF NOT FOUND AND p_token IS NOT NULL THEN
            RETURN 'lost';
        END IF;
    END IF;
    IF p_token IS NULL THEN
        PERFORM {wake}(p_session);
    END IF;
    DELETE FROM {item} i WHERE i.session_id = p_session;
    DELETE FROM {call} c WHERE c.session_id = p_session;
    PERFORM {bury}(ARRAY[p_session], NULL);
    DELETE FROM {run} r WHERE r.session_id = p_session AND (p_token IS NULL OR r.turn <> p_turn);
    DELETE FROM {turn} t WHERE t.session_id = p_session AND (p_token IS NULL OR t.turn <> p_turn);
    RETURN 'stored';
END
$$
"""

_REPLACE = """
CREATE FUNCTION {replace}(
    p_session text, p_turn bigint, p_token bigint, p_counts bigint[], p_texts text[]
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_first bigint := 1;
BEGIN
    IF {forget}(p_session, p_turn, p_token, true) = 'lost' THEN
        RETURN 'lost';
    END IF;
    IF p_token IS NOT NULL THEN
        UPDATE {session} s SET opened = true,
                created_at = coalesce(s.created_at, clock_timestamp()),
                updated_at = clock_timestamp()
            WHERE s.session_id = p_session;
        PERFORM {store}(p_session, p_turn, 0, 0, NULL, 'running', true, p_texts);
        RETURN 'stored';
    END IF;
    PERFORM {open}(p_session);
    FOR v_at IN 1 .. cardinality(p_counts) LOOP
        PERFORM {add_turn}(p_session, NULL, p_texts[v_first : v_first + p_counts[v_at] - 1]);
        v_first := v_first + p_counts[v_at];
    END LOOP;
    RETURN 'stored';
END
$$
"""

FUNCTIONS = (
    _IS_STORED,
    _STORE,
    _WAS_WRITTEN,
    _WRITE,
    _RETRY,
    _POP,
    _ADD_TURN,
    _OPEN,
    _APPEND_TURN,
    _FORGET,
    _REPLACE,
)

# --- statements ------------------------------------------------------------------------------

WRITE = """
    SELECT {write}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) AS outcome
"""
RUN_ITEMS = """
    SELECT item FROM {item} WHERE session_id = $1 AND turn = $2 AND run = $3 ORDER BY position
"""
RETRY = "SELECT {retry}($1, $2, $3, $4, $5, $6) AS outcome"
NEWEST = """
    SELECT turn, run, position, item FROM {item} WHERE session_id = $1
    ORDER BY turn DESC, run DESC, position DESC LIMIT 1 OFFSET $2
"""
POP = "SELECT {pop}($1, $2, $3, $4, $5, $6) AS outcome"
APPEND_TURN = "SELECT {append_turn}($1, $2, $3, $4) AS outcome"
REPLACE = "SELECT {replace}($1, $2, $3, $4, $5) AS outcome"
FORGET = "SELECT {forget}($1, $2, $3, false) AS outcome"


# --- what goes in ----------------------------------------------------------------------------


def write_arguments(
    lease: Lease, items: Sequence[RunItems], end: TurnEnd | None
) -> tuple[object, ...]:
    """What WRITE takes, but for its last argument."""
    states = {} if end is None else end.runs
    texts = items[0].texts if len(items) == 1 else [text for new in items for text in new.texts]
    return (
        lease.session_id,
        lease.turn,
        lease.token,
        [new.run for new in items],
        [new.position for new in items],
        [len(new.texts) for new in items],
        [storable(new.input_digest) for new in items],
        [new.instead for new in items],
        [states.get(new.run, "running") for new in items],
        texts,
        None if end is None else end_as_json(end),
    )


def replace_arguments(
    session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None
) -> tuple[object, ...]:
    """What REPLACE takes."""
    return (
        session_id,
        *lease_arguments(lease),
        [len(turn) for turn in turns],
        [text for turn in turns for text in turn],
    )


def lease_arguments(lease: Lease | None) -> tuple[int | None, int | None]:
    """Turn and token of a lease, or nothing."""
    return (None, None) if lease is None else (lease.turn, lease.token)
