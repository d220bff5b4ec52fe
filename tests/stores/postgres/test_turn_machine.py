"""Turns in any order, as several memory objects on one database make them."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import asyncpg
import pytest

from session_middleware import PostgresSessionMemory
from tests.support.turn_machine import FEW, run_machine


class Tables:
    """Tables of one story in a database that others use as well."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.schema = f"story_{secrets.token_hex(6)}"

    def open(self, lease: float) -> Any:
        return PostgresSessionMemory(self.url, schema=self.schema, lease=lease)

    async def pass_time(self, seconds: float) -> None:
        await self._execute(
            f'UPDATE "{self.schema}".session_middleware_session '
            f"SET lease_until = lease_until - {seconds} * interval '1 second'"
        )

    def close(self) -> None:
        asyncio.run(self._execute(f'DROP SCHEMA "{self.schema}" CASCADE'))

    async def _execute(self, statement: str) -> None:
        connection: Any = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def test_turns_of_several_memories_in_one_database(postgres_database: str) -> None:
    """A few stories of turns, the same in every run."""
    run_machine(lambda: Tables(postgres_database), examples=FEW, steps=25)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_stories_of_turns(postgres_database: str) -> None:
    """Many and longer stories of turns."""
    run_machine(lambda: Tables(postgres_database), examples=200, steps=50)
