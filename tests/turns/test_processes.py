"""Turns across processes: those that end carelessly, fork, are killed, stopped or interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from agents import Runner

from session_middleware import SQLiteSessionMemory, with_session_memory
from tests.support.forks import Script, fork_server
from tests.support.interruptions import noting_agent, shape, violations
from tests.support.processes import ENDING, PATIENCE, SHORT_LEASE
from tests.support.programs import Program, Programs
from tests.support.stopping import stop


@pytest.fixture(scope="module")
def server(programs: Programs) -> Iterator[Program]:
    """The process that the scripts are forked from; their warnings are errors."""
    with fork_server(programs) as process:
        yield process


@pytest.fixture
def start(server: Program, tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Start a function of processes.py, by its name; what a failed test leaves is killed."""
    started: list[Script] = []

    def begin(*what: object) -> Script:
        started.append(Script(server, tmp_path / f"pipe{len(started)}", *what))
        return started[-1]

    yield begin
    for script in started:
        if not script.ended:
            script.kill()


def look(path: Path, session_id: str = "s") -> list[dict[str, Any]]:
    """The session's items, read by another process's connection."""

    async def read() -> list[dict[str, Any]]:
        async with SQLiteSessionMemory(path) as memory:
            return await memory.load_session(session_id)

    return asyncio.run(read())


def acquire_and_run(
    path: Path, *, on_busy: Literal["wait", "reject"] = "reject", lease: float = 30.0
) -> None:
    """One more turn on the session, which must be free, or become so with ``on_busy="wait"``."""

    async def go() -> None:
        async with SQLiteSessionMemory(path, lease=lease) as memory:
            run = with_session_memory(
                Runner.run,
                memory=memory,
                on_busy=on_busy,
                wait_timeout=PATIENCE if on_busy == "wait" else None,
            )
            await run(noting_agent([]), "the next", session_id="s")

    asyncio.run(go())


def is_sound(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))
    finally:
        connection.close()


# --- the end of a process ----------------------------------------------------------------------


@pytest.mark.parametrize("script", ENDING)
def test_a_process_that_never_cleans_up_ends_at_once_and_leaves_its_session_whole_and_free(
    script: str, start: Callable[..., Script], tmp_path: Path
) -> None:
    """It says nothing, does not hang, and what it acknowledged is there for the next one."""
    path = tmp_path / "memory.db"
    assert start(script, path).finish() == []
    items = look(path)
    assert violations(items) == []
    assert shape(items) in ENDING[script]
    acquire_and_run(path)
    assert shape(look(path)) == shape(items) + "UCOA"


def test_a_server_that_forks_after_it_served(start: Callable[..., Script], tmp_path: Path) -> None:
    """Each worker of a pre-forking server goes on with connections of its own."""
    path = tmp_path / "memory.db"
    assert start("prefork", path, 3, 3, "own").finish() == []
    assert shape(look(path, "warm")) == "UCOA"
    for worker in range(3):
        assert shape(look(path, f"own {worker}")) == 3 * "UCOA"


def eight_writers(start: Callable[..., Script], path: Path, turns: int) -> None:
    assert start("prefork", path, 8, turns, "shared").finish() == []
    items = look(path, "shared")
    assert violations(items) == []
    assert shape(items) == 8 * turns * "UCOA"
    texts = [item["content"] for item in items if item.get("role") == "user"]
    for worker in range(8):  # each worker's turns are there, in its order
        mine = [text for text in texts if text.startswith(f"{worker}.")]
        assert mine == [f"{worker}.{turn}" for turn in range(turns)]
    assert is_sound(path)


def test_eight_processes_write_to_one_session(start: Callable[..., Script], tmp_path: Path) -> None:
    """Eight processes on one file and one session: every turn whole, none lost or doubled."""
    eight_writers(start, tmp_path / "memory.db", 10)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_eight_processes_write_to_one_session_for_long(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """The same with 200 turns each."""
    eight_writers(start, tmp_path / "memory.db", 200)


# --- crashes -------------------------------------------------------------------------------------


def kill_often(start: Callable[..., Script], path: Path, times: int) -> None:
    acknowledged = start("killed", path, times).finish()
    assert len(acknowledged) >= times
    acquire_and_run(path, on_busy="wait", lease=SHORT_LEASE)
    items = look(path)
    assert violations(items) == []
    runs = shape(items).split("U")[1:]
    texts = [item["content"] for item in items if item.get("role") == "user"]
    whole = {text for text, run in zip(texts, runs, strict=True) if run == "COA"}
    assert set(acknowledged) <= whole
    assert is_sound(path)


def test_a_process_killed_at_any_moment_loses_nothing_it_acknowledged(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """After SIGKILL every acknowledged run is whole, and the session is free after its lease."""
    kill_often(start, tmp_path / "memory.db", 10)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_hundred_kills(start: Callable[..., Script], tmp_path: Path) -> None:
    """The same, a hundred times."""
    kill_often(start, tmp_path / "memory.db", 100)


def test_a_killed_request_is_retried_and_charged_once(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """The tool did its work, the process died: the retry in a new process does not repeat it."""
    path = tmp_path / "memory.db"
    first = start("charge", path, "stalls")
    first.wait_for("tool done")
    retry = start("charge", path, "answers")
    first.kill()
    assert retry.finish() == []
    assert Path(f"{path}.charges").read_text() == "hello\n"
    assert shape(look(path)) == "UCOA"


def test_the_record_of_a_turn_whose_process_was_killed_names_its_trace(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """Before anybody takes the session over, and afterwards."""
    path = tmp_path / "memory.db"
    process = start("traced", path)
    process.wait_for("in tool")
    process.kill()
    trace_id = Path(f"{path}.trace").read_text()

    async def found() -> list[tuple[int, str]]:
        async with SQLiteSessionMemory(path) as memory:
            record = await memory.find_turn(trace_id)
            assert record is not None
            assert record.otel_trace_id == trace_id
            return [(each.turn, each.state) for each in await memory.turns("s")]

    assert asyncio.run(found()) == [(1, "running")]
    acquire_and_run(path, on_busy="wait", lease=SHORT_LEASE)
    assert asyncio.run(found()) == [(2, "completed"), (1, "abandoned")]


def test_a_process_that_was_stopped_past_its_lease_has_lost_its_turn(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """Another one takes the session over; the stopped one wakes up, and may write nothing."""
    path = tmp_path / "memory.db"
    process = start("stopped", path)
    process.wait_for("in tool")
    stop(process.pid, path)
    acquire_and_run(path, on_busy="wait", lease=SHORT_LEASE)
    before = look(path)
    Path(f"{path}.woken").touch()
    os.kill(process.pid, signal.SIGCONT)
    assert process.finish() == ["TurnLost"]
    assert look(path) == before
    assert shape(before) == "UUCOA"


def test_run_sync_interrupted_from_the_keyboard_frees_its_session(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a tool: the input is kept, the session is free at once."""
    path = tmp_path / "memory.db"
    process = start("interrupted", path)
    process.wait_for("in tool")
    os.kill(process.pid, signal.SIGINT)
    assert process.finish() == []
    assert shape(look(path)) == "U"
    acquire_and_run(path)


def test_a_full_disk_is_memory_unavailable_and_the_file_stays_sound(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    """What does not fit is refused as a whole; what was there is still there."""
    path = tmp_path / "memory.db"
    (said,) = start("full", path).finish()
    assert said == "MemoryUnavailable from OperationalError"
    assert is_sound(path)
    items = look(path)
    assert shape(items) == "UCOA"
    acquire_and_run(path)
