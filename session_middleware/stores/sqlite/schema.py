"""What our SQLite files look like, and how a file becomes one of ours.

SQL and its order only: no queue, no event loop. ``sessions`` with its four columns is a promise
to people who read the file with other tools; here it is a view over the tables that turns need,
and can be written to as if it were the table. A file that is not ours is refused before anything
is written to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from session_middleware.errors import MemoryUnavailable, UnsupportedSchema
from session_middleware.stores.items import COMPACTION_MARK
from session_middleware.stores.sqlite import seed_table
from session_middleware.stores.sqlite.view import TRIGGERS, VIEW

OLDEST_SQLITE = (3, 37)

APPLICATION_ID = 0x53455353  # "SESS"
VERSION = 3
"""The layout that this code writes, as the file's ``user_version``."""

READABLE_FROM = 1
"""The oldest code, by its VERSION, that may go on using a file of this layout."""

_NOW = "CAST(strftime('%s', 'now') AS REAL)"

_TABLES = (
    """
    CREATE TABLE session (
        key INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, unlike the id
        session_id TEXT NOT NULL UNIQUE,
        token INTEGER,         -- of the lease; NULL: no turn holds the session
        leased_turn INTEGER,
        lease_until REAL,      -- seconds since 1970
        lease_seconds REAL,
        created_at TEXT,       -- NULL until something was stored or saved
        updated_at TEXT,
        flat TEXT,             -- a history written through the view, until it is split
        supplanted INTEGER     -- the key of the row that OR REPLACE removed for this one
    ) STRICT
    """,
    """
    CREATE TABLE turn (
        session INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        state TEXT NOT NULL,
        started_at TEXT NOT NULL,
        ended_at TEXT,
        agent TEXT,
        error_type TEXT,
        idempotency_key TEXT,
        input_digest TEXT,
        sdk_trace_ids TEXT NOT NULL DEFAULT '[]',
        otel_trace_id TEXT,
        usage TEXT,
        output_text TEXT,
        history_digest TEXT,
        PRIMARY KEY (session, turn)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE INDEX turn_by_idempotency_key ON turn (session, idempotency_key, turn)
    WHERE idempotency_key IS NOT NULL
    """,
    """
    CREATE TABLE run (
        session INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        run INTEGER NOT NULL,
        state TEXT NOT NULL,
        input_digest TEXT,
        PRIMARY KEY (session, turn, run)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE item (
        session INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        run INTEGER NOT NULL,
        position INTEGER NOT NULL,
        item TEXT NOT NULL,
        PRIMARY KEY (session, turn, run, position)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE park (
        identity TEXT NOT NULL,
        session INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        open INTEGER NOT NULL,
        PRIMARY KEY (identity, session)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX park_by_session ON park (session, turn)",
    "CREATE TABLE layout (readable_from INTEGER NOT NULL) STRICT",
)

# A turn's traces, so that a turn is found by any of them. Ids that nobody can read are left out.
_TRACES_OF = """
    SELECT value, session, turn FROM turn, json_each(
        CASE WHEN json_valid(sdk_trace_ids) THEN sdk_trace_ids ELSE '[]' END
    ) WHERE typeof(value) = 'text'
    UNION SELECT otel_trace_id, session, turn FROM turn WHERE otel_trace_id IS NOT NULL
"""
_TRACES_OF_NEW = """
    SELECT value, NEW.session, NEW.turn FROM json_each(
        CASE WHEN json_valid(NEW.sdk_trace_ids) THEN NEW.sdk_trace_ids ELSE '[]' END
    ) WHERE typeof(value) = 'text'
    UNION SELECT NEW.otel_trace_id, NEW.session, NEW.turn WHERE NEW.otel_trace_id IS NOT NULL
"""

_TABLES_2 = (
    """
    CREATE TABLE call (
        session INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        run INTEGER NOT NULL,
        place INTEGER NOT NULL,
        call_id TEXT,          -- NULL: an item that stands beside calls, such as reasoning
        name TEXT,
        key TEXT,
        state TEXT,
        started_at TEXT,
        ended_at TEXT,
        attempt INTEGER,
        item TEXT,             -- NULL once the item is stored
        output TEXT,
        PRIMARY KEY (session, turn, run, place)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE tombstone (
        identity TEXT PRIMARY KEY,
        until REAL NOT NULL    -- seconds since 1970
    ) STRICT, WITHOUT ROWID
    """,
    "ALTER TABLE park ADD COLUMN alias_of TEXT",
    "CREATE INDEX tombstone_by_time ON tombstone (until)",
    f"""
    CREATE TRIGGER parked_run_deleted AFTER DELETE ON park BEGIN
        DELETE FROM tombstone WHERE until < {_NOW};
        INSERT OR REPLACE INTO tombstone (identity, until)
        VALUES (OLD.identity, {_NOW} + 90 * 86400);
    END
    """,  # noqa: S608 - of a constant of this module
    """
    CREATE TRIGGER turn_deleted AFTER DELETE ON turn BEGIN
        DELETE FROM call WHERE session = OLD.session AND turn = OLD.turn;
    END
    """,
    # The number that the newest lease of the file got: no later one gets it again.
    "CREATE TABLE fence (key INTEGER PRIMARY KEY, last INTEGER NOT NULL) STRICT",
    "INSERT INTO fence (key, last) VALUES (1, 0)",
    "ALTER TABLE turn ADD COLUMN manifest TEXT",
    # The token of the lease whose writes alone make the session visible.
    "ALTER TABLE session ADD COLUMN opened INTEGER",
    # The lease once more, in the machine's clock: until when, in which boot, and of which token,
    # as a process of version 1 grants leases without it.
    "ALTER TABLE session ADD COLUMN lease_clock REAL",
    "ALTER TABLE session ADD COLUMN lease_boot INTEGER",
    "ALTER TABLE session ADD COLUMN clock_token INTEGER",
    # To find the newest item that stands for all before it, however long ago that was.
    f"CREATE INDEX item_compaction ON item (session, turn) WHERE instr(item, '{COMPACTION_MARK}')",
    "CREATE INDEX turn_awaiting_approval ON turn (ended_at) WHERE state = 'awaiting_approval'",
    # Who waits for a session, in the order of their numbers: see ``tickets``.
    """
    CREATE TABLE ticket (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        session_id TEXT NOT NULL,
        ticket INTEGER NOT NULL,
        shown_at REAL NOT NULL,  -- seconds since 1970
        UNIQUE (session_id, ticket)
    ) STRICT
    """,
)

_TABLES_3 = (
    "DROP VIEW sessions",
    *VIEW,
    "ALTER TABLE session ADD COLUMN title TEXT",
    "ALTER TABLE session ADD COLUMN metadata TEXT",  # a JSON object; NULL: an empty one
    "ALTER TABLE turn ADD COLUMN waited REAL",
    "ALTER TABLE park ADD COLUMN since TEXT",
    "ALTER TABLE park ADD COLUMN calls TEXT",  # those that wait, as JSON
    "ALTER TABLE park ADD COLUMN state TEXT",  # the parked run's, as the SDK writes it
    "CREATE INDEX park_waiting ON park (since) WHERE open AND alias_of IS NULL",
    """
    CREATE INDEX session_by_update ON session (updated_at, session_id)
    WHERE created_at IS NOT NULL
    """,
    """
    CREATE INDEX session_by_creation ON session (created_at, session_id)
    WHERE created_at IS NOT NULL
    """,
    """
    CREATE TABLE trace (
        trace_id TEXT NOT NULL,
        session INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        PRIMARY KEY (trace_id, session, turn)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX trace_by_turn ON trace (session, turn)",
    f"INSERT OR IGNORE INTO trace {_TRACES_OF}",
    f"""
    CREATE TRIGGER turn_traced AFTER INSERT ON turn
    WHEN NEW.otel_trace_id IS NOT NULL OR NEW.sdk_trace_ids <> '[]' BEGIN
        INSERT OR IGNORE INTO trace {_TRACES_OF_NEW};
    END
    """,
    f"""
    CREATE TRIGGER turn_traced_again AFTER UPDATE OF otel_trace_id, sdk_trace_ids ON turn
    WHEN NEW.otel_trace_id IS NOT OLD.otel_trace_id OR NEW.sdk_trace_ids <> OLD.sdk_trace_ids BEGIN
        INSERT OR IGNORE INTO trace {_TRACES_OF_NEW};
    END
    """,
    """
    CREATE TRIGGER turn_untraced AFTER DELETE ON turn BEGIN
        DELETE FROM trace WHERE session = OLD.session AND turn = OLD.turn;
    END
    """,
)

FLUSH = f"PRAGMA application_id = {APPLICATION_ID}"
"""Writes a page and changes nothing: committed, it takes to the disk what was before it.

An UPDATE that leaves a row as it is would not do: no page of it is written.
"""

_NAMES_1 = {"session", "turn", "run", "item", "park", "layout"}
_NAMES = _NAMES_1 | {
    "call",
    "tombstone",
    "fence",
    "ticket",
    "trace",
}


def check_sqlite() -> None:
    """Refuse an SQLite that lacks what the layout uses.

    Raises:
        MemoryUnavailable: naming both versions.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        raise MemoryUnavailable(
            f"SQLite {needed} or newer is needed, and this Python has {sqlite3.sqlite_version}: "
            "use a newer Python build, or another memory"
        )


def is_ready(connection: sqlite3.Connection, path: str) -> bool:
    """Whether the file has our layout; False if it still has to get it. Only reads.

    Raises:
        UnsupportedSchema: the file is another program's, or of a version this code cannot use.
    """
    application_id = _number(connection, "PRAGMA application_id")
    version = _number(connection, "PRAGMA user_version")
    if application_id == APPLICATION_ID:
        _check_tables(connection, path, version)
        if version <= VERSION:
            return version == VERSION
        oldest = connection.execute("SELECT readable_from FROM layout").fetchone()
        if oldest is not None and oldest[0] <= VERSION:
            return True
        raise UnsupportedSchema(
            f"{path} was written by a newer version of session-middleware (layout {version}, "
            f"this one knows {VERSION}) and was left as it is: upgrade session-middleware"
        )
    if application_id != 0 or version != 0:
        raise UnsupportedSchema(_not_ours(path, "it belongs to another program"))
    names = {
        str(name).lower()
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    }
    if not names:
        return False
    if {"agent_sessions", "agent_messages"} <= names:
        raise UnsupportedSchema(
            f"{path} was left as it is: it is a file of the SDK's own SQLiteSession. Import it "
            "into another one: session-middleware import-sdk, or import_sdk_sessions(path, memory)"
        )
    if "sessions" not in names:
        raise UnsupportedSchema(_not_ours(path, "it has another program's tables"))
    if not seed_table.is_seed_table(connection):
        raise UnsupportedSchema(_not_ours(path, "its table 'sessions' has another shape"))
    clashes = names & _NAMES
    if clashes:
        raise UnsupportedSchema(_not_ours(path, f"it has other tables named {sorted(clashes)}"))
    return False


def _check_tables(connection: sqlite3.Connection, path: str, version: int) -> None:
    """Refuse a file of ours in which another program has replaced a table or the version."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    lacking = _NAMES_1 - {name for (name,) in tables}
    if lacking:
        raise UnsupportedSchema(
            f"{path} was left as it is: another program has removed its table {min(lacking)!r}. "
            "Restore it from a backup, or give the memory another file"
        )
    if version < 1:
        raise UnsupportedSchema(
            f"{path} was left as it is: another program has changed its user_version to {version}"
        )


def make_ready(connection: sqlite3.Connection) -> None:
    """Give the file our layout, in the transaction that is open; nothing in it is lost."""
    for migrate in MIGRATIONS[_number(connection, "PRAGMA user_version") :]:
        migrate(connection)
    connection.execute("DELETE FROM layout")
    connection.execute("INSERT INTO layout (readable_from) VALUES (?)", (READABLE_FROM,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _begin_layout(connection: sqlite3.Connection) -> None:
    """From an empty file, or one with the single table of four columns, to version 1."""
    for statement in _TABLES:
        connection.execute(statement)
    if seed_table.is_seed_table(connection):
        seed_table.copy_seed_table(connection)
        connection.execute("DROP TABLE sessions")
    for statement in (*TRIGGERS, *VIEW):
        connection.execute(statement)


def _fence_leases(connection: sqlite3.Connection) -> None:
    """From version 1 to 2."""
    for statement in _TABLES_2:
        connection.execute(statement)


def _list_sessions(connection: sqlite3.Connection) -> None:
    """From version 2 to 3."""
    for statement in _TABLES_3:
        connection.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _begin_layout,
    _fence_leases,
    _list_sessions,
)
"""What leads from each version of the layout to the next."""


def _not_ours(path: str, why: str) -> str:
    return f"{path} was left as it is, because {why}: give the memory a file of its own"


def _number(connection: sqlite3.Connection, statement: str) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0])
