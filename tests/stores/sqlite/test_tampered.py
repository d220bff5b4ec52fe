"""A file that somebody else has changed: the errors are the library's own, and come in time."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SessionMemoryError, SQLiteSessionMemory
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.records import (
    AcquireRequest,
    CallRecord,
    JournalEntry,
    ReadRequest,
    RunItems,
    TurnEnd,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WORDS = "hidden words"

TABLES = ("layout", "fence", "turn", "run", "item", "park", "call", "tombstone", "ticket")

CHANGES = [
    *(
        f"UPDATE turn SET {name} = {value}"
        for name, value in [
            ("state", "'bogus'"),
            ("state", "''"),
            ("started_at", "'yesterday'"),
            ("started_at", "'0001-01-01 00:00:00+14:00'"),
            ("started_at", "'9999-12-31 23:59:59-14:00'"),
            ("ended_at", "'7'"),
            ("usage", "'{'"),
            ("usage", "'[1]'"),
            ("usage", "'{\"a\": 1e999}'"),
            ("usage", "'" + "[" * 5_000 + "'"),
            ("sdk_trace_ids", "''"),
            ("sdk_trace_ids", "'{}'"),
            ("sdk_trace_ids", "'[[]]'"),
            ("manifest", "'[]'"),
            ("manifest", "'no json'"),
            ("input_digest", "'x'"),
            ("turn", "turn + 4611686018427387904"),
            ("turn", "-turn"),
        ]
    ),
    *(
        f"UPDATE session SET {name} = {value}"
        for name, value in [
            ("leased_turn", "NULL"),
            ("leased_turn", "99"),
            ("lease_until", "1e300"),
            ("lease_until", "-1e300"),
            ("lease_until", "NULL"),
            ("lease_seconds", "1e300"),
            ("lease_seconds", "NULL"),
            ("lease_clock", "1e300"),
            ("lease_boot", "7"),
            ("token", "-1"),
            ("created_at", "'yesterday'"),
        ]
    ),
    *(
        f"UPDATE call SET {name} = {value}"
        for name, value in [
            ("started_at", "'yesterday'"),
            ("state", "'bogus'"),
            ("item", "'no json'"),
            ("attempt", "NULL"),
            ("name", "NULL"),
        ]
    ),
    "UPDATE item SET item = 'no json'",
    "UPDATE item SET item = '[1]'",
    "UPDATE item SET item = CAST(x'ff7b7d' AS TEXT)",
    "UPDATE run SET state = 'bogus'",
    "UPDATE park SET turn = 99",
    "UPDATE fence SET last = 9223372036854775807",
    "UPDATE layout SET readable_from = 99",
    *(
        f"DELETE FROM {table}"
        for table in (
            "layout",
            "fence",
            "turn",
            "run",
            "item",
            "park",
            "call",
            "tombstone",
            "ticket",
        )
    ),
    *(
        f"DROP TABLE {table}"
        for table in (
            "layout",
            "fence",
            "turn",
            "run",
            "item",
            "park",
            "call",
            "tombstone",
            "ticket",
        )
    ),
    "DROP TABLE session",
    "DROP VIEW sessions",
    "ALTER TABLE item RENAME TO another",
    "ALTER TABLE turn RENAME COLUMN usage TO spent",
    "ALTER TABLE session DROP COLUMN lease_clock",
    "DROP VIEW sessions; CREATE VIEW sessions (session_id, conversation_history, created_at, "
    "updated_at) AS WITH RECURSIVE endless (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM endless) "
    "SELECT n, n, n, n FROM endless",
    "CREATE TRIGGER endless AFTER INSERT ON item BEGIN INSERT INTO item SELECT NEW.session, "
    "NEW.turn, NEW.run, NEW.position + 1, NEW.item; END; PRAGMA recursive_triggers = ON",
    "PRAGMA user_version = 0",
    "PRAGMA user_version = -5",
    "PRAGMA user_version = 99",
    "PRAGMA user_version = 99; DELETE FROM layout",
    "PRAGMA application_id = 7",
]


ENDLESS = [
    f"ALTER TABLE {table} RENAME TO another; CREATE VIEW {table} AS "
    "WITH RECURSIVE endless (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM endless) "
    "SELECT another.* FROM endless, another"
    for table in ("item", "turn", "session")
]
"""Reading these would never end; SQLite itself does not stop it."""


def item(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def filled(memory: SQLiteSessionMemory) -> None:
    """One turn of each kind: ended, parked, journalled, running."""
    done = await memory.acquire(AcquireRequest("s", NOW, idempotency_key="done"))
    await memory.append_items(done.lease, 1, 0, [item(WORDS), item("2")])
    end = TurnEnd("completed", NOW, usage={"requests": 1}, sdk_trace_ids=("t",), output_text=WORDS)
    await memory.end_turn(done.lease, end)
    parked = await memory.acquire(AcquireRequest("s", NOW))
    call = CallRecord("c", "refund", "key", "begun", NOW)
    entries = [JournalEntry(1, 0, call, '{"type": "function_call"}')]
    await memory.journal(parked.lease, entries, durable=True)
    await memory.end_turn(parked.lease, TurnEnd("awaiting_approval", NOW, park=("p",)))
    failed = await memory.acquire(AcquireRequest("s", NOW, idempotency_key="failed"))
    await memory.append_items(failed.lease, 1, 0, [item("3")])
    await memory.end_turn(failed.lease, TurnEnd("failed", NOW))
    await memory.acquire(AcquireRequest("running", NOW, idempotency_key="running"))


async def everything(memory: SQLiteSessionMemory) -> list[BaseException]:
    """Use every method once; returns what was raised."""
    errors: list[BaseException] = []

    async def use(work: Any) -> Any:
        try:
            async with asyncio.timeout(10):
                return await work
        except Exception as error:
            errors.append(error)
            return None

    for session_id in ("s", "running", "new"):
        for newest in (None, LastTurns(1), LastItems(1)):
            await use(memory.load_turns(session_id, newest=newest))
        await use(memory.load_session(session_id))
        await use(memory.load_items(session_id, limit=1))
        await use(memory.turns(session_id))
        await use(memory.session_exists(session_id))
        for asked in (
            AcquireRequest(session_id, NOW, idempotency_key="done", input_digest="d"),
            AcquireRequest(session_id, NOW, idempotency_key="failed"),
            AcquireRequest(session_id, NOW, idempotency_key="running"),
            AcquireRequest(session_id, NOW, resume="p"),
            AcquireRequest(
                session_id, NOW, read=ReadRequest(), input=RunItems(1, 0, ['{"role": "user"}'])
            ),
        ):
            await use(memory.look_up(asked))
            acquired = await use(memory.acquire(asked))
            if acquired is not None:
                lease = acquired.lease
                await use(memory.append_items(lease, acquired.next_run, 0, [item("more")]))
                await use(memory.retry_run(lease, 1, 9))
                await use(memory.end_turn(lease, TurnEnd("failed", NOW, sdk_trace_ids=("u",))))
        await use(memory.append_to_session(session_id, [item("outside")]))
        await use(memory.pop_item(session_id))
        await use(memory.release(session_id))
        await use(memory.save_session(session_id, [item("saved")]))
        await use(memory.clear_session(session_id))
    await use(memory.list_sessions())
    await use(memory.ping())
    return errors


def _when(opened: str, change: str) -> Any:
    """Rows are read anew by each operation: what is in them is tried after the opening alone."""
    again = opened == "opened before" and change.startswith("UPDATE")
    return pytest.param(opened, change, marks=pytest.mark.long if again else ())


@pytest.mark.parametrize(
    ("opened", "change"),
    [
        _when(opened, change)
        for opened in ("opened before", "opened after")
        for change in (*CHANGES, *ENDLESS)
    ],
)
async def test_a_change_by_somebody_else_is_the_librarys_own_error(
    tmp_path: Path, opened: str, change: str
) -> None:
    """Of all that a memory does, nothing hangs, and whatever fails says so in our words."""
    path = tmp_path / "chat.db"
    memory = SQLiteSessionMemory(path, operation_timeout=1)
    await filled(memory)
    if opened == "opened after":
        await memory.cleanup()
        memory = SQLiteSessionMemory(path, operation_timeout=1)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
        other.executescript(change)
    errors = await everything(memory)
    for error in errors:
        assert isinstance(error, SessionMemoryError), repr(error)
        assert WORDS not in str(error)
        assert "has room" not in str(error) or "disk" in str(error.__cause__), str(error)
    with suppress(SessionMemoryError):
        await memory.cleanup()
