"""Conversations that the SDK's own session classes have stored, on their way into a memory.

Nothing of the SDK is imported here: the layout of its tables is read as it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from session_middleware.errors import (
    InvalidOption,
    MemoryUnavailable,
    MissingExtra,
    NotADatabase,
)
from session_middleware.history import split
from session_middleware.stores.items import decode_items, encode_items
from session_middleware.stores.managed_store import RunCopy, SessionInfo, TurnCopy
from session_middleware.stores.managing import ManagedMemory
from session_middleware.stores.records import BEGINNING, TurnRecord
from session_middleware.stores.scoped import ScopedMemory
from session_middleware.stores.sql import date_of

_PAGE = 100  # ids of sessions that are read at once
_ACTIVE = "main"  # the branch that AdvancedSQLiteSession opens

_SESSIONS = """
    SELECT session_id, created_at, updated_at FROM {sessions}
    WHERE session_id > {0} ORDER BY session_id LIMIT {1}
"""
_MESSAGES = """
    SELECT message_data, created_at FROM {messages} WHERE session_id = {0} ORDER BY id
"""
_BRANCHES = "SELECT DISTINCT branch_id FROM message_structure WHERE session_id = {0}"
_BRANCH = """
    SELECT m.message_data, m.created_at, s.user_turn_number
    FROM message_structure s JOIN {messages} m ON m.id = s.message_id
    WHERE s.session_id = {0} AND s.branch_id = {1} ORDER BY s.sequence_number
"""
_USAGE = """
    SELECT user_turn_number, requests, input_tokens, output_tokens, total_tokens
    FROM turn_usage WHERE session_id = {0} AND branch_id = {1}
"""


async def import_sdk_sessions(
    source: Any,
    memory: ManagedMemory | ScopedMemory,
    *,
    sessions_table: str = "agent_sessions",
    messages_table: str = "agent_messages",
) -> int:
    """Store the conversations of the SDK's own sessions in a memory; return how many.

    Each user message that follows an item of another kind begins a turn, with the dates of its
    messages. Importing once more changes nothing. Of an ``AdvancedSQLiteSession`` the branch
    "main" becomes the session; each other branch becomes a session of its own, with the id
    ``<session_id>:<branch>``, and usage is taken along.

    Args:
        source: a file of ``SQLiteSession`` or ``AdvancedSQLiteSession``; the URL or the engine
            of a ``SQLAlchemySession``; or any session object of the SDK's, such as a
            ``RedisSession``, of which the one conversation is taken.
        memory: the memory to store them in.
        sessions_table, messages_table: the names of the source's tables.

    Raises:
        InvalidOption: the source is none of these, or has no such tables.
        ConflictingMemory: a session is in the memory with other turns.
        MissingExtra: a URL needs SQLAlchemy, which is not installed.

    Example:
        await import_sdk_sessions("old.db", SQLiteSessionMemory("chat.db"))
    """
    for name in (sessions_table, messages_table):
        if not name.isidentifier():
            raise InvalidOption("a table must be named by letters, digits and underscores")
    tables = {"sessions": sessions_table, "messages": messages_table}
    if callable(getattr(source, "get_items", None)):
        return await _import_object(source, memory)
    stored = 0
    async with _opened(source, tables) as rows:
        async for conversation in _conversations(rows):
            info, turns = conversation.copied()
            stored += await memory.put_session(info, turns, same=True)
    return stored


async def _import_object(session: Any, memory: ManagedMemory | ScopedMemory) -> int:
    items = await session.get_items()
    session_id = session.session_id
    if not items or await memory.load_session(session_id) == items:
        return 0
    texts = encode_items(items)
    now = datetime.now(UTC)
    rows = [_Row(text, now) for text in texts]
    info, turns = _Conversation(session_id, now, now, rows).copied()
    return await memory.put_session(info, turns, same=True)


# --- conversations -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One item as the source has it.

    Attributes:
        turn: the number of the user's turn, where the source counts them.
    """

    text: str = field(repr=False)
    at: datetime
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class _Conversation:
    session_id: str
    created_at: datetime
    updated_at: datetime
    rows: Sequence[_Row] = field(repr=False)
    usage: Mapping[int, dict[str, int]] = field(default_factory=dict)

    def copied(self) -> tuple[SessionInfo, list[TurnCopy]]:
        """The conversation as a memory copies it."""
        info = SessionInfo(self.session_id, self.created_at, self.updated_at)
        return info, [self._turn(number, rows) for number, rows in enumerate(self._turns(), 1)]

    def _turns(self) -> list[list[_Row]]:
        """The rows of each turn: by the numbers of the source, else by the user's messages."""
        turns: list[list[_Row]] = []
        if all(row.turn is not None for row in self.rows):
            for row in self.rows:
                if turns and turns[-1][0].turn == row.turn:
                    turns[-1].append(row)
                else:
                    turns.append([row])
            return turns
        items = decode_items([row.text for row in self.rows])[0]
        rows = iter(self.rows)
        return [[next(rows) for _ in turn] for turn in split(items)]

    def _turn(self, number: int, rows: Sequence[_Row]) -> TurnCopy:
        texts = tuple(row.text for row in rows)
        record = TurnRecord(
            self.session_id,
            number,
            "completed",
            rows[0].at,
            rows[-1].at,
            item_count=len(texts),
            runs=1,
            usage=self.usage.get(rows[0].turn or 0),
        )
        return TurnCopy(record, runs=(RunCopy(1, "completed", texts=texts),))


