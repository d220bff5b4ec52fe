"""One database for the tests of the PostgreSQL store; each test begins with empty tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from session_middleware import PostgresSessionMemory
from tests.support.postgres import make_database

TABLES = ("session", "turn", "run", "item", "park", "call", "tombstone", "ticket")


@pytest.fixture(scope="session")
def postgres_database(postgres_server_url: str) -> str:
    """The URL of a database that has our tables."""

    async def make() -> str:
        url = await make_database(postgres_server_url)
        async with PostgresSessionMemory(url) as memory:
            await memory.ping()
        return url

    return asyncio.run(make())


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """The URL of a database with our tables and nothing in them."""

    async def empty() -> None:
        connection: Any = await asyncpg.connect(postgres_database)
        try:
            tables = ", ".join(f"session_middleware_{name}" for name in TABLES)
            await connection.execute(f"TRUNCATE {tables}")
        finally:
            await connection.close()

    asyncio.run(empty())
    return postgres_database


@pytest.fixture
async def make_memory(postgres_url: str) -> AsyncIterator[Callable[..., Any]]:
    """Make memories on that database, all closed at the end of the test."""
    made: list[PostgresSessionMemory] = []

    def make(url: str = postgres_url, **options: Any) -> PostgresSessionMemory:
        memory = PostgresSessionMemory(url, **options)
        made.append(memory)
        return memory

    yield make
    for memory in made:
        await memory.cleanup()


@pytest.fixture
def memory(make_memory: Callable[..., Any]) -> PostgresSessionMemory:
    """One memory on that database."""
    made: PostgresSessionMemory = make_memory()
    return made


@pytest.fixture
async def psql(postgres_url: str) -> AsyncIterator[Any]:
    """A connection beside the memory's, to look behind its back."""
    connection: Any = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()
