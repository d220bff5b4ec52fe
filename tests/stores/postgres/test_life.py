"""Event loops that come and go, threads, forks, the end of the process; leases beside all that."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from session_middleware import MemoryClosed, PostgresSessionMemory, session_scope
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, refused
from session_middleware.errors import SessionBusy
from tests.support.conditions import until
from tests.support.programs import Programs

CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


def test_loops_that_come_and_go_leave_no_connection(postgres_url: str) -> None:
    """Each ``asyncio.run`` closes the connections that it made, without ``cleanup()``."""
    memory = PostgresSessionMemory(postgres_url)

    async def count() -> int:
        connection: Any = await asyncpg.connect(postgres_url)
        found: int = await connection.fetchval(CONNECTIONS)
        await connection.close()
        return found

    before = asyncio.run(count())
    for number in range(5):
        asyncio.run(memory.append_to_session("s", [user(f"{number}")]))
    assert asyncio.run(count()) == before
    items = asyncio.run(memory.load_session("s"))
    assert items == [user(f"{number}") for number in range(5)]
    asyncio.run(memory.cleanup())
    with pytest.raises(MemoryClosed):
        asyncio.run(memory.load_session("s"))


def test_a_loop_that_is_closed_without_ending_what_it_has(postgres_url: str) -> None:
    """Its connections are left behind, and the memory goes on in other loops."""
    memory = PostgresSessionMemory(postgres_url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(memory.append_to_session("s", [user("1")]))
    for pool in memory._server._pools.values():
        pool.pool.terminate()  # as the server would, some time
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert asyncio.run(memory.load_session("s")) == [user("1")]
    asyncio.run(memory.cleanup())


def test_threads_at_once(postgres_url: str) -> None:
    """Each with a loop of its own, on one memory."""
    memory = PostgresSessionMemory(postgres_url)
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(5):
                asyncio.run(memory.append_to_session(name, [user(f"{number}")]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(5):
        assert len(asyncio.run(memory.load_session(f"t{number}"))) == 5
    asyncio.run(memory.cleanup())


_FORGETFUL = """
import asyncio, sys, warnings
warnings.simplefilter("error")
from session_middleware import PostgresSessionMemory, session_scope

memory = PostgresSessionMemory(sys.argv[1])

async def main():
    async with session_scope("s", memory=memory):
        await memory.append_to_session("s", [{"role": "user", "content": "1"}])

asyncio.run(main())
asyncio.run(main())
"""


def test_a_program_that_never_cleans_up(postgres_url: str) -> None:
    """It ends at once, warns of nothing, and has stored what was acknowledged."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", _FORGETFUL, postgres_url],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONASYNCIODEBUG": "0"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    memory = PostgresSessionMemory(postgres_url)
    assert len(asyncio.run(memory.load_session("s"))) == 2
    asyncio.run(memory.cleanup())


_FORKING = """
import asyncio, os, sys
from session_middleware import PostgresSessionMemory

memory = PostgresSessionMemory(sys.argv[1])

async def say(text):
    await memory.append_to_session("s", [{"role": "user", "content": text}])

with asyncio.Runner() as runner:
    runner.run(say("parent 1"))
    child = os.fork()
    if child == 0:
        asyncio.run(say("child"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    runner.run(say("parent 2"))
"""


def test_a_forked_child_has_connections_of_its_own(programs: Programs, postgres_url: str) -> None:
    """Parent and child go on, and neither writes into the other's connection."""
    done = programs.run("-c", _FORKING, postgres_url, timeout=100)
    assert done.returncode == 0, done.stderr
    memory = PostgresSessionMemory(postgres_url)
    said = [item["content"] for item in asyncio.run(memory.load_session("s"))]
    assert said == ["parent 1", "child", "parent 2"]
    asyncio.run(memory.cleanup())


@pytest.mark.parametrize("with_a_pool", [False, True])
async def test_a_lease_is_renewed_while_the_loop_is_blocked(
    with_a_pool: bool, postgres_url: str, make_memory: Callable[..., Any], psql: Any
) -> None:
    """By a thread of the package, also where the pool is the caller's."""
    pool = await asyncpg.create_pool(postgres_url, min_size=1) if with_a_pool else None
    memory = PostgresSessionMemory(None if pool else postgres_url, pool=pool, lease=0.9)
    acquired = await acquire(memory)
    select = "SELECT lease_until FROM session_middleware_session WHERE session_id = 's'"
    first = await psql.fetchval(select)
    renewed = False
    deadline = time.monotonic() + 60
    while not renewed and time.monotonic() < deadline:
        program = subprocess.run(  # noqa: ASYNC221 - the loop is to be blocked
            [sys.executable, "-c", _LOOK, postgres_url, select], capture_output=True, text=True
        )
        renewed = program.stdout.strip() != first.isoformat()
    assert renewed
    await refused(SessionBusy, acquire(make_memory()))
    assert acquired.lease.turn == 1
    await memory.cleanup()
    if pool is not None:
        await pool.close()


_LOOK = """
import asyncio, sys
import asyncpg

async def look():
    connection = await asyncpg.connect(sys.argv[1])
    print((await connection.fetchval(sys.argv[2])).isoformat())

asyncio.run(look())
"""


async def test_cleanup_frees_what_is_held(make_memory: Callable[..., Any]) -> None:
    """The session of a turn that still runs is free at once, and its turn is abandoned."""
    memory, other = make_memory(), make_memory()
    await acquire(memory)
    await refused(SessionBusy, acquire(other))
    await memory.cleanup()
    await memory.cleanup()
    assert (await acquire(other)).lease.turn == 2
    assert (await other.turns("s"))[1].state == "abandoned"


async def test_a_memory_that_nobody_refers_to_closes_its_connections(
    postgres_url: str, psql: Any
) -> None:
    """Some time after the last reference is gone."""
    before = await psql.fetchval(CONNECTIONS)
    memory = PostgresSessionMemory(postgres_url)
    async with session_scope("s", memory=memory):
        pass
    gone = weakref.ref(memory)
    del memory
    await until(lambda: (gc.collect(), gone() is None)[1])

    async def is_gone() -> bool:
        return bool(await psql.fetchval(CONNECTIONS) <= before)

    async with asyncio.timeout(60):
        await until(is_gone)
