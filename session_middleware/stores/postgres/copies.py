"""Copying sessions in PostgreSQL: all turns of one, read and written.

SQL, its arguments, and what its rows come to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from session_middleware.stores.managed_store import ParkedCopy, RunCopy, SessionInfo, TurnCopy
from session_middleware.stores.postgres.reads import journal_of
from session_middleware.stores.postgres.texts import (
    readable,
    readable_value,
    storable,
    storable_value,
)
from session_middleware.stores.records import Lease
from session_middleware.stores.sql import RECORD_COLUMNS, journal_values, record_of
from session_middleware.stores.sql_copies import (
    PARKED_COLUMNS,
    parked_of,
    parked_values,
    turn_values,
)

# --- function in the database ----------------------------------------------------------------

# The fence counter is raised with room to spare: leases are granted while it is. Of two who
# raise it one waits for the other, by the row of the layout.
_PUT_COPIES = """
CREATE FUNCTION {put_copies}(
    p_session text, p_token bigint,
    p_created timestamptz, p_updated timestamptz, p_title text, p_metadata text,
    p_turns json, p_runs json, p_calls json, p_parked json,
    p_item_turns bigint[], p_item_runs bigint[], p_items text[],
    p_fence bigint,
    p_again boolean         -- an earlier try was not answered
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE {session} s SET token = NULL, opened = false, created_at = p_created,
            updated_at = p_updated, title = p_title, metadata = p_metadata
        WHERE s.session_id = p_session AND s.token = p_token;
    IF NOT FOUND THEN
        RETURN CASE WHEN p_again AND EXISTS (
            SELECT FROM {session} s WHERE s.session_id = p_session AND s.token IS NULL
                AND s.created_at = p_created AND s.updated_at = p_updated
        ) THEN 'stored' ELSE 'lost' END;
    END IF;
    PERFORM {wake}(p_session);
    PERFORM {bury}(ARRAY[p_session], NULL);
    DELETE FROM {item} i WHERE i.session_id = p_session;
    DELETE FROM {call} c WHERE c.session_id = p_session;
    DELETE FROM {run} r WHERE r.session_id = p_session;
    DELETE FROM {turn} t WHERE t.session_id = p_session;
    INSERT INTO {turn} SELECT t.* FROM json_populate_recordset(NULL::{turn}, p_turns) AS t;
    INSERT INTO {run} SELECT r.* FROM json_populate_recordset(NULL::{run}, p_runs) AS r;
    INSERT INTO {call} SELECT c.* FROM json_populate_recordset(NULL::{call}, p_calls) AS c;
    INSERT INTO {park} SELECT k.* FROM json_populate_recordset(NULL::{park}, p_parked) AS k;
    INSERT INTO {item} (session_id, turn, run, position, item)
        SELECT p_session, n.turn, n.run,
            row_number() OVER (PARTITION BY n.turn, n.run ORDER BY n.nth) - 1, n.item
        FROM unnest(p_item_turns, p_item_runs, p_items)
            WITH ORDINALITY AS n (turn, run, item, nth);
    IF p_fence > (SELECT f.last_value FROM {fence} f) THEN
        PERFORM FROM {layout} FOR UPDATE;
        PERFORM setval('{fence}', p_fence + 1000000) FROM {fence} f WHERE f.last_value < p_fence;
    END IF;
    RETURN 'stored';
END
$$
"""

FUNCTIONS = (_PUT_COPIES,)

# --- statements ------------------------------------------------------------------------------

COPIES = """
    SELECT t.*,
        (SELECT json_agg(r ORDER BY r.run) FROM {run} r
            WHERE r.session_id = t.session_id AND r.turn = t.turn) AS runs,
        ARRAY(SELECT i.run FROM {item} i WHERE i.session_id = t.session_id AND i.turn = t.turn
            ORDER BY i.run, i.position) AS item_runs,
        ARRAY(SELECT i.item FROM {item} i WHERE i.session_id = t.session_id AND i.turn = t.turn
            ORDER BY i.run, i.position) AS items,
        {calls}(t.session_id, t.turn) AS journal,
        (SELECT json_agg(k ORDER BY k.identity) FROM {park} k
            WHERE k.session_id = t.session_id AND k.turn = t.turn) AS parked
    FROM {turn} t WHERE t.session_id = $1 AND t.turn > $2 ORDER BY t.turn LIMIT $3
"""
PUT_COPIES = """
    SELECT {put_copies}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        AS outcome
"""
NEWEST_FENCE = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM {fence}"


# --- what comes out, what goes in ------------------------------------------------------------


def copy(row: Mapping[str, Any]) -> TurnCopy:
    """The turn of a row of COPIES."""
    runs = json.loads(row["runs"] or "[]")
    texts: dict[int, list[str]] = {}
    for run, text in zip(row["item_runs"], row["items"], strict=True):
        texts.setdefault(run, []).append(text)
    columns = {name: readable_value(row[name]) for name in RECORD_COLUMNS}
    return TurnCopy(
        record_of(row["session_id"], columns, runs=len(runs), items=[]),
        readable(row["input_digest"]),
        tuple(
            RunCopy(
                run["run"],
                run["state"],
                readable(run["input_digest"]),
                tuple(texts.get(run["run"], ())),
            )
            for run in runs
        ),
        journal_of(row["journal"]),
        tuple(_parked(each) for each in json.loads(row["parked"] or "[]")),
    )


def _parked(row: Mapping[str, Any]) -> ParkedCopy:
    return parked_of({name: readable_value(row[name]) for name in PARKED_COLUMNS})


def put_arguments(
    lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
) -> tuple[object, ...]:
    """What PUT_COPIES takes, but for its last argument."""
    of_session = {"session_id": lease.session_id}
    texts = [
        (copy.record.turn, run.run, text)
        for copy in turns
        for run in copy.runs
        for text in run.texts
    ]
    return (
        lease.session_id,
        lease.token,
        info.created_at,
        info.updated_at,
        storable(info.title),
        json.dumps(info.metadata) if info.metadata else None,
        _rows({**of_session, **turn_values(copy), "written_by": lease.token} for copy in turns),
        _rows(
            {
                **of_session,
                "turn": copy.record.turn,
                "run": run.run,
                "state": run.state,
                "input_digest": run.input_digest,
            }
            for copy in turns
            for run in copy.runs
        ),
        _rows(
            {**of_session, "turn": copy.record.turn, **journal_values(entry)}
            for copy in turns
            for entry in copy.journal
        ),
        _rows(
            {**of_session, **parked_values(copy.record.turn, parked)}
            for copy in turns
            for parked in copy.parked
        ),
        [turn for turn, _, _ in texts],
        [run for _, run, _ in texts],
        [text for _, _, text in texts],
        fence,
    )


def _rows(rows: Iterable[Mapping[str, Any]]) -> str:
    stored = [{name: storable_value(value) for name, value in row.items()} for row in rows]
    return json.dumps(stored, ensure_ascii=False)
