"""Large memories: a page costs what a page costs, and an export holds no more than a page."""

from __future__ import annotations

import gc
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from session_middleware import InMemorySessionMemory, SQLiteSessionMemory
from session_middleware.stores.managed_store import SessionInfo, TurnCopy
from session_middleware.stores.managing.held import PAGE
from tests.cli.conftest import Shell

ASKED = {"role": "user", "content": "hello"}
SAID = {"role": "assistant", "content": "hi"}


def alive(*kinds: type) -> int:
    """How many objects of these classes there are."""
    return sum(isinstance(each, kinds) for each in gc.get_objects())


async def fill(path: Path, sessions: int, turns: int, pairs: int) -> None:
    """Write a file of so many sessions with so many turns of so many pairs of items."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("s", [ASKED, SAID])
        await memory.delete("s")
    moment = "2026-01-01 00:00:00.000"
    asked, said = '{"role":"user","content":"hello"}', '{"role":"assistant","content":"hi"}'
    keys = range(1_000, 1_000 + sessions)

    def items() -> Iterator[tuple[Any, ...]]:
        for key in keys:
            for turn in range(1, turns + 1):
                for place in range(0, 2 * pairs, 2):
                    yield key, turn, 1, place, asked
                    yield key, turn, 1, place + 1, said

    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO session (key, session_id, created_at, updated_at) VALUES (?, ?, ?, ?)",
            ((key, f"s{key:07}", moment, moment) for key in keys),
        )
        pages = [(key, turn) for key in keys for turn in range(1, turns + 1)]
        connection.executemany(
            "INSERT INTO turn (session, turn, state, started_at, ended_at) VALUES "
            f"(?, ?, 'completed', '{moment}', '{moment}')",
            pages,
        )
        connection.executemany(
            "INSERT INTO run (session, turn, run, state) VALUES (?, ?, 1, 'completed')", pages
        )
        connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?)", items())
        connection.commit()


@pytest.mark.parametrize(("sessions", "turns"), [(3 * PAGE, 1), (1, 12 * PAGE), (5, 3 * PAGE)])
async def test_an_export_holds_a_page(sessions: int, turns: int, tmp_path: Path) -> None:
    """However many sessions and turns there are, no more than two pages of them are held."""
    await fill(tmp_path / "a.db", sessions, turns, 1)
    gc.collect()
    before = alive(SessionInfo, TurnCopy)
    most = lines = 0
    async with SQLiteSessionMemory(tmp_path / "a.db") as memory:
        async for _ in memory.export():
            lines += 1
            if lines % 37 == 0:
                most = max(most, alive(SessionInfo, TurnCopy) - before)
    assert lines == 2 + sessions * (turns + 2)
    assert 0 < most <= 4 * PAGE  # a page of each, and the page before while the next is read


async def test_an_import_holds_a_session(tmp_path: Path) -> None:
    """An import holds the session that it stores, and nothing of those before it."""
    await fill(tmp_path / "a.db", 50, 10, 1)
    gc.collect()
    before, most = alive(SessionInfo, TurnCopy), [0]
    async with SQLiteSessionMemory(tmp_path / "a.db") as memory:
        lines = [line async for line in memory.export()]

    def counted() -> Iterator[str]:
        for number, line in enumerate(lines):
            if number % 37 == 0:
                most[0] = max(most[0], alive(SessionInfo, TurnCopy) - before)
            yield line

    assert await InMemorySessionMemory().import_(counted()) == 50
    assert 0 < most[0] <= 4 * 11


async def test_a_page_is_one_query(shell: Shell, tmp_path: Path) -> None:
    """``list`` asks for one page more than it shows at most, whatever there is."""
    await fill(tmp_path / "a.db", 1_000, 1, 1)
    assert len(shell.good("list", "--memory", "a.db", "--json").json()) == 50
    asked: list[int] = []

    class Counted(SQLiteSessionMemory):
        async def list_page(self, query: Any) -> Any:
            asked.append(query.limit)
            return await super().list_page(query)

    from session_middleware.cli.listing import _pages

    async with Counted(tmp_path / "a.db") as memory:
        seen = 0
        async for _ in _pages(memory, None, "updated", 50, None):
            seen += 1
            if seen > 50:
                break
    assert asked == [51]


@pytest.mark.long
@pytest.mark.timeout(1_800)
async def test_ten_thousand_sessions(shell: Shell, tmp_path: Path) -> None:
    """The first page of 10,000 sessions with 1,000,000 items beside that of 100 sessions.

    Figures for a reader (run with -s); a machine's speed is not asserted.
    """
    await fill(tmp_path / "small.db", 100, 10, 5)
    await fill(tmp_path / "large.db", 10_000, 10, 5)
    took: dict[str, list[float]] = {"small.db": [], "large.db": []}
    memories = {name: SQLiteSessionMemory(tmp_path / name) for name in took}
    for _ in range(30):
        for name, memory in memories.items():
            begun = time.perf_counter()
            assert len(await memory.sessions(limit=50)) == 50
            took[name].append(time.perf_counter() - begun)
    small, large = (sorted(times)[len(times) // 2] for times in took.values())
    for memory in memories.values():
        await memory.cleanup()
    begun = time.perf_counter()
    for name in took:
        shell.good("list", "--memory", name)
    both = time.perf_counter() - begun
    begun = time.perf_counter()
    shell.good("export", "--memory", "large.db", "-o", "large.jsonl")
    exported = time.perf_counter() - begun
    size = (tmp_path / "large.jsonl").stat().st_size
    print(
        f"first page: {1e3 * small:.2f} ms of 100 sessions, {1e3 * large:.2f} ms of 10,000, "
        f"{large / small:.2f} times as long; both commands {both:.1f} s; export of 1,000,000 items "
        f"{exported:.1f} s, {size / 1e6:.0f} MB"
    )
