"""How a turn ends in the database, with its calls and its parked runs.

SQL, and its arguments. The functions here are called by ``write``, after its fence, or have one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from session_middleware.stores.postgres.texts import storable, storable_value
from session_middleware.stores.records import JournalEntry, Lease, TurnEnd
from session_middleware.stores.sql import (
    END_COLUMNS,
    JOURNAL_COLUMNS,
    end_values,
    journal_values,
    kept_values,
)

# --- functions in the database ---------------------------------------------------------------

_AT_END = {
    "state": "CASE WHEN v_waits THEN 'awaiting_approval' ELSE e.state END",
    "output_text": "CASE WHEN NOT v_waits THEN e.output_text END",
    "sdk_trace_ids": "{joined_ids}(t.sdk_trace_ids::json, e.sdk_trace_ids::json)",
}
_SET_AT_END = ", ".join(f"{name} = {_AT_END.get(name, f'e.{name}')}" for name in END_COLUMNS)

_JOINED_IDS = """
CREATE FUNCTION {joined_ids}(p_earlier json, p_later json) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(json_agg(each.id ORDER BY each.nth)::text, '[]') FROM (
        SELECT both_.id, min(both_.nth) AS nth FROM (
            SELECT a.id, a.nth FROM json_array_elements_text(p_earlier) WITH ORDINALITY a (id, nth)
            UNION ALL
            SELECT b.id, b.nth + 4294967296
            FROM json_array_elements_text(p_later) WITH ORDINALITY b (id, nth)
        ) AS both_ GROUP BY both_.id
    ) AS each
$$
"""

_FINISH = f"""
CREATE FUNCTION {{finish}}(p_session text, p_turn bigint, p_token bigint, p_end json) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_waits boolean;
BEGIN
    PERFORM {{wake}}(p_session);
    IF (p_end ->> 'unlisted')::boolean THEN
        DELETE FROM {{turn}} t WHERE t.session_id = p_session AND t.turn = p_turn;
        DELETE FROM {{run}} r WHERE r.session_id = p_session AND r.turn = p_turn;
        DELETE FROM {{call}} c WHERE c.session_id = p_session AND c.turn = p_turn;
        RETURN;
    END IF;
    INSERT INTO {{run}} (session_id, turn, run, state)
        SELECT p_session, p_turn, e.key::bigint, e.value FROM json_each_text(p_end -> 'runs') e
        ON CONFLICT (session_id, turn, run) DO UPDATE SET state = excluded.state;
    IF (p_end ->> 'discard')::boolean THEN
        DELETE FROM {{item}} i WHERE i.session_id = p_session AND i.turn = p_turn;
        PERFORM {{bury}}(ARRAY[p_session], ARRAY[p_turn]);
    END IF;
    IF p_end -> 'journal' IS NOT NULL THEN
        DELETE FROM {{call}} c WHERE c.session_id = p_session AND c.turn = p_turn;
        PERFORM {{keep_calls}}(p_session, p_turn, p_end -> 'journal');
    END IF;
    IF p_end -> 'approvals' IS NOT NULL THEN
        PERFORM {{settle}}(p_session, p_turn, (p_end ->> 'ended_at')::timestamptz,
            p_end -> 'approvals');
    END IF;
    -- A turn is not over as long as another of its runs waits for approval.
    v_waits := p_end ->> 'state' = 'completed' AND EXISTS (
        SELECT FROM {{park}} k WHERE k.session_id = p_session AND k.turn = p_turn AND k.open
    );
    UPDATE {{turn}} t SET written_by = p_token, {_SET_AT_END}
        FROM json_populate_record(NULL::{{turn}}, p_end) AS e
        WHERE t.session_id = p_session AND t.turn = p_turn;
