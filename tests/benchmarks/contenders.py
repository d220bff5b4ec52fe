"""The memories that are measured side by side, each with synchronous=FULL on a file of its own.

A contender hands out ``Keeper``s: one session of it, as a history that is loaded and appended to,
and as the way to make a run that remembers. What cannot be imported is left out, with the name of
the package that is missing.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiosqlite
from agents import Agent, Runner, SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession
from agents.memory import SessionSettings

from session_middleware import SQLiteSessionMemory, with_session_memory
from session_middleware.telemetry import Telemetry

Item = dict[str, Any]

FULL = 2
"""What ``PRAGMA synchronous`` answers where every commit is flushed to the disk."""


class Keeper(ABC):
    """One session of a contender, kept open from its first use on."""

    @abstractmethod
    async def load(self) -> list[Item]: ...
    @abstractmethod
    async def append(self, items: list[Item]) -> None: ...
    @abstractmethod
    async def pop(self) -> None: ...
    @abstractmethod
    async def run(self, agent: Agent[Any], text: str) -> Any: ...


class Contender(ABC):
    """One kind of memory on one file."""

    name: str

    @abstractmethod
    def keeper(self, session_id: str) -> Keeper: ...
    @abstractmethod
    async def close(self) -> None: ...


# --- the floor ------------------------------------------------------------------------------


class ListSession:
    """A session that is a list; with ``keeps``, one that what is added comes to."""

    session_id = "list"

    def __init__(self, items: list[Any], *, keeps: bool = False, limit: int | None = None) -> None:
        self.items = items
        self.keeps = keeps
        self.session_settings = None if limit is None else SessionSettings(limit=limit)

    async def get_items(self, limit: int | None = None) -> list[Any]:
        return list(self.items) if limit is None else self.items[-limit:]

    async def add_items(self, items: list[Any]) -> None:
        if self.keeps:
            self.items += items

    async def pop_item(self) -> None:
        if self.items:
            self.items.pop()

    async def clear_session(self) -> None:
        self.items.clear()


class Lists(Contender):
    """A list in memory for each session: no memory can cost less.

    Args:
        limit: how many of the newest items a run sees.
    """

    name = "a list"

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit

    def keeper(self, session_id: str) -> Keeper:
        return SDKKeeper(ListSession([], keeps=True, limit=self._limit))

    async def close(self) -> None: ...


# --- ours ----------------------------------------------------------------------------------


class OurKeeper(Keeper):
    def __init__(self, memory: SQLiteSessionMemory, run: Any, session_id: str) -> None:
        self._memory = memory
        self._run = run
        self._id = session_id

    async def load(self) -> list[Item]:
        return await self._memory.load_session(self._id)

    async def append(self, items: list[Item]) -> None:
        await self._memory.append_to_session(self._id, items)

    async def pop(self) -> None:
        await self._memory.pop_item(self._id)

    async def run(self, agent: Agent[Any], text: str) -> Any:
        return await self._run(agent, text, session_id=self._id)


class Ours(Contender):
    """``SQLiteSessionMemory``, and ``with_session_memory(Runner.run)``."""

    name = "session_middleware"

    def __init__(
        self, folder: Path, *, telemetry: Telemetry | None = None, window: Any = None
    ) -> None:
        self.memory = SQLiteSessionMemory(folder / "ours.db")
        self._run = with_session_memory(
            Runner.run, memory=self.memory, telemetry=telemetry, window=window
        )

    def keeper(self, session_id: str) -> Keeper:
        return OurKeeper(self.memory, self._run, session_id)

    async def close(self) -> None:
        await self.memory.cleanup()


# --- the SDK's sessions --------------------------------------------------------------------


class SDKKeeper(Keeper):
    locked = 0
    """How often an append failed with "database is locked" and was made again."""

    def __init__(self, session: Any) -> None:
        self.session = session

    async def load(self) -> list[Item]:
        items: list[Item] = await self.session.get_items()
        return items

    async def append(self, items: list[Item]) -> None:
        while True:
            try:
                await self.session.add_items(items)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                SDKKeeper.locked += 1
            else:
                return

    async def pop(self) -> None:
        await self.session.pop_item()

    async def run(self, agent: Agent[Any], text: str) -> Any:
        return await Runner.run(agent, text, session=self.session)


class SDKContender(Contender):
    """Sessions of one class of the SDK, one object for each session id."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{self.name}.db"
        self._sessions: list[Any] = []

    @abstractmethod
    def make(self, session_id: str, path: Path) -> Any: ...

    def keeper(self, session_id: str) -> Keeper:
        session = self.make(session_id, self._path)
        self._sessions.append(session)
        return SDKKeeper(session)

    async def close(self) -> None:
        for session in self._sessions:
            closed = session.close()
            if isinstance(closed, Awaitable):
                await closed
        self._sessions.clear()


