"""Why it is fast, as rules that can be counted: plans, steps, commits, threads; never times.

How fast it is, beside other memories, is measured by ``python -m tests.benchmarks``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ModelStep

from session_middleware import (
    SessionBusy,
    SQLiteSessionMemory,
    _background,
    last_items,
    last_turns,
    with_session_memory,
)
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.records import AcquireRequest, ReadRequest, RunItems, TurnEnd
from session_middleware.stores.sqlite import acquire as leasing
from session_middleware.stores.sqlite import decoding
from session_middleware.stores.sqlite import reads as reading
from session_middleware.stores.sqlite import writes as writing
from session_middleware.stores.sqlite.group import Durability, Steps
from session_middleware.stores.sqlite.journal import Ending
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.benchmarks.subjects import NullModel, history, null_agent, one_turn
from tests.benchmarks.very_long import fill
from tests.support.requests import at_rest

T = TypeVar("T")


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A file of ours with nothing in it, that no memory has open."""
    async with SQLiteSessionMemory(tmp_path / "speed.db") as memory:
        await memory.ping()
    return tmp_path / "speed.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of our own to that file, to count on."""
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        yield opened


def steps(connection: sqlite3.Connection, work: Callable[[], Any]) -> int:
    """How many instructions SQLite's machine runs for it: rows that are read and sought, all."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    work()  # statements are compiled, pages are read
    connection.set_progress_handler(count, 1)
    try:
        work()
    finally:
        connection.set_progress_handler(None, 1)
    assert counted > 0
    return counted


def about(count: Any) -> Any:
    """That many steps; a statement whose only row was fetched may take its last one, or not."""
    return pytest.approx(count, abs=2)


# --- plans ---------------------------------------------------------------------------------


READS = {
    "turns": (reading.TURNS_FROM, {"key": 1, "cut": 5}),
    "turns at once": (reading.TURNS_JOINED, {"key": 1, "cut": 5}),
    "items at once": (reading.ITEMS_JOINED, {"key": 1}),
    "turn of nth newest item": (reading.TURN_OF_NTH_NEWEST_ITEM, {"key": 1, "nth": 49}),
    "nth newest turn": (reading.NTH_NEWEST_TURN, {"key": 1, "nth": 20}),
    "any before": (reading.ANY_BEFORE, {"key": 1, "cut": 5}),
    "items of a session": (reading.SESSION_ITEMS, (1,)),
    "items of a turn": (reading.TURN_ITEMS, (1, 1)),
    "records": (reading.RECORDS, (1, 9, 9)),
    "items of records": (reading.RECORD_ITEMS, (1, 1, 9)),
    "runs of records": (reading.RECORD_RUNS, (1, 1, 9)),
}


@pytest.mark.parametrize("name", READS)
def test_every_read_finds_its_rows_by_key_and_in_order(
    connection: sqlite3.Connection, name: str
) -> None:
    """No read looks through a table or sorts what it found."""
    statement, parameters = READS[name]
    if isinstance(parameters, dict):
        parameters = {"hidden_turn": -1, "hidden_runs": "[]", **parameters}
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert any(line.startswith("SEARCH") for line in plan)
    for table in ("item", "turn", "run", "session", "park"):
        assert f"SCAN {table}" not in plan
    assert not any("TEMP B-TREE" in line for line in plan)


def finished(steps: Steps[T]) -> T:
    """What these steps come to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


# --- rows read -----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [last_items(48), last_turns(12), last_turns(12, step=4)])
def test_with_a_window_a_load_reads_no_more_of_a_long_session(
    connection: sqlite3.Connection, path: Path, window: LastItems | LastTurns
) -> None:
    """The same steps for 20,000 items as for 400."""
    fill(path, "short", 400)
    fill(path, "long", 20_000)

    def load(session_id: str) -> Callable[[], Any]:
        return lambda: finished(reading.load_turns(connection, session_id, window, None, False))

    kept = [sum(len(turn.items) for turn in load(name)().turns) for name in ("short", "long")]
    assert kept[0] == kept[1] >= 48
    few, many = (steps(connection, load(name)) for name in ("short", "long"))
    assert many == about(few)


def _whole_turn(connection: sqlite3.Connection, session_id: str) -> Callable[[], None]:
    """A turn as it is written: taken, appended to, ended."""

    def turn() -> None:
        asked = RunItems(1, 0, ['{"role": "user"}'], "digest")
        request = AcquireRequest(session_id, datetime.now(UTC), read=ReadRequest(), input=asked)
        acquired = leasing.acquire(connection, request, 30.0).acquired
        called = RunItems(1, 1, ['{"type": "function_call"}'], "digest")
        writing.write(connection, acquired.lease, [called], None)
        answered = RunItems(1, 2, ['{"role": "assistant"}'], "digest")
        end = TurnEnd("completed", request.started_at, runs={1: "completed"})
        writing.write(connection, acquired.lease, [answered], Ending.of(end))

    return turn


