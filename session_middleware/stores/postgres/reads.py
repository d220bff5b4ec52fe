"""What is read: histories, items, records, ids. One statement each.

SQL, and how its rows become records. Every statement finds its rows by session and in their
order, so with a window the cost depends on the window and not on the length of the history.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from session_middleware.history import LastItems, LastTurns, Turn, behind_compaction
from session_middleware.stores.items import COMPACTION_MARK, decode_items, decode_joined
from session_middleware.stores.managed_store import LONGEST_SHOWN, LOOKED_AT, NewestTurn
from session_middleware.stores.numbers import MOST, cut_window
from session_middleware.stores.postgres.texts import readable_value
from session_middleware.stores.records import Item, JournalEntry, Loaded, TurnRecord
from session_middleware.stores.sql import JOURNAL_COLUMNS, RECORD_COLUMNS, entry_of, record_of

# --- functions in the database ---------------------------------------------------------------

# An item in which this is may be a compaction item, or hold something that looks like one.
_COMPACTED = f"strpos(item, '{COMPACTION_MARK}') > 0"
COMPACTION_INDEX = (
    f"CREATE INDEX {{item_compacted_name}} ON {{item}} (session_id, turn) WHERE {_COMPACTED}"
)
COMPACTED_BEFORE = (
    "SELECT DISTINCT i.turn FROM {item} i "  # noqa: S608 - of constants of this module
    f"WHERE i.session_id = p_session AND i.turn < v_cut AND {_COMPACTED}"
)

# The items of a turn come as one text, which is decoded in one step. STABLE: all its statements
# see the same moment.
_LOAD = """
CREATE FUNCTION {load}(
    p_session text,
    p_window text,          -- 'turns', 'items', or NULL for the whole history
    p_n bigint,
    p_step bigint,
    p_hidden_turn bigint,   -- its p_hidden_runs are left out
    p_hidden_runs bigint[],
    p_each boolean,         -- each text for itself
    OUT turns bigint[],     -- the numbers of the turns, oldest first
    OUT counts bigint[],    -- how many items each has
    OUT joined bytea,       -- the items, with commas between them
    OUT texts text[],       -- the same, one by one
    OUT complete boolean,   -- nothing older is left out
    OUT first_turn bigint   -- of the window; older ones may hold the newest compaction item
)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_cut bigint := 0;      -- the first turn that is read
    v_newest bigint;
    v_compacted bigint[] := '{}';
BEGIN
    IF p_window IS NOT NULL AND p_n = 0 THEN
        v_cut := 9223372036854775807;
    ELSIF p_window = 'turns' THEN
        -- One seek for each turn: from a turn straight to the one before it.
        WITH RECURSIVE newest (turn, nth) AS (
            SELECT (SELECT i.turn FROM {item} i WHERE i.session_id = p_session
                AND NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
                ORDER BY i.turn DESC LIMIT 1), 1
            UNION ALL
            SELECT (SELECT i.turn FROM {item} i WHERE i.session_id = p_session
                AND i.turn < newest.turn
                AND NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
                ORDER BY i.turn DESC LIMIT 1), nth + 1
            FROM newest WHERE newest.turn IS NOT NULL AND nth < p_n
        )
        SELECT coalesce((SELECT turn - turn % p_step FROM newest WHERE nth = p_n), 0) INTO v_cut;
    ELSIF p_window = 'items' THEN
        SELECT i.turn INTO v_cut FROM {item} i WHERE i.session_id = p_session
            AND NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
            ORDER BY i.turn DESC, i.run DESC, i.position DESC LIMIT 1 OFFSET p_n;
        IF v_cut IS NULL THEN
            v_cut := 0;
        ELSE
            SELECT i.turn INTO v_newest FROM {item} i WHERE i.session_id = p_session
                AND NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
                ORDER BY i.turn DESC LIMIT 1;
            IF v_cut < v_newest THEN  -- the newest turn is never cut
                v_cut := v_cut + 1;
            END IF;
        END IF;
    END IF;
    IF v_cut > 0 AND p_n > 0 THEN
        v_compacted := ARRAY(
            $COMPACTED_BEFORE
                AND NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
            ORDER BY i.turn DESC LIMIT 3
        );
    END IF;
    SELECT array_agg(t.turn ORDER BY t.turn), array_agg(t.items ORDER BY t.turn),
        convert_to(string_agg(t.text, ',' ORDER BY t.turn), 'UTF8')
    INTO turns, counts, joined
    FROM (
        SELECT i.turn, count(*) AS items,
            CASE WHEN NOT p_each THEN string_agg(i.item, ',' ORDER BY i.run, i.position) END AS text
        FROM (
            SELECT i.* FROM {item} i WHERE i.session_id = p_session AND i.turn >= v_cut
            UNION ALL
            SELECT i.* FROM {item} i WHERE i.session_id = p_session AND i.turn = ANY (v_compacted)
        ) i WHERE NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
        GROUP BY i.turn
    ) t;
    IF p_each THEN
        texts := ARRAY(
            SELECT i.item FROM (
                SELECT i.* FROM {item} i WHERE i.session_id = p_session AND i.turn >= v_cut
                UNION ALL
                SELECT i.* FROM {item} i
                    WHERE i.session_id = p_session AND i.turn = ANY (v_compacted)
            ) i WHERE NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
            ORDER BY i.turn, i.run, i.position
        );
    END IF;
    complete := v_cut = 0 OR NOT EXISTS (
        SELECT FROM {item} i WHERE i.session_id = p_session AND i.turn < v_cut
            AND NOT (i.turn = p_hidden_turn AND i.run = ANY (p_hidden_runs))
    );
    first_turn := v_cut;
