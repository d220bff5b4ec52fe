"""The line of a busy session, kept in a table: who asked first gets the session first.

SQL only. A place in the line is of no worth after a crash of the server, so nothing here waits for
the disk. A ticket that was shown in the future does not count: the clock was set back since.
"""

from __future__ import annotations

from session_middleware.stores.tickets import TICKET_SECONDS

_AGE = f"interval '{TICKET_SECONDS} seconds'"

# --- functions in the database ---------------------------------------------------------------

_OTHERS_BEFORE = f"""
CREATE FUNCTION {{others_before}}(p_session text, p_ticket bigint, p_now timestamptz)
RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM {{ticket}} w WHERE w.session_id = p_session
            AND w.ticket IS DISTINCT FROM p_ticket
            AND w.shown_at BETWEEN p_now - {_AGE} AND p_now + interval '1 second'
            AND w.number < coalesce((SELECT mine.number FROM {{ticket}} mine
                WHERE mine.session_id = p_session AND mine.ticket = p_ticket), 9223372036854775807)
    )
$$
"""  # noqa: S608 - of a number of this package

_SHOW_TICKET = """
CREATE FUNCTION {show_ticket}(p_session text, p_ticket bigint, p_now timestamptz) RETURNS void
LANGUAGE sql AS $$
    SELECT set_config('synchronous_commit', 'off', true);
    INSERT INTO {ticket} (session_id, ticket, shown_at) VALUES (p_session, p_ticket, p_now)
        ON CONFLICT (session_id, ticket) DO UPDATE SET shown_at = excluded.shown_at;
    DELETE FROM {ticket} WHERE shown_at < p_now - interval '1 minute';
$$
"""

# Tells whoever is first in the line. It is sent when the transaction commits, and only where one
# waits: NOTIFY makes commits of all sessions wait for each other.
_WAKE = f"""
CREATE FUNCTION {{wake}}(p_session text) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('{{channel}}', w.ticket::text) FROM {{ticket}} w
        WHERE w.session_id = p_session AND w.shown_at > clock_timestamp() - {_AGE}
        ORDER BY w.number LIMIT 1
$$
"""  # noqa: S608 - as above

FUNCTIONS = (_OTHERS_BEFORE, _SHOW_TICKET, _WAKE)

# --- statements ------------------------------------------------------------------------------

WITHDRAW = """
    WITH gone AS (
        DELETE FROM {ticket} WHERE session_id = $1 AND ticket = $2 RETURNING session_id
    )
    SELECT {wake}(session_id) FROM gone
"""
MAY_BE_NEXT = """
    SELECT NOT coalesce((
            SELECT {held}(s, clock_timestamp()) FROM {session} s WHERE s.session_id = $1
        ), false) AND NOT {others_before}($1, $2, clock_timestamp()) AS free
"""