def test_a_turn_writes_no_more_to_a_long_session(
    connection: sqlite3.Connection, path: Path
) -> None:
    """The same steps for take, append and end on 20,000 items as on 400."""
    fill(path, "short", 400)
    fill(path, "long", 20_000)
    short = steps(connection, _whole_turn(connection, "short"))
    assert steps(connection, _whole_turn(connection, "long")) == about(short)


def test_nothing_costs_more_for_a_thousand_other_sessions(
    connection: sqlite3.Connection, path: Path
) -> None:
    """The same steps for a turn and for a load, with and without other sessions."""
    fill(path, "mine", 400)
    load = lambda: reading.load_turns(connection, "mine", None, None, False)  # noqa: E731
    alone = (steps(connection, load), steps(connection, _whole_turn(connection, "mine")))
    with connection:
        for other in range(1_000):
            _whole_turn(connection, f"other-{other}")()
    connection.execute("DELETE FROM item WHERE session = 1 AND turn > 100")
    among = (steps(connection, load), steps(connection, _whole_turn(connection, "mine")))
    assert among == about(alone)


# --- commits -------------------------------------------------------------------------------


@pytest.fixture
async def memory(tmp_path: Path) -> Any:
    """A memory on a file, closed after the test."""
    async with SQLiteSessionMemory(tmp_path / "counted.db") as opened:
        await opened.ping()
        yield opened


@function_tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


async def test_a_run_waits_for_the_disk_once_for_each_model_turn(
    memory: SQLiteSessionMemory,
) -> None:
    """Its input is stored with the acquire and waits for no disk; the end of the turn is written
    with the last items."""
    run = with_session_memory(Runner.run, memory=memory)
    agents = {
        1: scripted_agent(assistant("hello")),
        2: scripted_agent(call("add", {"a": 1, "b": 2}), assistant("3"), tools=[add]),
    }
    for model_turns, agent in agents.items():
        before = memory.stats()
        await run(agent, "hi", session_id="counted")
        after = memory.stats()
        assert after["synced"] - before["synced"] == model_turns
        assert after["commits"] - before["commits"] == model_turns + 1


async def test_a_run_that_adds_nothing_to_its_input_has_flushed_it(
    memory: SQLiteSessionMemory,
) -> None:
    """When it returns, as nothing would have taken the input to the disk but its end."""
    run = with_session_memory(Runner.run, memory=memory)
    before = memory.stats()["synced"]
    await run(scripted_agent(ModelStep(output=[])), "hi", session_id="counted")
    assert memory.stats()["synced"] > before
    assert len(await memory.load_session("counted")) == 1


