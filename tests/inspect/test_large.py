"""Large memories on the page: every page stays small, and none is slow because others are many."""

from __future__ import annotations

import json
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SQLiteSessionMemory
from session_middleware.conformance.samples import assistant, user
from tests.inspect.test_pages import browsing, page

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800)]

LIMIT = 500_000  # bytes of a page


def filled(path: Path, sessions: int, turns: int) -> None:
    """Write conversations through the view, in one transaction."""
    with sqlite3.connect(path) as connection:
        words = [[user(f"question {turn}"), assistant(f"answer {turn}")] for turn in range(turns)]
        history = json.dumps([item for turn in words for item in turn])
        connection.executemany(
            "INSERT INTO sessions (session_id, conversation_history) VALUES (?, ?)",
            ((f"user-{number:06}", history) for number in range(sessions)),
        )
    connection.close()


@pytest.fixture
async def large(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """An SQLite memory with so many sessions of so many turns."""
    memory = SQLiteSessionMemory(tmp_path / "chat.db")
    await memory.ping()
    filled(tmp_path / "chat.db", *request.param)
    yield memory
    await memory.cleanup()


@pytest.mark.parametrize("large", [(100_000, 1)], indirect=True)
async def test_a_hundred_thousand_sessions(large: Any) -> None:
    """Listed in pages, found by id, each page small."""
    for path in ("/", "/?order=id", "/?order=created", "/?q=user-0999"):
        assert len(await page(large, path)) < LIMIT
    assert "user-077777" in await page(large, "/?q=user-077777")


@pytest.mark.parametrize("large", [(1, 20_000)], indirect=True)
async def test_twenty_thousand_turns_in_one_session(large: Any) -> None:
    """The newest ones at once, older ones behind a link, and what a turn was given."""
    text = await page(large, "/session?id=user-000000")
    assert "question 19999" in text
    assert len(text) < LIMIT
    older = await page(large, "/session?id=user-000000&before=10000")
    assert "question 9998" in older
    assert len(older) < LIMIT


async def test_an_item_of_fifty_megabytes(memory: Any) -> None:
    """Its beginning is shown, and the whole of it in pieces."""
    await memory.append_to_session("s", [user("begin " + "x" * 50_000_000)])
    for path in (
        "/",
        "/session?id=s",
        "/item?id=s&turn=1&n=0",
        "/item?id=s&turn=1&n=0&at=49000000",
    ):
        assert len(await page(memory, path)) < LIMIT
    assert "begin" in await page(memory, "/session?id=s")


async def test_an_hour_of_looking_takes_no_more_memory(memory: Any) -> None:
    """As many pages as somebody opens in an hour, and nothing is left of them."""
    for number in range(30):
        await memory.append_to_session(f"s{number}", [user("1"), assistant("2")])

    async def look(times: int) -> None:
        async with browsing(memory) as client:
            for _ in range(times):
                for path in ("/", "/session?id=s1", "/pending"):
                    assert (await client.get(path)).is_success

    await look(100)
    tracemalloc.start()
    try:
        await look(100)
        before = tracemalloc.get_traced_memory()[0]
        await look(400)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 500_000, f"{after - before} bytes are left of 1,200 pages"
