"""A session's row, and what its lease means at a moment. It only reads.

Leases count in the machine's clock, which ``clock`` reads, and end by wall time after a boot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from session_middleware.stores.rules import HeldLease
from session_middleware.stores.sqlite.clock import Now

CLOCK_STEP = 1.0
"""Seconds by which a clock may be corrected without a lease looking like one from the future."""

_SESSION = """
    SELECT key, token, leased_turn, lease_seconds,
        CASE WHEN lease_boot = ?1 AND clock_token = token THEN lease_clock - ?2
            ELSE lease_until - ?3 END AS seconds_left,
        (SELECT max(turn) FROM turn WHERE session = key) AS newest,
        (SELECT count(*) FROM (SELECT 1 FROM item WHERE session = key LIMIT ?4)) AS items,
        EXISTS (SELECT 1 FROM ticket WHERE ticket.session_id = ?5) AS has_line
    FROM (SELECT 1) LEFT JOIN session ON session.session_id = ?5
"""


@dataclass(slots=True)
class SessionRow:
    """A session's row; ``key`` is 0 for a session that has none yet.

    Attributes:
        has_line: somebody waits for the session, or did.
    """

    key: int = 0
    token: int | None = None
    leased_turn: int = 0
    lease_seconds: float = 0.0
    seconds_left: float = 0.0
    newest: int = 0
    items: int = 0
    has_line: int = 0

    @classmethod
    def read(
        cls, connection: sqlite3.Connection, session_id: str, now: Now, count_to: int = 0
    ) -> SessionRow:
        """Read it; of its items no more than ``count_to`` are counted.

        The lease ends by wall time where it was granted in another boot, or by a process of an
        older version.
        """
        moment = (now.boot, now.machine, now.wall)
        for row in named(connection, _SESSION, (*moment, count_to, session_id)):
            return cls(**{name: value for name, value in row.items() if value is not None})
        return cls()

    def lease(self) -> HeldLease | None:
        """The lease that was granted last and not given up."""
        if self.token is None:
            return None
        # A lease that ends later than it could was granted before the clock was set back.
        held = 0 < self.seconds_left <= self.lease_seconds + CLOCK_STEP
        return HeldLease(self.leased_turn, expired=not held)


def named(
    connection: sqlite3.Connection,
    statement: str,
    parameters: tuple[object, ...] | Mapping[str, object],
) -> list[dict[str, Any]]:
    """The rows of the statement, with their columns by name."""
    cursor = connection.execute(statement, parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