class _FullSQLiteSession(SQLiteSession):
    @staticmethod
    def _configure_connection(conn: sqlite3.Connection) -> None:
        SQLiteSession._configure_connection(conn)
        conn.execute("PRAGMA synchronous = FULL")
        _check_full(conn.execute("PRAGMA synchronous").fetchone())


class SDKSQLite(SDKContender):
    """``agents.SQLiteSession``.

    Args:
        limit: how many of the newest items a run sees.
    """

    name = "SQLiteSession"

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        super().__init__(folder)
        self._settings = None if limit is None else SessionSettings(limit=limit)

    def make(self, session_id: str, path: Path) -> Any:
        return _FullSQLiteSession(session_id, path, session_settings=self._settings)


class _FullAsyncSQLiteSession(AsyncSQLiteSession):
    @staticmethod
    async def _configure_connection(conn: aiosqlite.Connection) -> None:
        await AsyncSQLiteSession._configure_connection(conn)
        await conn.execute("PRAGMA synchronous = FULL")
        async with conn.execute("PRAGMA synchronous") as answer:
            _check_full(await answer.fetchone())


class SDKAsyncSQLite(SDKContender):
    """``agents.extensions.memory.AsyncSQLiteSession``."""

    name = "AsyncSQLiteSession"

    def make(self, session_id: str, path: Path) -> Any:
        return _FullAsyncSQLiteSession(session_id, path)


class SDKSQLAlchemy(SDKContender):
    """``agents.extensions.memory.SQLAlchemySession`` on aiosqlite; all share one engine."""

    name = "SQLAlchemySession"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from sqlalchemy import event
        from sqlalchemy.ext.asyncio import create_async_engine

        self._engine = create_async_engine(f"sqlite+aiosqlite:///{self._path}")

        @event.listens_for(self._engine.sync_engine, "connect")
        def flush_every_commit(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA synchronous")
            _check_full(cursor.fetchone())
            cursor.close()

    def make(self, session_id: str, path: Path) -> Any:
        from agents.extensions.memory import SQLAlchemySession

        return SQLAlchemySession(session_id, engine=self._engine, create_tables=True)

    async def close(self) -> None:
        self._sessions.clear()
        await self._engine.dispose()


def _check_full(answer: Any) -> None:
    if answer is None or answer[0] != FULL:
        raise RuntimeError(f"PRAGMA synchronous answers {answer}, not FULL: not comparable")


SDK_CONTENDERS: tuple[type[SDKContender], ...] = (SDKSQLite, SDKAsyncSQLite, SDKSQLAlchemy)


def missing_package(contender: type[Contender]) -> str | None:
    """What must be installed for this contender and is not."""
    if contender is SDKSQLAlchemy:
        try:
            import greenlet  # type: ignore[import-untyped]  # noqa: F401
            import sqlalchemy.ext.asyncio  # noqa: F401
        except ImportError:
            return "sqlalchemy"
    return None
