"""A turn whose people leave in odd ways: loops that are closed, streams and generators dropped."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    MemoryUnavailable,
    SQLiteSessionMemory,
    session_scope,
    with_session_memory,
)
from tests.support.interruptions import NotingModel, noting_agent, settle, shape, violations


async def free_and_whole(memory: Any) -> str:
    """The session's shape; it must be whole, and free at this moment."""
    items = await memory.load_session("s")
    assert violations(items) == []
    async with session_scope("s", memory=memory, on_busy="reject"):
        return shape(items)


class SilentModel(NotingModel):
    """Says that it was called, and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.called = asyncio.Event()

    async def get_response(self, *args: Any, **kwargs: Any) -> Any:
        self.called.set()
        await asyncio.sleep(600)


def close_a_loop_in_the_middle_of_a_run(memory: Any) -> asyncio.Task[Any]:
    """Run until the model is called, then close the loop with everything in it still pending."""
    loop = asyncio.new_event_loop()
    agent = noting_agent([])
    agent.model = model = SilentModel()
    run = with_session_memory(Runner.run, memory=memory)
    task: asyncio.Task[Any] = loop.create_task(run(agent, "hello", session_id="s"))
    loop.run_until_complete(model.called.wait())
    loop.close()
    return task


@pytest.fixture
def _destroyed_tasks_are_expected(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio tells of every task that was pending when its loop was closed."""
    caplog.set_level(logging.CRITICAL, logger="asyncio")


@pytest.mark.usefixtures("_destroyed_tasks_are_expected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_closed_in_the_middle_of_a_turn_frees_the_session_with_its_tasks(
    tmp_path: Path,
) -> None:
    """When the tasks of the closed loop are gone, the session is free; the input is kept."""
    memory = SQLiteSessionMemory(tmp_path / "memory.db")
    task = close_a_loop_in_the_middle_of_a_run(memory)
    del task
    gc.collect()
    settle()
    assert asyncio.run(free_and_whole(memory)) == "U"
    asyncio.run(memory.cleanup())


@pytest.mark.usefixtures("_destroyed_tasks_are_expected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_closed_loop_whose_tasks_are_kept_loses_its_lease(tmp_path: Path) -> None:
    """Nobody renews the lease of a turn that can never go on, so another one takes it over."""
    memory = SQLiteSessionMemory(tmp_path / "memory.db", lease=0.4)
    other = SQLiteSessionMemory(tmp_path / "memory.db", lease=0.4)
    other._identity = ("another", "process")  # whose turns do not stand in line here
    task = close_a_loop_in_the_middle_of_a_run(memory)
    run = with_session_memory(Runner.run, memory=other, wait_timeout=60)
    asyncio.run(run(noting_agent([]), "the next", session_id="s"))
    assert asyncio.run(free_and_whole(other)) == "UUCOA"
    del task
    gc.collect()
    settle()
    for each in (memory, other):
        asyncio.run(each.cleanup())


async def test_a_dropped_stream_is_completed(memory: Any) -> None:
    """A consumer that leaves early and forgets the result: the run goes on to its end."""
    start = with_session_memory(Runner.run_streamed, memory=memory)
    result = start(noting_agent([]), "hello", session_id="s")
    async for _ in result.stream_events():
        break
    loop_task = result.run_loop_task
    del result
    gc.collect()
    assert loop_task is not None
    await asyncio.wait({loop_task})
    assert await free_and_whole(memory) == "UCOA"


async def test_a_stream_that_nobody_looks_at_is_completed(memory: Any) -> None:
    """Started and never iterated: its task alone carries it to its end."""
    start = with_session_memory(Runner.run_streamed, memory=memory)
    start(noting_agent([]), "hello", session_id="s")
    gc.collect()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    assert await free_and_whole(memory) == "UCOA"


async def _events(text: str) -> AsyncIterator[Any]:
    result = Runner.run_streamed(noting_agent([]), text)
    async for event in result.stream_events():
        yield event


async def test_a_generator_closed_from_another_task_frees_its_session(memory: Any) -> None:
    """aclose() in a task other than the one that iterated."""
    events = with_session_memory(_events, memory=memory)("hello", session_id="s")
    await anext(events)
    await asyncio.create_task(events.aclose())  # type: ignore[attr-defined]
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    assert await free_and_whole(memory) in ("", "U", "UCO", "UCOA")


async def test_each_step_of_a_generator_in_a_task_of_its_own(memory: Any) -> None:
    """A server may ask for every event from another task; the turn is the same."""
    events = with_session_memory(_events, memory=memory)("hello", session_id="s")

    async def step() -> bool:
        return await anext(events, None) is not None

    while await asyncio.create_task(step()):
        pass
    assert await free_and_whole(memory) == "UCOA"


async def test_a_dropped_generator_frees_its_session(memory: Any) -> None:
    """Left in the middle and forgotten: the event loop closes it, and that ends its turn."""
    events = with_session_memory(_events, memory=memory)("hello", session_id="s")
    await anext(events)
    del events
    gc.collect()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    settle()
    assert await free_and_whole(memory) in ("", "U", "UCO", "UCOA")


async def test_a_disk_that_is_full_for_a_while(make_memory: Callable[..., Any]) -> None:
    """What does not fit is MemoryUnavailable and nothing of it is stored; later it goes on."""
    memory = make_memory()
    run = with_session_memory(Runner.run, memory=memory)
    await run(noting_agent([]), "small", session_id="s")
    pages = await memory._write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])

    def allow(count: int) -> Callable[[Any], Any]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {count}").fetchone()

    await memory._write(allow(pages + 2))
    with pytest.raises(MemoryUnavailable) as raised:
        await run(noting_agent([]), "large " * 100_000, session_id="s")
    assert raised.value.__cause__ is not None
    sound = await memory._read(lambda c: c.execute("PRAGMA integrity_check").fetchone()[0])
    assert sound == "ok"
    await memory._write(allow(1_000_000))
    assert await free_and_whole(memory) == "UCOA"
    await run(noting_agent([]), "large " * 100_000, session_id="s")
    assert await free_and_whole(memory) == "UCOAUCOA"


def shell(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.mark.long
async def test_a_full_file_system(tmp_path: Path) -> None:
    """On a disk without room nothing is half stored, and what was there goes on once there is."""
    shell("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path))  # root's to do
    try:
        async with SQLiteSessionMemory(tmp_path / "memory.db") as memory:
            run = with_session_memory(Runner.run, memory=memory)
            await run(noting_agent([]), "small", session_id="s")
            with pytest.raises(MemoryUnavailable) as raised:
                await run(noting_agent([]), "large " * 200_000, session_id="s")
            assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
            sound = await memory._read(lambda c: c.execute("PRAGMA integrity_check").fetchone()[0])
            assert sound == "ok"
            shell("mount", "-o", "remount,size=32m", str(tmp_path))
            assert await free_and_whole(memory) == "UCOA"
            await run(noting_agent([]), "large " * 200_000, session_id="s")
            assert await free_and_whole(memory) == "UCOAUCOA"
    finally:
        shell("umount", str(tmp_path))
