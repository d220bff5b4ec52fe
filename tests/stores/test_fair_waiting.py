"""Processes that want one session get it in the order in which they asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session_middleware import open_memory, session_scope
from session_middleware.conformance.steps import acquire, end
from tests.support.postgres import make_database
from tests.support.programs import PIPE, Program, Programs
from tests.support.valkey import own_prefix

WRITERS = 5
TURNS = 5

_WRITERS = """
import asyncio, json, os, sys, time
from session_middleware import open_memory, session_scope

URL, WRITERS, TURNS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
START, STARTED = os.pipe()

def say(line):
    os.write(1, f"{line}\\n".encode())  # at once, as the others speak there, too

async def main():
    memory = open_memory(URL)
    await memory.ping()
    say("ready")
    os.read(START, 1)  # until the parent has closed its end
    waits = []
    for number in range(TURNS):
        asked = time.monotonic()
        async with session_scope("s", memory=memory, wait_timeout=100):
            waits.append((asked, time.monotonic()))
            await memory.append_to_session("s", [{"role": "user", "content": "x"}])
    say(json.dumps(waits))
    await memory.cleanup()

writers = []
for _ in range(WRITERS):
    writers.append(os.fork())
    if writers[-1] == 0:
        os.close(STARTED)
        asyncio.run(main())
        sys.exit()
sys.stdin.readline()
os.close(STARTED)
for writer in writers:
    os.waitpid(writer, 0)
"""

_WAITER = """
import asyncio, sys
from session_middleware import open_memory
from session_middleware.conformance.steps import refused, acquire
from session_middleware.errors import SessionBusy

async def main():
    memory = open_memory(sys.argv[1])
    await refused(SessionBusy, acquire(memory, ticket=77))
    print("waits", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


_TAKER = """
import asyncio, sys
from session_middleware import open_memory
from session_middleware.conformance.steps import end, acquire

async def main():
    memory = open_memory(sys.argv[1])
    await memory.release("s")
    await end(memory, await acquire(memory))
    print("ended its turn", flush=True)

asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a storage that processes share, of each kind."""
    if request.param == "postgresql":
        server: str = request.getfixturevalue("postgres_server_url")
        return asyncio.run(make_database(server))
    if request.param == "redis":
        return f"{request.getfixturevalue('redis_url')}?key_prefix={own_prefix()}"
    return f"sqlite:///{tmp_path}/memory.db"


@pytest.fixture
def start(programs: Programs, shared_url: str) -> Any:
    """Start a program on that storage; all are ended with the test."""
    started: list[Program] = []

    def run(program: str, *arguments: str) -> Program:
        process = programs.start("-c", program, shared_url, *arguments, stdin=PIPE, stdout=PIPE)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def _line(process: Program) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_writers_take_turns(start: Callable[..., Program]) -> None:
    """While one waits, each of the others gets the session a few times at most.

    Once is the rule. More often, as one asks some time before its ticket is in the storage, which
    takes longer on a busy machine. Without tickets, one waits until the others are done.
    """
    writers = start(_WRITERS, str(WRITERS), str(TURNS))
    for _ in range(WRITERS):
        assert _line(writers) == "ready"
    assert writers.stdin is not None
    writers.stdin.write("\n")
    writers.stdin.flush()
    waits = [json.loads(_line(writers)) for _ in range(WRITERS)]
    for mine, own in enumerate(waits):
        assert len(own) == TURNS
        for asked, had in own:
            for other, theirs in enumerate(waits):
                between = sum(asked < granted < had for _, granted in theirs)
                assert other == mine or between < TURNS


async def test_a_waiter_that_dies_keeps_nobody_waiting(
    start: Callable[..., Program], shared_url: str
) -> None:
    """The ticket of a process that was killed dies soon, and the next one gets the session."""
    memory: Any = open_memory(shared_url)
    holder = await acquire(memory)
    waiter = start(_WAITER)
    assert _line(waiter) == "waits"
    waiter.kill()
    waiter.wait()
    await end(memory, holder)
    async with session_scope("s", memory=memory, wait_timeout=60):
        pass
    await memory.cleanup()


async def test_a_takeover_by_another_process_wakes_who_waits_here(
    start: Callable[..., Program], shared_url: str
) -> None:
    """A turn that lost its session keeps nobody of its process waiting, though it goes on."""
    memory: Any = open_memory(shared_url, lease=0.9)
    goes_on = asyncio.Event()

    async def stuck() -> None:
        async with session_scope("s", memory=memory):
            goes_on.set()
            await asyncio.Event().wait()

    async def wait() -> None:
        async with session_scope("s", memory=memory, wait_timeout=60):
            pass

    holder = asyncio.ensure_future(stuck())
    await goes_on.wait()
    waiting = asyncio.ensure_future(wait())
    other = start(_TAKER)
    assert await asyncio.to_thread(_line, other) == "ended its turn"
    async with asyncio.timeout(60):
        await waiting
    assert not holder.done()
    holder.cancel()
    await asyncio.wait((holder,))
    await memory.cleanup()