async def test_nothing_is_done_while_the_model_thinks(memory: SQLiteSessionMemory) -> None:
    """The input lies in the file, where it survives the process, and nobody waits for a disk."""
    seen: list[dict[str, int]] = []

    class Thinking(NullModel):
        async def get_response(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(memory.stats())
            async with SQLiteSessionMemory(memory.path) as another:
                assert len(await another.load_session("counted")) == 1
            await asyncio.sleep(0.2)  # what is counted is commits in a time
            seen.append(memory.stats())
            return await super().get_response(*args, **kwargs)

    run = with_session_memory(Runner.run, memory=memory)
    await run(Agent(name="Thinking", model=Thinking()), "hi", session_id="counted")
    assert seen[0] == seen[1]


async def test_a_commit_that_must_flush_writes_to_the_file(memory: SQLiteSessionMemory) -> None:
    """SQLite does not flush for a commit that has nothing to write."""
    log = f"{memory.path}-wal"
    for session_id in ("a", "b"):
        given = RunItems(1, 0, ['{"role": "user"}'])
        await memory.acquire(AcquireRequest(session_id, datetime.now(UTC), input=given))
        written, before = os.stat(log).st_size, memory.stats()["synced"]
        await memory._write(lambda connection: None, Durability.FLUSHED)
        assert os.stat(log).st_size > written
        assert memory.stats()["synced"] == before + 1
    written = os.stat(log).st_size
    await memory._write(lambda connection: None, Durability.FLUSHED)  # all is flushed already
    assert os.stat(log).st_size == written


async def test_who_is_refused_flushes_nothing(memory: SQLiteSessionMemory) -> None:
    """Nothing was stored for it, however often it asks."""
    request = AcquireRequest("s", datetime.now(UTC), input=RunItems(1, 0, ['{"role": "user"}']))
    await memory.acquire(request)
    await at_rest(memory)
    before = memory.stats()["synced"]
    with pytest.raises(SessionBusy):
        await memory.acquire(request)
    await at_rest(memory)
    assert memory.stats()["synced"] == before


async def test_a_key_costs_a_flush_only_where_the_end_has_none(
    memory: SQLiteSessionMemory,
) -> None:
    """With an idempotency key the end of the turn is on the disk before the call returns."""
    run = with_session_memory(Runner.run, memory=memory)

    @with_session_memory(memory=memory)
    async def chat() -> None:
        await Runner.run(null_agent(), "hi")

    async def flushes(call: Any, **key: str) -> int:
        before = memory.stats()["synced"]
        await call(session_id="counted", **key)
        return memory.stats()["synced"] - before

    around_the_run = functools.partial(run, null_agent(), "hi")
    assert await flushes(around_the_run) == 1
    assert await flushes(around_the_run, idempotency_key="1") == 1
    assert (await flushes(chat), await flushes(chat, idempotency_key="2")) == (2, 3)


async def test_sessions_that_write_at_once_share_commits(memory: SQLiteSessionMemory) -> None:
    """64 appends at once need far fewer commits."""
    before = memory.stats()
    await asyncio.gather(
        *(memory.append_to_session(f"user-{at}", one_turn(at)) for at in range(64))
    )
    after = memory.stats()
    assert after["writes"] - before["writes"] == 64
    assert after["commits"] - before["commits"] <= 16


async def test_members_of_a_group_need_no_savepoints_of_their_own(path: Path) -> None:
    """A statement more for each member would be two hops through the interpreter's lock."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.ping()
        statements: list[str] = []

        def trace(connection: sqlite3.Connection) -> None:
            connection.set_trace_callback(statements.append)

        await memory._write(trace)
        await asyncio.gather(
            *(memory.append_to_session(f"user-{at}", one_turn(at)) for at in range(8))
        )
    assert len({line for line in statements if "INTO turn" in line}) == 8  # a trigger repeats one
    assert not [line for line in statements if line.startswith("SAVEPOINT")]


# --- hops between threads ------------------------------------------------------------------


async def test_an_operation_wakes_the_thread_of_its_connection_and_no_other(
    memory: SQLiteSessionMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the caller's loop, however long nothing was asked of the memory before."""
    await at_rest(memory)
    woken: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(_background, "loop", lambda: woken.append("the background loop"))
        await memory.append_to_session("s", one_turn(1))
        assert len(await memory.load_session("s")) == 4
    assert woken == []


async def test_an_idle_memory_wakes_no_thread(memory: SQLiteSessionMemory) -> None:
    """Nothing is looked at now and then, until the log is to be emptied."""

    def switches() -> dict[str, str]:
        found = {}
        for task in Path("/proc/self/task").iterdir():
            status = (task / "status").read_text("ascii")
            found[task.name] = status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]
        del found[str(threading.get_native_id())]
        return found

    await memory.append_to_session("s", one_turn(1))
    await memory.load_session("s")
    await at_rest(memory)
    for _ in range(20):  # each thread comes to its rest when the machine lets it run
        before = switches()
        await asyncio.sleep(0.2)  # what is counted is wake-ups in a time
        if switches() == before:
            return
    raise AssertionError("a thread wakes up at least five times a second")


# --- threads, files, imports ---------------------------------------------------------------


async def test_500_sessions_at_once_need_no_more_than_four_threads_and_twenty_files(
    memory: SQLiteSessionMemory,
) -> None:
    """One memory has two connections however many sessions it serves."""
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    seen: set[tuple[int, int]] = set()

    async def use(session_id: str) -> None:
        await memory.append_to_session(session_id, one_turn(1))
        await memory.load_session(session_id)
        seen.add((threading.active_count(), len(os.listdir("/proc/self/fd"))))

    await asyncio.gather(*(use(f"user-{at}") for at in range(500)))
    assert max(count for count, _ in seen) <= max(threads, 4)
    assert max(count for _, count in seen) <= files + 8


def test_importing_the_package_imports_no_driver_and_nothing_slow() -> None:
    """Drivers and stores come with a memory, structlog with the first event that is logged."""
    script = (
        "import sys, agents\nbefore = set(sys.modules)\nimport session_middleware\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(ran.stdout.split())
    assert "session_middleware" in imported
    assert not imported & {"asyncpg", "redis", "sqlite3", "aiosqlite", "structlog", "rich"}
    stores = {name.split(".")[2] for name in imported if name.count(".") > 1 and ".stores." in name}
    assert not stores & {"base", "managing", "export", "flat", "in_memory", "sqlite"}


async def test_a_history_is_decoded_in_one_piece(
    memory: SQLiteSessionMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row only what cannot be decoded together is looked at."""
    items = history(400)
    await memory.save_session("long", items)
    monkeypatch.setattr(decoding, "decode_items", None)  # whoever needs it fails
    assert await memory.load_session("long") == items
    loaded = await memory.load_turns("long")
    assert [item for turn in loaded.turns for item in turn.items] == items
