"""What our tables look like, and how a database gets them.

SQL and its order only: who connects, and when, is elsewhere. Everything of a session carries its
id as the first column of the key, so that a table can be partitioned by hash of the session
without changing a statement. Texts are ``text``: ``jsonb`` would reorder the keys of an item and
refuse U+0000 in it.
"""

from __future__ import annotations

import re

from session_middleware.stores.postgres import (
    acquire,
    copies,
    ends,
    managing,
    reads,
    tickets,
    writes,
)
from session_middleware.stores.postgres.names import Names

_TABLES = (
    "CREATE TABLE {layout} (version integer NOT NULL, readable_from integer NOT NULL)",
    "CREATE SEQUENCE {fence}",
    """
    CREATE TABLE {session} (
        session_id text COLLATE "C" PRIMARY KEY,
        token bigint,           -- who may write; NULL: nobody holds the session
        leased_turn bigint,
        leased_as text,         -- how it was acquired: begin, continue or retry
        lease_until timestamptz,
        lease_seconds double precision,
        opened boolean NOT NULL DEFAULT false,  -- the newest lease alone made it visible
        created_at timestamptz, -- NULL until something was stored or saved
        updated_at timestamptz,
        title text,
        metadata text           -- a JSON object; NULL: an empty one
    ) WITH (fillfactor = 80)
    """,
    """
    CREATE INDEX {session_by_update_name} ON {session} (updated_at, session_id)
    WHERE created_at IS NOT NULL
    """,
    """
    CREATE INDEX {session_by_creation_name} ON {session} (created_at, session_id)
    WHERE created_at IS NOT NULL
    """,
    """
    CREATE TABLE {turn} (
        session_id text COLLATE "C" NOT NULL,
        turn bigint NOT NULL,
        state text NOT NULL,
        started_at timestamptz NOT NULL,
        ended_at timestamptz,
        agent text,
        error_type text,
        idempotency_key text,
        input_digest text,
        sdk_trace_ids text NOT NULL DEFAULT '[]',  -- a JSON array
        otel_trace_id text,
        usage text,             -- a JSON object
        output_text text,
        history_digest text,
        manifest text,          -- a JSON object
        waited double precision, -- seconds
        written_by bigint,      -- the token under which its end was written
        PRIMARY KEY (session_id, turn)
    )
    """,
    """
    CREATE INDEX {turn_by_key_name} ON {turn} (session_id, idempotency_key, turn)
    WHERE idempotency_key IS NOT NULL
    """,
    """
    CREATE TABLE {run} (
        session_id text COLLATE "C" NOT NULL,
        turn bigint NOT NULL,
        run bigint NOT NULL,
        state text NOT NULL,
        input_digest text,
        PRIMARY KEY (session_id, turn, run)
    )
    """,
    """
    CREATE TABLE {item} (
        session_id text COLLATE "C" NOT NULL,
        turn bigint NOT NULL,
        run bigint NOT NULL,
        position bigint NOT NULL,
        item text NOT NULL,     -- a JSON object, character for character as it came
        PRIMARY KEY (session_id, turn, run, position)
    )
    """,
    """
    CREATE TABLE {park} (
        session_id text COLLATE "C" NOT NULL,
        identity text NOT NULL,
        turn bigint NOT NULL,
        open boolean NOT NULL,  -- no resume of it has completed
        alias_of text,
        since timestamptz,      -- when it was parked
        calls text,             -- those that wait, a JSON array; NULL once it is settled
        state text,             -- the parked run as the SDK writes it; NULL likewise
        PRIMARY KEY (session_id, identity)
    )
    """,
    "CREATE INDEX {park_waiting_name} ON {park} (since) WHERE open AND alias_of IS NULL",
    "CREATE INDEX {park_by_identity_name} ON {park} (identity)",
    """
    CREATE INDEX {turn_waiting_name} ON {turn} (ended_at) WHERE state = 'awaiting_approval'
    """,
    """
    CREATE TABLE {call} (
        session_id text COLLATE "C" NOT NULL,
        turn bigint NOT NULL,
        run bigint NOT NULL,
        place bigint NOT NULL,
        call_id text,           -- NULL: an item that stands beside calls, such as reasoning
        name text,
        key text,
        state text,
        started_at timestamptz,
        ended_at timestamptz,
        attempt bigint,
        item text,              -- NULL once the item is stored
        output text,
        PRIMARY KEY (session_id, turn, run, place)
    )
    """,
    """
    CREATE TABLE {tombstone} (
        identity text PRIMARY KEY,  -- of a parked run whose session is gone
        until timestamptz NOT NULL
    )
    """,
    "CREATE INDEX {tombstone_by_time_name} ON {tombstone} (until)",
    "CREATE SEQUENCE {ticket_number}",
    """
    CREATE TABLE {ticket} (
        session_id text COLLATE "C" NOT NULL,
        ticket bigint NOT NULL,
        number bigint NOT NULL DEFAULT nextval('{ticket_number}'),
        shown_at timestamptz NOT NULL,
        PRIMARY KEY (session_id, ticket)
    )
    """,
    """
    CREATE VIEW {sessions} (session_id, conversation_history, created_at, updated_at) AS
    SELECT s.session_id,
        '[' || coalesce((SELECT string_agg(i.item, ', ' ORDER BY i.turn, i.run, i.position)
            FROM {item} i WHERE i.session_id = s.session_id), '') || ']',
        s.created_at, s.updated_at
    FROM {session} s WHERE s.created_at IS NOT NULL
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        *_TABLES,
        *reads.FUNCTIONS,
        *tickets.FUNCTIONS,
        *ends.FUNCTIONS,
        *writes.FUNCTIONS,
        *acquire.FUNCTIONS,
        *copies.FUNCTIONS,
        *managing.FUNCTIONS,
        managing.TRACE_INDEX,
        reads.COMPACTION_INDEX,
    ),
)
"""The statements that lead from each version of the layout to the next."""

VERSION = len(MIGRATIONS)
"""The layout that this code writes."""

READABLE_FROM = 1
"""The oldest code, by its VERSION, that may go on using a database of this layout."""

LAYOUT = "SELECT version, readable_from FROM {layout}"
# CREATE SCHEMA IF NOT EXISTS asks for the right to create one even where there is one.
_CREATE_SCHEMA = """
DO $$ BEGIN
    IF to_regnamespace('{schema}') IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;
END $$
"""
_NOTE_VERSION = "INSERT INTO {layout} (version, readable_from) VALUES (%d, %d)"


def steps(names: Names, version: int, partitions: int = 1) -> list[str]:
    """The statements that lead from this version to VERSION, to be run in one transaction.

    Args:
        partitions: so many parts have the tables of sessions that these statements make.
    """
    statements = [] if version else _first(names)
    for migration in MIGRATIONS[version:]:
        for statement in migration:
            statements += _in_parts(names, statement.strip(), partitions)
    statements.append(names.fill("DELETE FROM {layout}"))
    statements.append(names.fill(_NOTE_VERSION % (VERSION, READABLE_FROM)))
    return statements


def _first(names: Names) -> list[str]:
    return [] if names.schema == "public" else [names.fill(_CREATE_SCHEMA).strip()]


_OF_SESSIONS = re.compile(
    r"CREATE TABLE \{(?P<table>\w+)\} \(\s+session_id .*?\n    \)(?P<storage>.*)", re.DOTALL
)


def _in_parts(names: Names, statement: str, partitions: int) -> list[str]:
    """A statement; one that makes a table of sessions makes it by hash of the session."""
    made = _OF_SESSIONS.fullmatch(statement)
    if partitions == 1 or made is None:
        return [names.fill(statement)]
    whole = f"{statement.removesuffix(made['storage'])} PARTITION BY HASH (session_id)"
    statements = [names.fill(whole)]
    for part in range(partitions):
        name = names.of(f"{made['table']}_{part}")
        statements.append(
            f"CREATE TABLE {name} PARTITION OF {names.of(made['table'])} "
            f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {part}){made['storage']}"
        )
    return statements


def script(names: Names, version: int = 0, partitions: int = 1) -> str:
    """The same as a text for ``psql``, for whoever may change a database's tables."""
    statements = steps(names, version, partitions)
    return "\n".join(["BEGIN;", *(f"{step};" for step in statements), "COMMIT;", ""])
