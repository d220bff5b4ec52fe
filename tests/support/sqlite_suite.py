"""The conformance suite with all its hooks, for any kind of SQLite memory on a file."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from session_middleware.conformance import MemoryConformance
from session_middleware.memory import SessionMemory
from session_middleware.stores.sqlite import SQLiteSessionMemory
from session_middleware.stores.sqlite.group import GroupConnection
from tests.support import ROOT

_ITEMS = """
SELECT item FROM item JOIN session ON session.key = item.session
WHERE session_id = ? ORDER BY item.turn, run, position
"""
_EXPIRE = "UPDATE session SET lease_until = 1, lease_clock = 0 WHERE session_id = ?"
_OPTIONS: dict[str, Any] = {"lease": 3, "operation_timeout": 60}
T = TypeVar("T")
_numbers = itertools.count()


def _no_disk(*_: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")


class SQLiteHooks(MemoryConformance):
    """What the suites on a file and without one have in common."""

    async def on_connection(self, memory: Any, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do this on a connection to the storage."""
        raise NotImplementedError

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        await self.on_connection(
            memory, lambda connection: connection.execute(_EXPIRE, (session_id,))
        )

    async def raw_items(self, memory: SessionMemory, session_id: str) -> list[Any]:
        def read(connection: sqlite3.Connection) -> list[Any]:
            return [json.loads(text) for (text,) in connection.execute(_ITEMS, (session_id,))]

        return await self.on_connection(memory, read)

    @contextmanager
    def unavailable(self, memory: SessionMemory) -> Iterator[None]:
        """The driver refuses to begin a transaction, as it does when the disk is gone."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GroupConnection, "begin", _no_disk)
            yield


class SQLiteSuite(SQLiteHooks):
    """A file for each test, in ``folder``, which a subclass must set, as it may set ``kind``."""

    kind: type[SQLiteSessionMemory] = SQLiteSessionMemory
    folder: Path

    def make_memory(self) -> SessionMemory:
        self.path = self.folder / f"{next(_numbers)}.db"
        return self.kind(self.path, **_OPTIONS)

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        return self.kind(self.path, **_OPTIONS)

    def peer_program(self, memory: SessionMemory) -> str:
        name = self.kind.__name__
        options = ", ".join(f"{option}={value!r}" for option, value in _OPTIONS.items())
        return (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            f"from {self.kind.__module__} import {name}\n"
            f"memory = {name}({str(self.path)!r}, {options})"
        )

    async def on_connection(self, memory: Any, work: Callable[[sqlite3.Connection], T]) -> T:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return work(connection)

    async def raw_bytes(self, memory: SessionMemory) -> bytes:
        files = self.folder.glob(f"{self.path.name}*")
        return b"".join(file.read_bytes() for file in files)


class SQLiteWithoutAFileSuite(SQLiteHooks):
    """A memory that nobody else can open: its own connection shows what it holds."""

    def make_memory(self) -> SessionMemory:
        return SQLiteSessionMemory(":memory:")

    async def on_connection(self, memory: Any, work: Callable[[sqlite3.Connection], T]) -> T:
        done: T = await memory._write(work)
        return done

    async def raw_bytes(self, memory: SessionMemory) -> bytes:
        return await self.on_connection(memory, lambda connection: connection.serialize())
