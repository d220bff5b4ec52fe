"""What is read, what it costs, and what a broken row does."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.records import AcquireRequest, TurnEnd
from session_middleware.stores.sqlite import acquire as leasing
from session_middleware.stores.sqlite import reads as reading
from session_middleware.stores.sqlite import writes as writing
from tests.support.requests import user

# --- cost ------------------------------------------------------------------------------------


SMALL = (
    *("json_each", "held", "newest", "CONSTANT ROW", "(subquery", "VIRTUAL TABLE"),
    "turn_awaiting_approval",
)
"""What may be scanned: it has no more rows than the question, or than turns wait for approval."""


def statements(module: Any) -> list[str]:
    found = []
    for value in vars(module).values():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text.strip().split(" ")[0].strip().isupper():
                found.append(text)
    return found


async def test_no_statement_scans_a_table(memory, other_process):
    """Every statement but the listing finds its rows by key, and none sorts a history."""
    await memory.append_to_session("a", [user("1")])
    texts = [
        text
        for module in (reading, leasing, writing)
        for text in statements(module)
        if text.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
    ]
    assert len(texts) > 40
    for text in texts:
        if text == reading._IDS:
            continue
        names = dict.fromkeys(re.findall(r":([a-z_]+)", text), 0)
        bound: Any = {**names, "hidden_runs": "[]"} if names else [0] * text.count("?")
        if "?1" in text:
            bound = [0] * max(map(int, re.findall(r"\?(\d+)", text)))
        plan = other_process.execute(f"EXPLAIN QUERY PLAN {text}", bound).fetchall()
        for *_, detail in plan:
            scanned = detail.startswith("SCAN") and not any(small in detail for small in SMALL)
            assert not scanned, (detail, text)
            assert "TEMP B-TREE" not in detail or "held" in detail, (detail, text)


async def test_a_window_reads_no_more_than_it_keeps(memory):
    """The steps SQLite makes for a windowed load do not grow with the length of the history."""

    def steps(load: Any) -> Any:
        def counted(connection: sqlite3.Connection) -> int:
            ticks = [0]

            def tick() -> int:
                ticks[0] += 1
                return 0

            connection.set_progress_handler(tick, 1)
            load(connection)
            connection.set_progress_handler(None, 1)
            return ticks[0]

        return counted

    windows = (LastTurns(3), LastTurns(3, 2), LastItems(6))
    costs = []
    for length in (20, 400):
        for _ in range(length):
            await memory._write(lambda c: writing.append_turn(c, "a", [json.dumps(user("x"))] * 2))
        costs.append(
            [
                await memory._read(
                    steps(lambda c, w=window: reading.load_turns(c, "a", w, (10**6, (1,)), False))
                )
                for window in windows
            ]
        )
    for short, long in zip(*costs, strict=True):
        assert long <= short * 1.2 + 20


async def test_a_corrupt_row_is_left_out_and_counted(memory, other_process):
    """A row that somebody broke takes nothing else with it, and stays in the file."""
    await memory.append_to_session("a", [user(str(number)) for number in range(4)])
    broken = "UPDATE item SET item = CAST(? AS TEXT) WHERE position = ?"
    other_process.execute(broken, ("[1", 1))
    other_process.execute(broken, (b'{"content": "\xff"}', 2))
    loaded = await memory.load_turns("a", texts=True)
    assert loaded.corrupt == 1
    assert loaded.turns[0].items == [user("0"), {"content": "\ufffd"}, user("3")]
    assert len(loaded.turns[0].texts or []) == 3
    assert await memory.load_items("a", limit=3) == loaded.turns[0].items
    assert await memory.pop_item("a") == user("3")
    assert await memory.pop_item("a") == {"content": "\ufffd"}
    assert await memory.pop_item("a") == user("0")
    assert await memory.pop_item("a") is None
    assert other_process.execute("SELECT item FROM item").fetchall() == [("[1",)]


@pytest.mark.parametrize("broken", [None, "[1", '{"a":1},{"b":2}', "", "null", b'{"a":"\xff"}'])
@pytest.mark.parametrize("hide", [None, (2, (1,)), (2, (1, 2)), (4, (2,))])
async def test_what_is_decoded_at_once_is_what_is_decoded_row_by_row(
    memory, other_process, broken, hide
):
    """With every window: the same items in the same turns, as many of them corrupt."""
    for turn in (1, 2, 4):
        lease = (await memory.acquire(AcquireRequest("a", datetime.now(UTC)))).lease
        for run in (1, 2):
            items = [json.dumps(user(f"{turn} {run} {at}")) for at in range(turn)]
            insert = "INSERT INTO item SELECT 1, ?, ?, key, value FROM json_each(?)"
            other_process.execute(insert, (turn, run, json.dumps(items)))
        await memory.end_turn(lease, TurnEnd("completed", datetime.now(UTC)))
    if broken is not None:
        change = "UPDATE item SET item = CAST(? AS TEXT) WHERE turn = 4 AND position = 2"
        other_process.execute(change, (broken,))
    everything = await memory.load_turns("a", hide=hide)
    if hide is None:
        every_item = [item for turn in everything.turns for item in turn.items]
        assert await memory.load_items("a") == every_item
    windows: list[Any] = [LastItems(n) for n in range(16)]
    windows += [LastTurns(n, step) for n in range(5) for step in (1, 2)]
    for window in (None, *windows):
        at_once = await memory.load_turns("a", newest=window, hide=hide)
        by_row = await memory.load_turns("a", newest=window, hide=hide, texts=True)
        for turn in by_row.turns:
            assert [json.loads(text) for text in turn.texts or ()] == turn.items
        assert [replace(turn, texts=None) for turn in by_row.turns] == at_once.turns
        assert (by_row.complete, by_row.corrupt) == (at_once.complete, at_once.corrupt)
        if window is not None and not everything.corrupt:
            assert at_once.turns == window(everything.turns)


async def test_moments_come_back_as_they_were(memory):
    """Times are stored in UTC to the microsecond, whatever zone they came in."""
    zone = timezone(timedelta(hours=5, minutes=30))
    began = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=zone)
    lease = (await memory.acquire(AcquireRequest("a", began))).lease
    await memory.end_turn(lease, TurnEnd("failed", began + timedelta(seconds=1)))
    (record,) = await memory.turns("a")
    assert (record.started_at, record.started_at.tzinfo) == (began, UTC)
    assert record.ended_at == began + timedelta(seconds=1)
