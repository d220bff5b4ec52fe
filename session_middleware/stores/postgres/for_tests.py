"""What ``session_middleware.testing`` does to a database: leases look older, a schema goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_middleware.stores.postgres.memory import PostgresSessionMemory

_AGE = """
    UPDATE {session} SET lease_until = lease_until - make_interval(secs => $1)
    WHERE token IS NOT NULL
"""


async def age_leases(memory: PostgresSessionMemory, seconds: float) -> None:
    """Let every lease of the tables end so many seconds earlier."""
    await memory._server.fetch(_AGE, seconds)


async def remove(memory: PostgresSessionMemory) -> None:
    """Drop the schema of the memory's tables, with all that is in it."""
    await memory._server.fetch("DROP SCHEMA IF EXISTS {schema} CASCADE")
