"""Requests to a store, and conditions to wait for, as the tests of stores need them."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any

from session_middleware.stores.records import AcquireRequest, TurnEnd
from tests.support.conditions import until


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def request_for(session_id: str = "a", **said: Any) -> AcquireRequest:
    return AcquireRequest(session_id, datetime.now(UTC), **said)


def completed(**said: Any) -> TurnEnd:
    return TurnEnd("completed", datetime.now(UTC), **said)


def lease_until(connection: sqlite3.Connection) -> float:
    """When the lease of a file's only session ends, as another process reads it."""
    until: float = connection.execute("SELECT lease_until FROM session").fetchone()[0]
    return until


async def at_rest(memory: Any) -> None:
    """Wait until the write connection of a SQLite memory has nothing to do, nor to flush."""
    await until(lambda: memory._database.writes.at_rest)


async def write_statements(memory: Any) -> list[str]:
    """The statements that the write connection of a SQLite memory begins from here on."""
    begun: list[str] = []
    await memory._write(lambda connection: connection.set_trace_callback(begun.append))
    begun.clear()
    return begun
