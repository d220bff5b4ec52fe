"""What ``session_middleware.testing`` does to a file: its leases look older than they are."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_middleware.stores.sqlite.memory import SQLiteSessionMemory

_AGE = """
    UPDATE session SET lease_until = lease_until - ?1, lease_clock = lease_clock - ?1
    WHERE token IS NOT NULL
"""


async def age_leases(memory: SQLiteSessionMemory, seconds: float) -> None:
    """Let every lease of the file end so many seconds earlier."""
    await memory._write(partial(_age, seconds=seconds))


def _age(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(_AGE, (seconds,))