END
$$
""".replace("$COMPACTED_BEFORE", COMPACTED_BEFORE)

_CALLS = """
CREATE FUNCTION {calls}(p_session text, p_turn bigint) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT json_agg(c ORDER BY c.run, c.place) FROM {call} c
        WHERE c.session_id = p_session AND c.turn = p_turn
$$
"""

FUNCTIONS = (_LOAD, _CALLS)

# --- statements ------------------------------------------------------------------------------

LOAD_TURNS = "SELECT * FROM {load}($1, $2, $3, $4, $5, $6, $7)"
LOAD_ITEMS = """
    SELECT count(*) AS items, convert_to(string_agg(item, ',' ORDER BY turn, run, position), 'UTF8')
        AS joined
    FROM {item} WHERE session_id = $1
"""
NEWEST_ITEMS = """
    SELECT item FROM {item} WHERE session_id = $1 AND turn = coalesce($2, turn)
    ORDER BY turn DESC, run DESC, position DESC LIMIT $3 OFFSET $4
"""
_RECORD = """
    SELECT t.*,
        (SELECT count(*) FROM {run} r WHERE r.session_id = t.session_id AND r.turn = t.turn)
            AS runs,
        {calls}(t.session_id, t.turn) AS journal,
        t.state = 'running' AND NOT coalesce((
            SELECT s.leased_turn = t.turn AND {held}(s, clock_timestamp())
            FROM {session} s WHERE s.session_id = t.session_id
        ), false) AS is_dead,
"""
RECORDS = f"""
    {_RECORD}
        ARRAY(SELECT i.item FROM {{item}} i WHERE i.session_id = t.session_id AND i.turn = t.turn
            ORDER BY i.run, i.position) AS items
    FROM {{turn}} t WHERE t.session_id = $1 AND t.turn < $2 ORDER BY t.turn DESC LIMIT $3
"""  # noqa: S608 - of constants of this module
NEWEST_TURNS = f"""
    {_RECORD}
        ARRAY(SELECT i.item FROM (
            SELECT i.item FROM {{item}} i WHERE i.session_id = t.session_id
            ORDER BY i.turn DESC, i.run DESC, i.position DESC LIMIT {LOOKED_AT}
        ) i WHERE octet_length(i.item) <= {4 * LONGEST_SHOWN}) AS newest_items
    FROM unnest($1::text[]) AS wanted (id), LATERAL (
        SELECT * FROM {{turn}} t WHERE t.session_id = wanted.id ORDER BY t.turn DESC LIMIT 1
    ) t
