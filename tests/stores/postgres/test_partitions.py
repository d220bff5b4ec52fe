"""Tables that are partitioned by hash of the session, as ``schema --partitions 4`` makes them."""

from __future__ import annotations

import asyncio
import json
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import asyncpg
import pytest

from session_middleware import PostgresSessionMemory
from session_middleware.cli import main
from session_middleware.conformance import MemoryConformance
from session_middleware.conformance.samples import user
from session_middleware.memory import SessionMemory
from session_middleware.stores.records import Item
from tests.support.postgres import make_database

PARTITIONS = 4  # every statement plans for each of them
TABLES = ("session", "turn", "run", "item", "park", "call", "ticket")


@pytest.fixture(scope="module")
def partitioned_url(postgres_server_url: str) -> str:
    """The URL of a database with partitioned tables, made from the command's SQL."""

    async def make() -> str:
        url = await make_database(postgres_server_url)
        with redirect_stdout(StringIO()) as told:
            assert main(["schema", "--partitions", f"{PARTITIONS}"]) == 0
        connection: Any = await asyncpg.connect(url)
        await connection.execute(told.getvalue())
        await connection.close()
        return url

    return asyncio.run(make())


async def rows(url: str, statement: str, *arguments: object) -> list[Any]:
    connection: Any = await asyncpg.connect(url)
    try:
        found: list[Any] = await connection.fetch(statement, *arguments)
        return found
    finally:
        await connection.close()


class TestPartitioned(MemoryConformance):
    @pytest.fixture(autouse=True)
    async def on_empty_tables(self, partitioned_url: str) -> None:
        self.url = partitioned_url
        # Quicker than TRUNCATE, which makes new files of every part and its indexes.
        tables = [f"session_middleware_{name}" for name in (*TABLES, "tombstone")]
        connection: Any = await asyncpg.connect(self.url)
        await connection.execute("; ".join(f"DELETE FROM {table}" for table in tables))
        await connection.close()

    def make_memory(self) -> SessionMemory:
        return PostgresSessionMemory(self.url, migrate=False, lease=3)

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        return self.make_memory()

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        await rows(
            self.url,
            "UPDATE session_middleware_session SET lease_until = 'epoch' WHERE session_id = $1",
            session_id,
        )

    async def raw_items(self, memory: Any, session_id: str) -> list[Item]:
        found = await rows(
            self.url,
            "SELECT conversation_history FROM session_middleware_sessions WHERE session_id = $1",
            session_id,
        )
        return json.loads(found[0][0]) if found else []

    async def test_sessions_are_in_all_parts(self) -> None:
        """Each table has its parts, sessions are spread over them, and one lies in one part."""
        async with PostgresSessionMemory(self.url, migrate=False) as memory:
            for number in range(100):
                await memory.append_to_session(f"s{number}", [user("1"), user("2")])
            for table in TABLES:
                parts = await rows(
                    self.url,
                    "SELECT inhrelid::regclass::text AS part FROM pg_inherits"
                    " WHERE inhparent = $1::regclass",
                    f"session_middleware_{table}",
                )
                assert len(parts) == PARTITIONS
            spread = await rows(
                self.url,
                "SELECT tableoid, count(DISTINCT session_id) AS sessions"
                " FROM session_middleware_item GROUP BY tableoid",
            )
            assert len(spread) == PARTITIONS
            assert sum(row["sessions"] for row in spread) == 100
            listed = [info.session_id for info in await memory.sessions(limit=1000)]
            assert listed == [f"s{number}" for number in reversed(range(100))]
