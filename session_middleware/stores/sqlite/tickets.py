"""The line of a busy session, kept in the file: who asked first gets the session first.

Plain functions of a connection with a transaction open. A ticket counts by wall time, which people
may set: one that was shown in the future does not count.
"""

from __future__ import annotations

import sqlite3

from session_middleware.stores.tickets import TICKET_SECONDS

_FORGOTTEN_AFTER = 60.0  # seconds; until then an asker that could not show its ticket has its place

_SHOW = """
    INSERT INTO ticket (session_id, ticket, shown_at) VALUES (?, ?, ?)
    ON CONFLICT (session_id, ticket) DO UPDATE SET shown_at = excluded.shown_at
"""
_FORGET_OLD = "DELETE FROM ticket WHERE shown_at NOT BETWEEN ? AND ?"
_WITHDRAW = "DELETE FROM ticket WHERE session_id = ? AND ticket = ?"
_OTHERS_BEFORE = """
    SELECT EXISTS (
        SELECT 1 FROM ticket WHERE session_id = ?1 AND ticket IS NOT ?2
            AND shown_at BETWEEN ?3 AND ?4
            AND number < coalesce(
                (SELECT number FROM ticket WHERE session_id = ?1 AND ticket = ?2), 1 << 62)
    )
"""


def others_before(
    connection: sqlite3.Connection, session_id: str, ticket: int | None, now: float
) -> bool:
    """Whether others wait for the session who came before the ticket; None has no place yet."""
    row = connection.execute(_OTHERS_BEFORE, (session_id, ticket, now - TICKET_SECONDS, now + 1))
    return bool(row.fetchone()[0])


def show(connection: sqlite3.Connection, session_id: str, ticket: int, now: float) -> None:
    """Get a place in the line, or have it for longer."""
    connection.execute(_SHOW, (session_id, ticket, now))
    connection.execute(_FORGET_OLD, (now - _FORGOTTEN_AFTER, now + _FORGOTTEN_AFTER))


def withdraw(connection: sqlite3.Connection, session_id: str, ticket: int) -> None:
    """Leave the line."""
    connection.execute(_WITHDRAW, (session_id, ticket))