"""  # noqa: S608 - as above
IDS = (
    "SELECT session_id FROM {session} WHERE created_at IS NOT NULL ORDER BY created_at, session_id"
)
PARKED = """
    SELECT count(*) AS parked, extract(epoch FROM min(ended_at))::double precision AS since
    FROM {turn} WHERE state = 'awaiting_approval'
"""
EXISTS = """
    SELECT EXISTS (SELECT FROM {session} WHERE session_id = $1 AND created_at IS NOT NULL) AS found
"""


# --- what goes in ----------------------------------------------------------------------------


def window_arguments(newest: LastTurns | LastItems | None) -> tuple[str | None, int, int]:
    """A window as ``load`` takes it: what it counts, how many, and in which steps it moves."""
    newest = cut_window(newest)
    if newest is None:
        return None, 0, 1
    if isinstance(newest, LastTurns):
        return "turns", newest.n, newest.step
    return "items", newest.n, 1


def load_arguments(
    session_id: str,
    newest: LastTurns | LastItems | None,
    hide: tuple[int, Collection[int]] | None,
    texts: bool,
) -> tuple[object, ...]:
    """What LOAD_TURNS takes."""
    turn, runs = hide or (-1, ())
    return (session_id, *window_arguments(newest), turn, list(runs), texts)


def at_most(limit: int | None) -> int:
    """The limit as PostgreSQL takes it."""
    return MOST if limit is None else max(limit, 0)


# --- what comes out --------------------------------------------------------------------------


def loaded(row: Mapping[str, Any]) -> Loaded | None:
    """The turns of a row of ``load``; None where each item must be looked at for itself."""
    numbers, counts = row["turns"] or [], row["counts"] or []
    corrupt = 0
    if row["texts"] is None:
        items = decode_joined(row["joined"], sum(counts))
        if items is None:
            return None
        turns = [Turn(number, items[a:b]) for number, (a, b) in _parts(numbers, counts)]
    else:
        turns, corrupt = _turns_one_by_one(numbers, counts, row["texts"])
    first = row["first_turn"]
    older = [turn for turn in turns if turn.turn < first]
    turns = behind_compaction(older, turns[len(older) :])
    return Loaded(turns, row["complete"], corrupt)


def _turns_one_by_one(
    numbers: Sequence[int], counts: Sequence[int], texts: list[str]
) -> tuple[list[Turn], int]:
    decoded, corrupt = decode_items(texts)
    turns = []
    for number, (first, after) in _parts(numbers, counts):
        pairs = zip(decoded[first:after], texts[first:after], strict=True)
        kept = [(item, text) for item, text in pairs if item is not None]
        if kept:
            turns.append(Turn(number, [item for item, _ in kept], [text for _, text in kept]))
    return turns, corrupt


def without_texts(found: Loaded) -> Loaded:
    """The same for somebody who did not ask for the texts."""
    turns = [Turn(turn.turn, turn.items) for turn in found.turns]
    return Loaded(turns, found.complete, found.corrupt)


def _parts(numbers: Sequence[int], counts: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """Where each turn's items begin and end in the list of all."""
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    return list(zip(numbers, pairwise(ends), strict=True))


def items_of(texts: Sequence[str]) -> list[Item]:
    """The items that can be read."""
    return [item for item in decode_items(texts)[0] if item is not None]


def newest_turn(row: Mapping[str, Any]) -> NewestTurn:
    """The newest turn of a row of NEWEST_TURNS."""
    return NewestTurn(_record(row, []), decode_items(row["newest_items"])[1])


def record(row: Mapping[str, Any]) -> TurnRecord:
    """The record of a row of RECORDS."""
    return _record(row, items_of(row["items"]))


def _record(row: Mapping[str, Any], items: list[Item]) -> TurnRecord:
    columns = {name: readable_value(row[name]) for name in RECORD_COLUMNS}
    if row["is_dead"]:
        columns["state"] = "abandoned"
    return record_of(
        row["session_id"],
        columns,
        runs=row["runs"],
        items=items,
        journal=journal_of(row["journal"]),
    )


def journal_of(text: str | None) -> tuple[JournalEntry, ...]:
    """The entries of a column that ``calls`` made."""
    rows = [] if text is None else json.loads(text)
    return tuple(
        entry_of({name: readable_value(row[name]) for name in JOURNAL_COLUMNS}) for row in rows
    )
