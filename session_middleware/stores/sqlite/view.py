"""The view ``sessions`` with its four columns, which can be written to as if it were the table.

SQL only. The view stands over the tables that turns need; ``schema`` makes both.
"""

from __future__ import annotations


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

# The storage tells moments to the millisecond or closer; the four columns tell them as
# CURRENT_TIMESTAMP does. A date that somebody else wrote is shown as it is.
_TO_THE_SECOND = """
    CASE WHEN {0} GLOB '????-??-?? ??:??:??.???' OR {0} GLOB '????-??-?? ??:??:??.??????'
        THEN substr({0}, 1, 19) ELSE {0} END AS {0}
"""

TRIGGERS = (
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
)
"""What keeps the other tables in step with the table ``session``."""

# The view shows what is stored, character for character. Only a text that is no JSON, which a
# migrated table may have had, is shown as a string, so that the column is always a JSON array.
VIEW = (
    f"""
    CREATE VIEW sessions (session_id, conversation_history, created_at, updated_at) AS
    SELECT session_id,
        (SELECT '[' || coalesce(group_concat(text, ', '), '') || ']' FROM (
            SELECT CASE WHEN json_valid(item) THEN item ELSE json_quote(item) END AS text
            FROM item WHERE session = session.key ORDER BY turn, run, position
        )),
        {_TO_THE_SECOND.format("created_at")}, {_TO_THE_SECOND.format("updated_at")}
    FROM session WHERE created_at IS NOT NULL
    """,  # noqa: S608 - as above
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
            created_at = CASE WHEN NEW.created_at IS OLD.created_at THEN created_at
                ELSE coalesce(NEW.created_at, created_at) END,
            updated_at = CASE WHEN NEW.updated_at IS OLD.updated_at THEN updated_at
                ELSE coalesce(NEW.updated_at, updated_at) END,
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
"""The view and what makes it writable."""