async def _conversations(rows: _Rows) -> AsyncIterator[_Conversation]:
    branched = await rows.has_table("message_structure")
    after = ""
    while page := await rows.select(_SESSIONS, after, _PAGE):
        for session_id, created_at, updated_at in page:
            dates = (_date(created_at), _date(updated_at))
            if branched:
                async for conversation in _branches(rows, session_id, dates):
                    yield conversation
            else:
                found = await rows.select(_MESSAGES, session_id)
                items = [_Row(text, _date(at)) for text, at in found]
                yield _Conversation(session_id, *dates, items)
        after = page[-1][0]


async def _branches(
    rows: _Rows, session_id: str, dates: tuple[datetime, datetime]
) -> AsyncIterator[_Conversation]:
    counted = await rows.has_table("turn_usage")
    names = {str(name) for (name,) in await rows.select(_BRANCHES, session_id)} | {_ACTIVE}
    for name in sorted(names, key=lambda name: (name != _ACTIVE, name)):
        found = await rows.select(_BRANCH, session_id, name)
        items = [_Row(text, _date(at), turn) for text, at, turn in found]
        usage = {}
        if counted:
            kinds = ("requests", "input_tokens", "output_tokens", "total_tokens")
            for turn, *counts in await rows.select(_USAGE, session_id, name):
                usage[turn] = dict(zip(kinds, counts, strict=True))
        own_id = session_id if name == _ACTIVE else f"{session_id}:{name}"
        yield _Conversation(own_id, *dates, items, usage)


def _date(value: Any) -> datetime:
    moment = date_of(value)
    return datetime.now(UTC) if moment == BEGINNING else moment


# --- sources -----------------------------------------------------------------------------------


class _Rows:
    """The rows of a source, whatever opens it."""

    def __init__(self, tables: Mapping[str, str]) -> None:
        self.tables = tables

    async def select(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    async def has_table(self, name: str) -> bool:
        raise NotImplementedError

    async def close(self) -> None:
        """Close what was opened here."""

    async def __aenter__(self) -> _Rows:
        for name in self.tables.values():
            if not await self.has_table(name):
                await self.close()
                raise InvalidOption(
                    f"the source has no table {name!r}: it is no storage of the SDK's sessions, or "
                    "its tables have other names (sessions_table=, messages_table=)"
                )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class _File(_Rows):
    """An SQLite file, opened for reading alone in a thread of its own at each statement."""

    def __init__(self, path: str, tables: Mapping[str, str]) -> None:
        super().__init__(tables)
        self._path = path

    async def select(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        marks = ["?"] * len(values)
        return await asyncio.to_thread(
            self._select, statement.format(*marks, **self.tables), values
        )

    async def has_table(self, name: str) -> bool:
        statement = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower({0})"
        return bool(await self.select(statement, name))

    def _select(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        import sqlite3  # with the first import, as the package brings no driver of its own

        uri = f"file:{os.path.abspath(self._path).replace('?', '%3f').replace('#', '%23')}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise NotADatabase(f"{self._path} is no SQLite database") from error
            raise MemoryUnavailable(f"{self._path} cannot be read: {error}") from error


class _Engine(_Rows):
    """A database behind an engine of SQLAlchemy's."""

    def __init__(self, engine: Any, tables: Mapping[str, str], *, owned: bool) -> None:
        super().__init__(tables)
        self._engine = engine
        self._owned = owned

    async def select(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        from sqlalchemy import text

        marks = [f":v{number}" for number in range(len(values))]
        given = {f"v{number}": value for number, value in enumerate(values)}
        async with self._engine.connect() as connection:
            rows = await connection.execute(text(statement.format(*marks, **self.tables)), given)
            return [tuple(row) for row in rows]

    async def has_table(self, name: str) -> bool:
        from sqlalchemy import inspect

        async with self._engine.connect() as connection:
            return bool(await connection.run_sync(lambda sync: inspect(sync).has_table(name)))

    async def close(self) -> None:
        if self._owned:
            await self._engine.dispose()


def _opened(source: Any, tables: Mapping[str, str]) -> _Rows:
    if isinstance(source, str) and "://" in source:
        try:
            from sqlalchemy.ext.asyncio import create_async_engine
        except ImportError as error:
            raise MissingExtra(
                "a URL of SQLAlchemy's needs SQLAlchemy, which is not installed: pip install "
                "'sqlalchemy[asyncio]'"
            ) from error
        return _Engine(create_async_engine(source), tables, owned=True)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not isinstance(path, str) or not os.path.isfile(path):
            raise InvalidOption("source must be a file that is there, a URL, or a session")
        return _File(path, tables)
    if callable(getattr(source, "connect", None)) and hasattr(source, "sync_engine"):
        return _Engine(source, tables, owned=False)
    raise InvalidOption(
        "source must be a file, a URL of SQLAlchemy's, its engine, or a session of the SDK's, got "
        f"{type(source).__name__}"
    )
