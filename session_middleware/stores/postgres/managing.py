"""Listing sessions, removing them, and approvals in PostgreSQL, in the order of ``ManagedStore``.

SQL, its arguments, and what its rows come to. What changes a turn's session is fenced like any
write; what only labels it or notes a decision changes a row that is still as it was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from session_middleware.stores.cursors import Cursor
from session_middleware.stores.listing import info_of
from session_middleware.stores.managed_store import (
    EXCERPT,
    LONGEST_SHOWN,
    Order,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
)
from session_middleware.stores.numbers import MOST
from session_middleware.stores.postgres.ends import end_as_json
from session_middleware.stores.postgres.texts import (
    readable,
)
from session_middleware.stores.records import Lease, TurnEnd
from session_middleware.stores.sql import (
    calls_of,
    date_of,
    metadata_of,
    text_of,
)

# --- functions in the database ---------------------------------------------------------------

# Every trace of a turn. One that was parked has a trace for each of its parts.
_TRACES = """
CREATE FUNCTION {traces}(p_sdk text, p_otel text, p_manifest text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_found text[] := '{}';
BEGIN
    IF p_sdk <> '[]' THEN
        v_found := ARRAY(SELECT json_array_elements_text(p_sdk::json));
    END IF;
    IF p_otel IS NOT NULL THEN
        v_found := v_found || p_otel;
    END IF;
    IF p_manifest LIKE '%"trace_id"%"trace_id"%' THEN
        v_found := v_found || ARRAY(SELECT part ->> 'trace_id'
            FROM json_array_elements(p_manifest::json -> 'parts') AS parts (part)
            WHERE part ->> 'trace_id' IS NOT NULL);
    END IF;
    RETURN v_found;
END
$$
"""
_IS_TRACED = "(sdk_trace_ids <> '[]' OR otel_trace_id IS NOT NULL)"
TRACE_INDEX = f"""
CREATE INDEX {{turn_by_trace_name}} ON {{turn}}
    USING gin ({{traces}}(sdk_trace_ids, otel_trace_id, manifest)) WITH (fastupdate = off)
    WHERE {_IS_TRACED}
"""

_REMOVE_TURNS = """
CREATE FUNCTION {remove_turns}(
    p_session text, p_turn bigint, p_token bigint, p_turns bigint[], p_end json,
    p_again boolean
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF {write}(p_session, p_turn, p_token, '{}', '{}', '{}', '{}', '{}', '{}', '{}', p_end,
        p_again) = 'lost'
    THEN
        RETURN 'lost';
    END IF;
    DELETE FROM {item} i WHERE i.session_id = p_session AND i.turn = ANY (p_turns);
    PERFORM {bury}(ARRAY[p_session], p_turns);
    UPDATE {call} c SET item = NULL, output = NULL
        WHERE c.session_id = p_session AND c.turn = ANY (p_turns);
    UPDATE {turn} t SET output_text = NULL, state = CASE t.state
            WHEN 'awaiting_approval' THEN 'cancelled' ELSE t.state END
        WHERE t.session_id = p_session AND t.turn = ANY (p_turns);
    UPDATE {session} s SET updated_at = clock_timestamp() WHERE s.session_id = p_session;
    RETURN 'stored';
END
$$
"""

# The rows of the sessions are locked first, in one order, so that of two who delete the same
# neither waits for the other in turn; what is only deleted where it is idle waits for nobody.
# The statements after it see what a turn had written until then.
_DELETE_SESSIONS = """
CREATE FUNCTION {delete_sessions}(p_sessions text[], p_idle_since timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_gone text[];
    v_seen bigint;
BEGIN
    IF p_idle_since IS NULL THEN
        v_gone := ARRAY(SELECT s.session_id FROM {session} s
            WHERE s.session_id = ANY (p_sessions) ORDER BY s.session_id FOR UPDATE);
    ELSE
        v_gone := ARRAY(SELECT s.session_id FROM {session} s
            WHERE s.session_id = ANY (p_sessions) AND s.created_at IS NOT NULL
                AND s.updated_at <= p_idle_since AND NOT {held}(s, clock_timestamp())
            ORDER BY s.session_id FOR UPDATE SKIP LOCKED);
    END IF;
    WITH gone AS (
        DELETE FROM {session} s WHERE s.session_id = ANY (v_gone) RETURNING s.created_at
    )
    SELECT count(gone.created_at) INTO v_seen FROM gone;
    DELETE FROM {item} i WHERE i.session_id = ANY (v_gone);
    DELETE FROM {call} c WHERE c.session_id = ANY (v_gone);
    DELETE FROM {run} r WHERE r.session_id = ANY (v_gone);
    DELETE FROM {turn} t WHERE t.session_id = ANY (v_gone);
    PERFORM {bury}(v_gone, NULL);
    PERFORM {wake}(each.id) FROM unnest(v_gone) AS each (id);
    RETURN v_seen;
END
$$
"""

FUNCTIONS = (_TRACES, _REMOVE_TURNS, _DELETE_SESSIONS)

# --- statements ------------------------------------------------------------------------------

_SORTED_BY: dict[Order, str] = {
    "updated": "s.updated_at",
    "created": "s.created_at",
    "id": "s.session_id",
}
# An item that is too long to be looked into is not read.
_ITEM_AT = f"""
    (SELECT CASE WHEN octet_length(i.item) <= {4 * LONGEST_SHOWN} THEN i.item END FROM {{item}} i
        WHERE i.session_id = p.session_id ORDER BY i.turn %s, i.run %s, i.position %s LIMIT 1)
"""  # noqa: S608 - of a constant
_PAGE = f"""
    SELECT p.session_id, p.created_at, p.updated_at, p.title, p.metadata,
        (SELECT CASE WHEN t.state = 'running' AND NOT (p.is_held AND p.leased_turn = t.turn)
                THEN 'abandoned' ELSE t.state END
            FROM {{turn}} t WHERE t.session_id = p.session_id ORDER BY t.turn DESC LIMIT 1)
            AS state,
        (SELECT count(*) FROM {{turn}} t WHERE t.session_id = p.session_id) AS turns,
        stored.items, stored.size,
        {_ITEM_AT % ("", "", "")} AS first,
        {_ITEM_AT % ("DESC", "DESC", "DESC")} AS last,
        (SELECT CASE WHEN starts_with(t.output_text, E'\\x1bjson:') THEN t.output_text
                ELSE left(t.output_text, {EXCERPT}) END
            FROM {{turn}} t WHERE t.session_id = p.session_id AND t.output_text IS NOT NULL
            ORDER BY t.turn DESC LIMIT 1) AS answer
    FROM (
        SELECT s.*, {{held}}(s, clock_timestamp()) AS is_held FROM {{session}} s
        WHERE s.created_at IS NOT NULL %s ORDER BY %s LIMIT $1
    ) AS p, LATERAL (
        SELECT count(*) AS items, coalesce(sum(octet_length(i.item)), 0)::bigint AS size
        FROM {{item}} i WHERE i.session_id = p.session_id
    ) AS stored
    ORDER BY %s
"""  # noqa: S608 - of constants of this module
# Ids are ordered by code points, of which the last is greater than any that follows a prefix.
_BEGINS_WITH = "{0} >= {1} AND {0} < {1} || U&'\\+10FFFF' AND starts_with({0}, {1})"

LABELS = """
    SELECT title, metadata FROM {session} WHERE session_id = $1 AND created_at IS NOT NULL
"""
LABEL = """
    WITH labelled AS (
        UPDATE {session} SET title = $2, metadata = $3
        WHERE session_id = $1 AND created_at IS NOT NULL
            AND title IS NOT DISTINCT FROM $4 AND metadata IS NOT DISTINCT FROM $5
        RETURNING 1
    )
    SELECT count(*) > 0 AS labelled FROM labelled
"""
REMOVE_TURNS = "SELECT {remove_turns}($1, $2, $3, $4, $5, $6) AS outcome"
SERVER_TIME = "SELECT clock_timestamp() AS now"
DELETE_SESSIONS = "SELECT {delete_sessions}($1, $2) AS deleted"
FIND_TRACE = f"""
    SELECT session_id, turn FROM {{turn}}
    WHERE {{traces}}(sdk_trace_ids, otel_trace_id, manifest) @> ARRAY[$1::text] AND {_IS_TRACED}
    ORDER BY started_at DESC LIMIT 1
"""  # noqa: S608 - of constants of this module
_WAITING = """
    SELECT k.session_id, k.turn, k.identity, k.calls, k.state,
        coalesce(k.since, t.ended_at, t.started_at) AS since,
        coalesce(s.leased_turn = k.turn AND {held}(s, clock_timestamp()), false) AS at_work
    FROM {park} k JOIN {turn} t USING (session_id, turn) LEFT JOIN {session} s USING (session_id)
    WHERE k.open AND k.alias_of IS NULL
"""
_PARKED_RUNS = """
    SELECT * FROM (%s) AS w WHERE NOT w.at_work
    ORDER BY w.since, w.session_id, w.turn, w.identity LIMIT $1
"""
PARKED_IN_TURN = f"{_WAITING} AND k.session_id = $1 AND k.turn = $2 ORDER BY k.identity"
DECIDE = """
    WITH decided AS (
        UPDATE {park} SET calls = $4
        WHERE session_id = $1 AND identity = $2 AND open
            AND (calls = $3 OR $5::boolean AND calls = $4)
        RETURNING 1
    )
    SELECT count(*) > 0 AS decided FROM decided
"""


# --- sessions --------------------------------------------------------------------------------


class _Arguments(list[Any]):
    """The arguments of a statement that is put together."""

    def place(self, value: object) -> str:
        """Add this argument; returns what stands for it in the statement."""
        self.append(value)
        return f"${len(self)}::{_TYPES[type(value)]}"


_TYPES: dict[type, str] = {str: "text", int: "bigint", datetime: "timestamptz"}


def page(query: SessionQuery) -> tuple[str, list[Any]]:
    """The statement for a page of sessions, and its arguments."""
    sort = _SORTED_BY[query.order]
    where, arguments = "", _Arguments([min(query.limit, MOST)])
    if query.session_id is not None:
        where += f" AND s.session_id = {arguments.place(query.session_id)}"
    if query.idle_since is not None:
        where += f" AND s.updated_at <= {arguments.place(query.idle_since)}"
    if query.prefix is not None:
        where += f" AND {_BEGINS_WITH.format('s.session_id', arguments.place(query.prefix))}"
    if query.after is not None and query.order == "id":
        where += f" AND s.session_id > {arguments.place(query.after.session_id)}"
    elif query.after is not None:
        key = arguments.place(date_of(query.after.key))
        where += f" AND ({sort}, s.session_id) < ({key}, {arguments.place(query.after.session_id)})"
    order = f"{sort} DESC, s.session_id DESC"
    if query.order == "id":
        order = "s.session_id"
    elif query.prefix is not None:
        # No index has this order, so the ids' own is used: the sessions of one user may be few
        # among many.
        order = f"({sort}, s.session_id) DESC"
    return _PAGE % (where, order, order.replace("s.", "p.")), arguments


def info(row: Mapping[str, Any], order: Order) -> SessionInfo:
    """What a row of a page tells."""
    session_id = row["session_id"]
    key = {"updated": row["updated_at"], "created": row["created_at"], "id": None}[order]
    return info_of(
        session_id,
        created_at=date_of(row["created_at"]),
        updated_at=date_of(row["updated_at"]),
        turns=row["turns"],
        items=row["items"],
        size=row["size"],
        title=readable(row["title"]),
        metadata=metadata_of(row["metadata"]),
        state=row["state"],
        first=row["first"],
        last=row["last"],
        answer=readable(row["answer"]),
        cursor=Cursor(order, "" if key is None else text_of(key), session_id),
    )


# --- removing --------------------------------------------------------------------------------


def remove_arguments(lease: Lease, turns: Sequence[int], end: TurnEnd) -> tuple[object, ...]:
    """What REMOVE_TURNS takes, but for its last argument."""
    return (lease.session_id, lease.turn, lease.token, list(turns), end_as_json(end))


# --- approvals -------------------------------------------------------------------------------


def parked_runs(query: PendingQuery) -> tuple[str, list[Any]]:
    """The statement for runs that wait, and its arguments."""
    where, arguments = _WAITING, _Arguments([MOST if query.limit is None else query.limit])
    if query.session_id is not None:
        where += f" AND k.session_id = {arguments.place(query.session_id)}"
    if query.prefix is not None:
        where += f" AND {_BEGINS_WITH.format('k.session_id', arguments.place(query.prefix))}"
    return _PARKED_RUNS % where, arguments


def pending(row: Mapping[str, Any]) -> PendingTurn:
    """The run of a row of _PARKED_RUNS."""
    return PendingTurn(
        row["session_id"],
        row["turn"],
        date_of(row["since"]),
        calls_of(row["calls"]),
        readable(row["state"]),
        readable(row["identity"]) or "",
    )
