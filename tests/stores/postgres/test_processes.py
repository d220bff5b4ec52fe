"""Several processes on one session, whose clocks do not agree."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from session_middleware import history
from tests.support.programs import Programs

_WRITER = """
import asyncio, sys, time
from session_middleware import PostgresSessionMemory, session_scope
from session_middleware.conformance.samples import assistant, call, output, user

name, turns, wrong_by = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
really = time.time
time.time = lambda: really() + wrong_by * (1 + int(really()) % 2)  # it jumps, every second

async def main():
    memory = PostgresSessionMemory(sys.argv[1], lease=5)
    for number in range(turns):
        said = f"{name} {number}"
        async with session_scope("s", memory=memory, wait_timeout=500):
            await memory.append_to_session("s", [user(said), call(said)])
            await memory.append_to_session("s", [output(said), assistant(said)])
    await memory.cleanup()

asyncio.run(main())
"""


async def _write(programs: Programs, memory: Any, url: str, turns: int) -> None:
    clocks = (("a", "0"), ("b", "180"), ("c", "-600"), ("d", "90"))
    writers = [
        programs.start("-c", _WRITER, url, name, str(turns), wrong_by) for name, wrong_by in clocks
    ]
    assert [await asyncio.to_thread(writer.wait) for writer in writers] == [0, 0, 0, 0]
    records = await memory.turns("s")
    assert [record.state for record in records] == ["completed"] * 4 * turns
    items = await memory.load_items("s")
    assert history.check(items) == []
    asked = [item["content"] for item in items if item.get("role") == "user"]
    assert sorted(asked) == sorted(f"{name} {n}" for name in "abcd" for n in range(turns))
    for record in records:
        said = record.items[0]["content"]
        assert record.items[1]["call_id"] == record.items[2]["call_id"] == f"call_{said}"
        assert record.items[3]["content"][0]["text"] == said


async def test_four_processes_on_one_session(
    programs: Programs, memory: Any, postgres_url: str
) -> None:
    """Their turns are whole and none is lost, whatever their clocks say."""
    await _write(programs, memory, postgres_url, 4)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_four_processes_with_a_hundred_turns_each(
    programs: Programs, memory: Any, postgres_url: str
) -> None:
    """The same, with 400 turns."""
    await _write(programs, memory, postgres_url, 100)
