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
from session_middleware.stores import _sqlite_migration as migration

OLDEST_SQLITE = (3, 37)

APPLICATION_ID = 0x53455353  # "SESS"
VERSION = 1
"""The layout that this code writes, as the file's ``user_version``."""

READABLE_FROM = 1
"""The oldest code, by its VERSION, that may go on using a file of this layout."""

_TABLES = (
    """
    CREATE TABLE session (
        key INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, unlike the id
        session_id TEXT NOT NULL UNIQUE,
        token INTEGER,         -- who may write; NULL: nobody holds the session
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

FLUSH = f"PRAGMA application_id = {APPLICATION_ID}"
"""Writes a page and changes nothing: committed, it takes to the disk what was before it.

An UPDATE that leaves a row as it is would not do: no page of it is written.
"""

_NAMES = {"session", "turn", "run", "item", "park", "layout"}


def _forget(key: str) -> str:
    """Statements that remove everything of the session with this key, but for its row."""
    return "".join(
        f"DELETE FROM {table} WHERE session = {key};"  # noqa: S608 - names of this module
        for table in ("item", "run", "turn", "park")
    )


# A flat history is split as history.split does it: a user message that follows an item of
# another kind begins a turn. json_each hands scalars over without their quotes.
_SPLIT_FLAT = """
    INSERT INTO item (session, turn, run, position, item)
    SELECT NEW.key, turn, 1, row_number() OVER (PARTITION BY turn ORDER BY place) - 1, text
    FROM (
        SELECT place, text, sum(begins) OVER (ORDER BY place) AS turn
        FROM (
            SELECT place, text,
                place = 0 OR (is_user AND NOT lag(is_user) OVER (ORDER BY place)) AS begins
            FROM (
                SELECT key AS place,
                    CASE type
                        WHEN 'text' THEN json_quote(value)
                        WHEN 'true' THEN 'true'
                        WHEN 'false' THEN 'false'
                        WHEN 'null' THEN 'null'
                        ELSE value
                    END AS text,
                    CASE WHEN type = 'object' THEN
                        coalesce(json_extract(value, '$.role') = 'user', 0)
                        AND coalesce(json_extract(value, '$.type'), 'message') = 'message'
                    ELSE 0 END AS is_user
                FROM json_each(NEW.flat)
            )
        )
    );
    INSERT INTO run (session, turn, run, state)
    SELECT DISTINCT NEW.key, turn, 1, 'completed' FROM item WHERE session = NEW.key;
    INSERT INTO turn (session, turn, state, started_at, ended_at)
    SELECT session, turn, 'completed',
        strftime('%Y-%m-%d %H:%M:%f+00:00', 'now'), strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')
    FROM run WHERE session = NEW.key;
    UPDATE session SET flat = NULL, supplanted = NULL WHERE key = NEW.key;
"""

_REFUSE_BAD_ROW = """
    SELECT RAISE(ABORT, 'session_id must not be NULL') WHERE NEW.session_id IS NULL;
    SELECT RAISE(ABORT, 'conversation_history must be a JSON array') WHERE
        CASE WHEN json_valid(NEW.conversation_history)
            THEN json_type(NEW.conversation_history) <> 'array' ELSE 1 END;
"""

# A row that only carries a lease cannot be seen through the view, and must not be in the way.
_DROP_UNSEEN = "DELETE FROM session WHERE session_id = NEW.session_id AND created_at IS NULL"

# The view shows what is stored, character for character. Only a text that is no JSON, which a
# migrated table may have had, is shown as a string, so that the column is always a JSON array.
_VIEW = (
    f"""
    CREATE TRIGGER session_deleted AFTER DELETE ON session BEGIN {_forget("OLD.key")} END
    """,
    f"""
    CREATE TRIGGER session_written_flat AFTER INSERT ON session WHEN NEW.flat IS NOT NULL BEGIN
        {_forget("NEW.supplanted")}
        {_SPLIT_FLAT}
    END
    """,
    f"""
    CREATE TRIGGER session_rewritten_flat AFTER UPDATE OF flat ON session
    WHEN NEW.flat IS NOT NULL BEGIN
        {_forget("NEW.key")}
        {_SPLIT_FLAT}
    END
    """,
    f"""
    CREATE TRIGGER session_renamed AFTER UPDATE OF session_id ON session
    WHEN NEW.supplanted IS NOT NULL BEGIN
        {_forget("NEW.supplanted")}
        UPDATE session SET supplanted = NULL WHERE key = NEW.key;
    END
    """,  # noqa: S608 - of constants of this module
    """
    CREATE VIEW sessions (session_id, conversation_history, created_at, updated_at) AS
    SELECT session_id,
        (SELECT '[' || coalesce(group_concat(text, ', '), '') || ']' FROM (
            SELECT CASE WHEN json_valid(item) THEN item ELSE json_quote(item) END AS text
            FROM item WHERE session = session.key ORDER BY turn, run, position
        )),
        created_at, updated_at
    FROM session WHERE created_at IS NOT NULL
    """,
    f"""
    CREATE TRIGGER sessions_insert INSTEAD OF INSERT ON sessions BEGIN
        {_REFUSE_BAD_ROW}
        {_DROP_UNSEEN};
        INSERT INTO session (session_id, flat, created_at, updated_at, supplanted)
        VALUES (NEW.session_id, NEW.conversation_history,
            coalesce(NEW.created_at, CURRENT_TIMESTAMP),
            coalesce(NEW.updated_at, CURRENT_TIMESTAMP),
            (SELECT key FROM session WHERE session_id = NEW.session_id));
    END
    """,  # noqa: S608 - as above
    f"""
    CREATE TRIGGER sessions_update INSTEAD OF UPDATE ON sessions BEGIN
        {_REFUSE_BAD_ROW}
        {_DROP_UNSEEN} AND session_id <> OLD.session_id;
        UPDATE session SET
            session_id = NEW.session_id,
            supplanted = (SELECT key FROM session
                WHERE session_id = NEW.session_id AND session_id <> OLD.session_id),
            flat = CASE WHEN NEW.conversation_history IS NOT OLD.conversation_history
                THEN NEW.conversation_history END,
            created_at = coalesce(NEW.created_at, created_at),
            updated_at = coalesce(NEW.updated_at, updated_at),
            token = NULL
        WHERE session_id = OLD.session_id;
        UPDATE turn SET state = 'abandoned',
            ended_at = strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')
        WHERE state = 'running' AND (session, turn) = (
            SELECT key, leased_turn FROM session
            WHERE session_id = NEW.session_id AND token IS NULL
        );
    END
    """,  # noqa: S608 - as above
    """
    CREATE TRIGGER sessions_delete INSTEAD OF DELETE ON sessions BEGIN
        DELETE FROM session WHERE session_id = OLD.session_id;
    END
    """,
)


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
        if version <= VERSION:
            return version == VERSION
        oldest = _number(connection, "SELECT readable_from FROM layout")
        if oldest <= VERSION:
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
    if "sessions" not in names:
        raise UnsupportedSchema(_not_ours(path, "it has another program's tables"))
    if not migration.is_seed_table(connection):
        raise UnsupportedSchema(_not_ours(path, "its table 'sessions' has another shape"))
    taken = names & _NAMES
    if taken:
        raise UnsupportedSchema(_not_ours(path, f"it has other tables named {sorted(taken)}"))
    return False


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
    if migration.is_seed_table(connection):
        migration.copy_seed_table(connection)
        connection.execute("DROP TABLE sessions")
    for statement in _VIEW:
        connection.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_begin_layout,)
"""What leads from each version of the layout to the next."""


def _not_ours(path: str, why: str) -> str:
    return f"{path} was left as it is, because {why}: give the memory a file of its own"


def _number(connection: sqlite3.Connection, statement: str) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0])
