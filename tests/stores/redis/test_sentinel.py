"""Sentinels name the primary: it dies, and its replica takes over under the same name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis.asyncio as redis_asyncio

from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from session_middleware.errors import MemoryUnavailable, TurnLost
from session_middleware.stores.redis import RedisSessionMemory
from tests.support.under_load import disturbed_under_load
from tests.support.valkey import Sentinels, valkey_sentinels


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    """A primary, two replicas and three Sentinels, of the test's own."""
    with valkey_sentinels() as sentinels:
        yield sentinels


@pytest.mark.long
async def test_a_sentinel_is_no_server(sentinels: Sentinels) -> None:
    """A URL of Sentinels without a name says what is missing."""
    memory = RedisSessionMemory(sentinels.sentinels[0].url)
    with pytest.raises(MemoryUnavailable, match="sentinel=NAME"):
        await memory.load_session("s")
    await memory.cleanup()


@pytest.mark.long
@pytest.mark.parametrize("by", ["url", "client"])
async def test_a_failover_under_load(sentinels: Sentinels, by: str) -> None:
    """The primary is killed; writes go on, every acknowledged one is there, none twice."""
    if by == "url":
        memory = RedisSessionMemory(sentinels.url, operation_timeout=60, replicas=1)
    else:
        places = [("127.0.0.1", server.port) for server in sentinels.sentinels]
        client = redis_asyncio.Sentinel(places).master_for("main")
        memory = RedisSessionMemory(client=client, operation_timeout=60, replicas=1)
    held = await acquire(memory, "held")
    await disturbed_under_load(memory, ["s"], sentinels.primary.kill, writes=20)
    with pytest.raises(TurnLost):
        await memory.append_items(held.lease, 1, 0, [user("from before")])
    await memory.release("held")
    later = await acquire(memory, "held")
    assert later.lease.fence > held.lease.fence
    await end(memory, later)
    await memory.cleanup()
    if by == "client":
        assert await client.ping()
        await client.aclose()
        await client.connection_pool.sentinel_manager.aclose()
