"""Sessions without activity are deleted after their ttl, in the background."""

from __future__ import annotations

import gc
import json
import secrets
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from session_middleware import (
    InMemorySessionMemory,
    InvalidMemoryUrl,
    InvalidOption,
    PostgresSessionMemory,
    SQLiteSessionMemory,
    TurnLost,
    open_memory,
)
from session_middleware.conformance.conversations import lines_of, parked
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end, refused
from session_middleware.stores import sweeps
from session_middleware.stores.protocol import TTL
from tests.support.conditions import until
from tests.support.programs import Programs

HOUR = 3600.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of three sessions that follow each other at once."""
    monkeypatch.setattr(sweeps, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(sweeps, "_AT_ONCE", 3)


def make(kind: str, request: pytest.FixtureRequest, folder: Path) -> Any:
    if kind == "memory":
        return InMemorySessionMemory(ttl=HOUR)
    if kind == "postgres":
        url = request.getfixturevalue("postgres_server_url")
        return PostgresSessionMemory(url, ttl=HOUR, table_prefix=f"ttl_{secrets.token_hex(4)}_")
    return SQLiteSessionMemory(folder / "chat.db" if kind == "file" else ":memory:", ttl=HOUR)


@pytest.fixture(params=["file", "sqlite", "memory", "postgres"])
async def memory(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A memory of each kind, whose sessions end an hour after their last activity."""
    made = make(request.param, request, tmp_path)
    yield made
    await made.cleanup()


async def make_old(memory: Any, *session_ids: str) -> None:
    """Let the last activity of these sessions be two hours ago."""
    old = datetime.now(UTC) - timedelta(hours=2)
    lines = []
    for line in await lines_of(memory, *session_ids):
        told = json.loads(line)
        lines.append(
            json.dumps({**told, "updated_at": old.isoformat()}) if "session" in told else line
        )
    assert await memory.import_(lines, replace=True) == len(session_ids)


async def test_sessions_without_activity_go(memory: Any) -> None:
    """Those alone, in as many steps as it takes."""
    old = [f"old {number}" for number in range(8)]
    for session_id in ("new", *old):
        await memory.append_to_session(session_id, [user("1")])
    await make_old(memory, *old)

    async def is_swept() -> bool:
        return bool(await memory.list_sessions() == ["new"])

    await until(is_swept)
    assert await memory.load_session("new") == [user("1")]
    assert TTL in memory.capabilities


async def test_a_session_that_a_turn_holds_stays(memory: Any) -> None:
    """However many of them there are, the idle ones behind them go; theirs is the turn's end."""
    names = [f"{name} {number}" for number in range(4) for name in ("held", "idle")]
    for session_id in names:
        await memory.append_to_session(session_id, [user("1")])
    held = {name: await acquire(memory, name) for name in names if name.startswith("held")}
    for acquired in held.values():
        await memory.append_items(acquired.lease, 1, 0, [user("2")])
    for session_id in names[1::2]:
        await make_old(memory, session_id)
    await _let_look_old(memory)

    async def is_swept() -> bool:
        return set(await memory.list_sessions()) == held.keys()

    await until(is_swept)
    for acquired in held.values():
        await memory.append_items(acquired.lease, 1, 1, [user("3")])
        await end(memory, acquired)
    assert set(await memory.list_sessions()) == held.keys()


async def _let_look_old(memory: Any) -> None:
    """The activity of every session was two hours ago, behind the memory's back."""
    old = datetime.now(UTC) - timedelta(hours=2)
    if isinstance(memory, InMemorySessionMemory):
        for session in memory._engine._sessions.values():
            session.updated_at = old
    elif isinstance(memory, SQLiteSessionMemory):
        text = old.strftime("%Y-%m-%d %H:%M:%S.000")
        statement = "UPDATE session SET updated_at = ?"
        await memory._write(lambda connection: connection.execute(statement, (text,)) and None)
    else:
        await memory._server.fetch("UPDATE {session} SET updated_at = $1", old)


async def test_a_state_of_a_session_that_went_cannot_be_resumed(memory: Any) -> None:
    """As when it was deleted."""
    await parked(memory)
    await make_old(memory, "s")

    async def is_swept() -> bool:
        return not await memory.session_exists("s")

    await until(is_swept)
    await refused(TurnLost, acquire(memory, resume="p"))


async def test_the_words_leave_the_file(tmp_path: Path) -> None:
    """With the session."""
    async with SQLiteSessionMemory(tmp_path / "chat.db", ttl=HOUR) as memory:
        await memory.append_to_session("s", [user("Xyzzy42")])
        await make_old(memory, "s")

        def holds_words() -> bool:
            return any(b"Xyzzy42" in file.read_bytes() for file in tmp_path.glob("chat.db*"))

        await until(lambda: not holds_words())
        assert await memory.list_sessions() == []


async def test_a_memory_that_is_gone_is_not_kept(tmp_path: Path) -> None:
    """By its sweep."""
    memory = InMemorySessionMemory(ttl=HOUR)
    await memory.append_to_session("s", [user("1")])
    watched = weakref.ref(memory)
    del memory

    def is_gone() -> bool:
        gc.collect()
        return watched() is None

    await until(is_gone)


_FORGETFUL = """
import asyncio, sys
from session_middleware import open_memory

async def main():
    for url in sys.argv[1:]:
        memory = open_memory(url)
        await memory.append_to_session("s", [{"role": "user", "content": "1"}])
        globals()[url] = memory

asyncio.run(main())
"""


def test_the_process_ends_beside_a_sweep(programs: Programs, tmp_path: Path) -> None:
    """At once, and without a word."""
    urls = [":memory:?ttl=60", f"sqlite:///{tmp_path / 'chat.db'}?ttl=60"]
    done = programs.run("-W", "error", "-c", _FORGETFUL, *urls, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("wrong", [0, -1, "60", True, float("nan"), float("inf")])
def test_a_wrong_ttl_is_refused(wrong: Any, tmp_path: Path) -> None:
    """It is a positive number of seconds."""
    for make_one in (
        lambda: InMemorySessionMemory(ttl=wrong),
        lambda: SQLiteSessionMemory(tmp_path / "chat.db", ttl=wrong),
        lambda: PostgresSessionMemory("postgresql://h/d", ttl=wrong),
    ):
        with pytest.raises(InvalidOption, match="ttl must be"):
            make_one()


def test_a_url_may_say_it(tmp_path: Path) -> None:
    """As a number; one memory is not the other's where it differs."""
    for url in (":memory:", f"sqlite:///{tmp_path / 'chat.db'}", "postgresql://h/d"):
        assert open_memory(f"{url}?ttl=60")._expiry.ttl == 60  # type: ignore[attr-defined]
        assert open_memory(url)._expiry.ttl is None  # type: ignore[attr-defined]
        with pytest.raises(InvalidMemoryUrl, match="ttl"):
            open_memory(f"{url}?ttl=soon")
