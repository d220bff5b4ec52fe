"""A turn whose runs went past it says so at warning: in other threads, contexts and sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from agents import Runner, SQLiteSession
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from session_middleware import InMemorySessionMemory, session_scope, with_session_memory
from session_middleware.testing.models import local_agent
from tests.support.sessions import stored

TOLD = "no_run_intercepted"


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "session_middleware")


async def test_a_scope_without_a_run(caplog: pytest.LogCaptureFixture) -> None:
    """A scope in which no run was made says so, unless it failed; one with a run does not."""
    memory = InMemorySessionMemory()
    async with session_scope("s", memory=memory):
        await Runner.run(local_agent(), "Hi")
    with pytest.raises(LookupError):
        async with session_scope("s", memory=memory):
            raise LookupError
    assert TOLD not in caplog.text
    async with session_scope("s", memory=memory):
        pass
    assert TOLD in caplog.text


async def test_a_stream_that_was_started_in_a_scope(caplog: pytest.LogCaptureFixture) -> None:
    """A run that goes on after the block is a run of the block."""
    async with session_scope("s", memory=InMemorySessionMemory()):
        result = Runner.run_streamed(local_agent(), "Hi")
    async for _ in result.stream_events():
        pass
    assert TOLD not in caplog.text


def test_a_synchronous_dependency_whose_scope_stays_in_its_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FastAPI enters it in a thread, whose context never reaches the endpoint."""
    memory = InMemorySessionMemory()
    service = FastAPI()

    def scope(session_id: str) -> Iterator[None]:
        with session_scope(session_id, memory=memory):
            yield

    @service.get("/", dependencies=[Depends(scope)])
    async def endpoint(text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    with TestClient(service) as client:
        assert client.get("/", params={"text": "Hi", "session_id": "s"}).status_code == 200
    assert TOLD in caplog.text
    assert "WARNING" in caplog.text


@pytest.mark.parametrize("pool", ["the loop's", "its own"])
async def test_a_run_in_an_executor(caplog: pytest.LogCaptureFixture, pool: str) -> None:
    """Threads of executors have no context: the run is in no session, and the turn says so."""
    memory = InMemorySessionMemory()
    executor = ThreadPoolExecutor(1) if pool == "its own" else None

    def in_thread() -> Any:
        return asyncio.run(Runner.run(local_agent(), "Hi")).final_output

    @with_session_memory(memory=memory)
    async def chat() -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, in_thread)

    assert await chat(session_id="s")
    assert TOLD in caplog.text
    assert await memory.load_session("s") == []
    caplog.clear()

    @with_session_memory(memory=memory)
    async def with_its_context() -> Any:
        return await asyncio.to_thread(in_thread)

    assert await with_its_context(session_id="s")
    assert TOLD not in caplog.text
    assert await stored(memory) == "U A"
    if executor is not None:
        executor.shutdown()


async def test_a_session_of_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    """A session= of the SDK's inside a turn is respected, and named at warning."""
    memory, theirs = InMemorySessionMemory(), SQLiteSession("theirs")

    @with_session_memory(memory=memory)
    async def chat() -> None:
        await Runner.run(local_agent(), "Hi", session=theirs)

    await chat(session_id="s")
    assert "other_session_given" in caplog.text
    assert "SQLiteSession" in caplog.text
    assert len(await theirs.get_items()) == 2
    theirs.close()
