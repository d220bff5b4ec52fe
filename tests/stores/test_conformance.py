"""Every memory of this package passes the suite that ships with it."""

from __future__ import annotations

import copy
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from session_middleware.conformance import (
    MemoryConformance,
    SharedStorageConformance,
    TurnConformance,
    TurnMemoryConformance,
)
from session_middleware.memory import Item, SessionMemory, SupportsTurns
from session_middleware.stores.flat import FlatTurns
from session_middleware.stores.in_memory import InMemorySessionMemory
from session_middleware.stores.sqlite import SQLiteSessionMemory


class SixMethods(SessionMemory):
    """A memory as somebody writes it who needs no more than the six methods."""

    def __init__(self) -> None:
        self.histories: dict[str, list[Item]] = {}

    async def load_session(self, session_id: str) -> list[Item]:
        return copy.deepcopy(self.histories.get(session_id, []))

    async def save_session(self, session_id: str, conversation_history: list[Item]) -> None:
        self.histories[session_id] = copy.deepcopy(conversation_history)

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        self.histories.setdefault(session_id, []).extend(copy.deepcopy(new_items))

    async def clear_session(self, session_id: str) -> None:
        self.histories.pop(session_id, None)

    async def list_sessions(self) -> list[str]:
        return list(self.histories)

    async def session_exists(self, session_id: str) -> bool:
        return session_id in self.histories


class TestSixMethods(MemoryConformance):
    def make_memory(self) -> SessionMemory:
        return SixMethods()


class TestFlatTurns(TurnConformance):
    def make_memory(self) -> SessionMemory:
        return SixMethods()

    def turns_of(self, memory: Any) -> SupportsTurns:
        return FlatTurns(memory)


class TestInMemory(TurnMemoryConformance):
    def make_memory(self) -> SessionMemory:
        return InMemorySessionMemory()


class TestSQLite(SharedStorageConformance):
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "chat.db"

    def make_memory(self) -> SessionMemory:
        return SQLiteSessionMemory(self.path)

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        return SQLiteSessionMemory(self.path)

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        """Behind the memory's back, as the clock would."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                "UPDATE session SET lease_until = 1 WHERE session_id = ?", (session_id,)
            )


class TestSQLiteWithoutAFile(TurnMemoryConformance):
    def make_memory(self) -> SessionMemory:
        return SQLiteSessionMemory(":memory:")