END
$$
"""  # noqa: S608 - of constants of this module and names of columns

_SETTLE = """
CREATE FUNCTION {settle}(
    p_session text, p_turn bigint, p_since timestamptz, p_approvals json
) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_each record;
BEGIN
    FOR v_each IN
        SELECT a.value ->> 0 AS alias, a.value ->> 1 AS identity
        FROM json_array_elements(p_approvals -> 'aliases') a
    LOOP
        INSERT INTO {park} (session_id, identity, turn, open, alias_of)
            SELECT p_session, v_each.alias, k.turn, true, coalesce(k.alias_of, k.identity)
            FROM {park} k WHERE k.session_id = p_session AND k.identity = v_each.identity
                AND k.identity <> v_each.alias
            ON CONFLICT (session_id, identity) DO NOTHING;
    END LOOP;
    UPDATE {park} k SET open = false, calls = NULL, state = NULL
        WHERE k.session_id = p_session AND coalesce(k.alias_of, k.identity) IN (
            SELECT coalesce(named.alias_of, named.identity)
            FROM json_array_elements_text(p_approvals -> 'settles') AS e (identity)
            JOIN {park} named ON named.session_id = p_session AND named.identity = e.identity
        );
    INSERT INTO {park} (session_id, identity, turn, open, since, calls, state)
        SELECT p_session, e.parked ->> 0, p_turn, true, p_since, e.parked ->> 1, e.parked ->> 2
        FROM json_array_elements(p_approvals -> 'park') AS e (parked)
        ON CONFLICT (session_id, identity) DO UPDATE SET
            turn = excluded.turn, open = true, alias_of = NULL, since = excluded.since,
            calls = excluded.calls, state = excluded.state;
END
$$
"""

# What was parked and is gone is remembered for a while, without a word of it.
_BURY = """
CREATE FUNCTION {bury}(p_sessions text[], p_turns bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    WITH gone AS (
        DELETE FROM {park} k WHERE k.session_id = ANY (p_sessions)
            AND (p_turns IS NULL OR k.turn = ANY (p_turns))
        RETURNING k.identity
    )
    INSERT INTO {tombstone} (identity, until)
        SELECT DISTINCT gone.identity, clock_timestamp() + interval '90 days' FROM gone
        ON CONFLICT (identity) DO UPDATE SET until = excluded.until;
    IF FOUND THEN
        DELETE FROM {tombstone} d WHERE d.until < clock_timestamp();
    END IF;
END
$$
"""

_CALL_VALUES = ", ".join(f"e.{name}" for name in JOURNAL_COLUMNS)
_CALL_CHANGES = ", ".join(f"{name} = excluded.{name}" for name in JOURNAL_COLUMNS)
_KEEP_CALLS = f"""
CREATE FUNCTION {{keep_calls}}(p_session text, p_turn bigint, p_entries json) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO {{call}} (session_id, turn, {", ".join(JOURNAL_COLUMNS)})
        SELECT p_session, p_turn, {_CALL_VALUES}
        FROM json_populate_recordset(NULL::{{call}}, p_entries) AS e
        ON CONFLICT (session_id, turn, run, place) DO UPDATE SET {_CALL_CHANGES}
$$
"""  # noqa: S608 - as above

_JOURNAL = """
CREATE FUNCTION {journal}(
    p_session text, p_turn bigint, p_token bigint, p_entries json, p_durable boolean
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF NOT p_durable THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    UPDATE {session} s SET token = s.token WHERE s.session_id = p_session AND s.token = p_token;
    IF NOT FOUND THEN
        RETURN 'lost';
    END IF;
    PERFORM {keep_calls}(p_session, p_turn, p_entries);
    RETURN 'stored';
END
$$
"""

FUNCTIONS = (_JOINED_IDS, _KEEP_CALLS, _BURY, _SETTLE, _FINISH, _JOURNAL)

# --- statements ------------------------------------------------------------------------------

JOURNAL = "SELECT {journal}($1, $2, $3, $4, $5) AS outcome"


# --- what goes in ----------------------------------------------------------------------------


def end_as_json(end: TurnEnd) -> str:
    """What ``write`` takes as the end of a turn."""
    made = {name: storable_value(value) for name, value in end_values(end).items()}
    made |= {"runs": end.runs, "discard": end.discard, "unlisted": end.unlisted}
    if end.journal is not None:
        made["journal"] = [_entry(entry) for entry in end.journal]
    if end.park or end.settles or end.aliases:
        kept = {state.identity: state for state in end.states}
        made["approvals"] = {
            "park": [
                [storable_value(value) for value in (each, *kept_values(kept.get(each)))]
                for each in end.park
            ],
            "settles": [storable(identity) for identity in end.settles],
            "aliases": [[storable(name) for name in alias] for alias in end.aliases],
        }
    return json.dumps(made, ensure_ascii=False)


def journal_arguments(
    lease: Lease, entries: Sequence[JournalEntry], durable: bool
) -> tuple[object, ...]:
    """What JOURNAL takes."""
    texts = json.dumps([_entry(entry) for entry in entries], ensure_ascii=False)
    return (lease.session_id, lease.turn, lease.token, texts, durable)


def _entry(entry: JournalEntry) -> dict[str, Any]:
    return {name: storable_value(value) for name, value in journal_values(entry).items()}
