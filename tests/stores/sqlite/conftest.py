"""A file, its memory, and another process on it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from session_middleware.stores.sqlite import SQLiteSessionMemory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.fixture
async def memory(path: Path) -> AsyncIterator[SQLiteSessionMemory]:
    async with SQLiteSessionMemory(path, lease=30) as made:
        yield made


@pytest.fixture
def other_process(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that stands for another process on the same file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection
