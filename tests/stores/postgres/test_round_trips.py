"""How often the memory waits for the server, counted on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from agents import Runner

from session_middleware import PostgresSessionMemory, last_turns, with_session_memory
from session_middleware.conformance.samples import assistant, user
from session_middleware.stores.items import encode_items
from session_middleware.stores.records import AcquireRequest, ReadRequest, RunItems, TurnEnd
from session_middleware.testing.models import local_agent
from tests.support.postgres_proxy import PostgresProxy


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[PostgresProxy]:
    """A proxy to the database, which counts."""
    made = PostgresProxy(postgres_url)
    yield made
    made.close()


@pytest.fixture
async def warm(proxy: PostgresProxy, make_memory: Callable[..., Any]) -> Any:
    """A memory of one connection, which has sent each of its statements before."""
    memory = make_memory(proxy.url, max_size=1)
    for session_id in ("warm", "warm"):
        await whole_turn(memory, session_id)
    return memory


async def whole_turn(memory: Any, session_id: str) -> None:
    """Acquire, load, append, end."""
    acquired = await memory.acquire(AcquireRequest(session_id, datetime.now(UTC)))
    await memory.load_turns(session_id)
    await memory.load_items(session_id)
    await memory.newest_turns([session_id])
    await memory.append_items(acquired.lease, 1, 0, [user("1")])
    await memory.end_turn(acquired.lease, TurnEnd("completed", datetime.now(UTC)))


async def test_load_append_acquire_and_end_wait_once(warm: Any, proxy: PostgresProxy) -> None:
    """Each of them is one round trip, also the first in a session and with a window."""
    asks: dict[str, int] = {}

    async def count(name: str, work: Any) -> Any:
        proxy.count_anew()
        outcome = await work
        asks[name] = proxy.asks
        return outcome

    request = AcquireRequest("s", datetime.now(UTC))
    acquired = await count("acquire", warm.acquire(request))
    await count("append", warm.append_items(acquired.lease, 1, 0, [user("1"), assistant("2")]))
    end = TurnEnd("completed", datetime.now(UTC), runs={1: "completed"})
    await count("end", warm.end_turn(acquired.lease, end))
    await count("load", warm.load_turns("s"))
    await count("load with a window", warm.load_turns("s", newest=last_turns(3)))
    await count("load items", warm.load_items("s"))
    await count("newest turns", warm.newest_turns(["s", "warm", "unknown"]))
    assert asks == dict.fromkeys(asks, 1)


async def test_a_whole_turn_waits_twice(warm: Any, proxy: PostgresProxy) -> None:
    """Acquiring stores the input and reads the history; the answer is written with the end."""
    for number in range(3):
        proxy.count_anew()
        asked = RunItems(1, 0, encode_items([user(f"{number}")]), "d")
        request = AcquireRequest("s", datetime.now(UTC), read=ReadRequest(), input=asked)
        acquired = await warm.acquire(request)
        assert acquired.stored
        assert acquired.loaded is not None
        assert len(acquired.loaded.turns) == number
        answered = RunItems(1, 1, encode_items([assistant(f"{number}")]))
        end = TurnEnd("completed", datetime.now(UTC), runs={1: "completed"})
        await warm.write_turn(acquired.lease, [answered], end)
        assert proxy.asks == 2


async def test_a_run_of_the_sdk_waits_twice(warm: Any, proxy: PostgresProxy) -> None:
    """A plain run costs two round trips: one before the model is called, one after it."""
    run = with_session_memory(Runner.run, memory=warm)
    agent = local_agent()
    await run(agent, "Hi, I'm Alice", session_id="alice")
    proxy.count_anew()
    result = await run(agent, "What's my name?", session_id="alice")
    assert "Alice" in str(result.final_output)
    assert proxy.asks == 2


async def test_a_pool_that_somebody_owns_is_used_and_left_open(
    proxy: PostgresProxy, postgres_url: str
) -> None:
    """With a pool of the caller's, cleanup() closes what the memory opened and no more."""
    async with asyncpg.create_pool(proxy.url, min_size=1, max_size=2) as pool:
        memory = PostgresSessionMemory(pool=pool)
        await memory.append_to_session("s", [user("1")])
        assert await memory.load_session("s") == [user("1")]
        await memory.cleanup()
        assert await pool.fetchval("SELECT 1") == 1
