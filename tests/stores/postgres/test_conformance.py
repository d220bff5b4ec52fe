"""The PostgreSQL memory passes the suite that ships, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest

from session_middleware import PostgresSessionMemory
from session_middleware.conformance import MemoryConformance
from session_middleware.memory import SessionMemory
from session_middleware.stores.records import Item
from tests.support.forked_peers import ForkedPeers
from tests.support.limits import little_time
from tests.support.postgres_proxy import PostgresProxy

TABLES = ("session", "turn", "run", "item", "park", "call", "tombstone", "ticket")


class TestPostgres(ForkedPeers, MemoryConformance):
    @pytest.fixture(autouse=True)
    def on_a_database(self, postgres_url: str) -> Iterator[None]:
        self.direct = postgres_url
        self.proxy = PostgresProxy(postgres_url)
        yield
        self.proxy.close()

    def make_memory(self) -> SessionMemory:
        return PostgresSessionMemory(self.proxy.url, lease=3)

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        return PostgresSessionMemory(self.proxy.url, lease=3)

    def peer_program(self, memory: Any) -> str:
        return (
            "from session_middleware import PostgresSessionMemory\n"
            f"memory = PostgresSessionMemory({self.direct!r}, lease=3)\n"
        )

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        """Behind the memory's back, as the clock would."""
        await self.rows(
            "UPDATE session_middleware_session SET lease_until = 'epoch' WHERE session_id = $1",
            session_id,
        )

    async def raw_items(self, memory: Any, session_id: str) -> list[Item]:
        rows = await self.rows(
            "SELECT conversation_history FROM session_middleware_sessions WHERE session_id = $1",
            session_id,
        )
        return json.loads(rows[0][0]) if rows else []

    async def raw_bytes(self, memory: Any) -> bytes:
        found = [
            str(row)
            for table in TABLES
            for (row,) in await self.rows(f"SELECT t::text FROM session_middleware_{table} t")
        ]
        return "\n".join(found).encode()

    @contextmanager
    def unavailable(self, memory: Any) -> Iterator[None]:
        with self.proxy.unavailable(), little_time(memory):
            yield

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        connection: Any = await asyncpg.connect(self.direct)
        try:
            rows: list[Any] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()
