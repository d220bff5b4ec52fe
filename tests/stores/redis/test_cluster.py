"""A cluster: sessions lie on several servers, slots move, primaries die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio as redis_asyncio

from session_middleware.conformance import MemoryConformance
from session_middleware.conformance.conversations import whole_session
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import acquire, end, refused
from session_middleware.errors import TurnLost, UnknownState, WrongSession
from session_middleware.memory import SessionMemory
from session_middleware.stores.redis import RedisSessionMemory
from session_middleware.stores.redis.keys import Keys
from tests.support.conditions import until
from tests.support.under_load import disturbed_under_load
from tests.support.valkey import Cluster, own_prefix, valkey_cluster


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    """Three primaries without replicas."""
    with valkey_cluster(replicas=0) as cluster:
        yield cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three primaries with two replicas each, of the test's own."""
    with valkey_cluster(replicas=2) as cluster:
        yield cluster


@pytest.fixture
async def open_memory() -> AsyncIterator[Callable[..., RedisSessionMemory]]:
    made: list[RedisSessionMemory] = []

    def make(cluster: Cluster, **options: Any) -> RedisSessionMemory:
        made.append(RedisSessionMemory(cluster.url, **({"key_prefix": "p"} | options)))
        return made[-1]

    yield make
    for memory in made:
        await memory.cleanup()


async def test_a_cluster_is_recognised(
    small_cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """Sessions lie on every primary, and are listed from all of them."""
    memory = open_memory(small_cluster, key_prefix=own_prefix())
    ids = [f"session {number}" for number in range(30)]
    await asyncio.gather(*(memory.append_to_session(each, [user(each)]) for each in ids))
    assert sorted(await memory.list_sessions()) == sorted(ids)
    prefix = Keys(memory._identity[2])
    owners = {small_cluster.owner_of(prefix.of_session(each)[0]).port for each in ids}
    assert len(owners) == 3


async def test_what_spans_servers_is_known(
    small_cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """A state that was parked in a session on another server is refused in this one."""
    memory = open_memory(small_cluster, key_prefix=own_prefix())
    for number in range(8):
        await end(
            memory, await acquire(memory, f"s{number}"), "awaiting_approval", park=(f"p{number}",)
        )
        await refused(WrongSession, acquire(memory, "other", resume=f"p{number}"))
    await memory.clear_session("s3")
    await refused(UnknownState, acquire(memory, "another", resume="p3"))
    await refused(TurnLost, acquire(memory, "s3", resume="p3"))


async def test_what_a_process_did_not_come_to_write_is_made_up_for(
    small_cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """A sweep adds what the indexes lack of a session, and removes what is of none."""
    memory = open_memory(small_cluster, key_prefix=own_prefix())
    for session_id in ("a", "b"):
        await whole_session(memory, session_id)
    await memory._index.settled()
    keys = Keys(memory._identity[2])
    lost = keys.indexes_of("a")
    await memory._connections.commands([("DEL", key) for key in lost])
    gone = keys.of_session("b")
    await memory._connections.commands([("DEL", key) for key in gone], gone[0])
    assert await memory.find_turn("trace_a") is None
    async for _ in memory._sweeping._pages(False):
        pass
    assert [info.session_id for info in await memory.sessions()] == ["a"]
    assert [waiting.session_id for waiting in await memory.pending()] == ["a"]
    found = await memory.find_turn("trace_a")
    assert found is not None
    assert found.session_id == "a"
    assert await memory.figures() == {
        "turn.parked": 1,
        "turn.parked.age": (await memory.figures())["turn.parked.age"],
    }
    for index in (keys.indexes_of("b").names, keys.indexes_of("b").traces):
        (members,) = await memory._connections.commands([("ZRANGE", index, 0, -1)], index)
        assert not any(b"b" in member.split(b"\n") for member in members)


async def test_fences_of_other_memories_are_below_on_every_server(
    small_cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """Once sessions with higher ones were copied here, also in a process that begins later."""
    memory = open_memory(small_cluster, key_prefix=own_prefix())
    await memory.append_to_session("s", [user("1")])
    highest = await memory.newest_fence() + 10**12
    info = await memory.session_info("s")
    assert info is not None
    await memory.put_session(info, [], highest, replaces=True)
    for opened in (memory, open_memory(small_cluster, key_prefix=memory._identity[2])):
        for number in range(6):
            taken = await acquire(opened, f"s{number}")
            assert taken.lease.fence > highest
            await end(opened, taken)
    assert await memory.newest_fence() >= highest


async def test_leases_on_all_servers_are_renewed(
    small_cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """One pipeline for each server; a lease that was lost is told."""
    memory = open_memory(small_cluster, key_prefix=own_prefix(), lease=3600)
    acquired = {
        f"s{number}": (await acquire(memory, f"s{number}")).lease.token for number in range(12)
    }
    await memory.release("s5")
    assert await memory._renew(acquired) == {acquired["s5"]}


async def test_a_cluster_client_of_the_callers(small_cluster: Cluster) -> None:
    """It is used in its loop and never closed; the housekeeping has connections of its own."""
    async with redis_asyncio.RedisCluster.from_url(small_cluster.servers[0].url) as client:
        memory = RedisSessionMemory(client=client, key_prefix=own_prefix(), lease=0.3)
        acquired = await acquire(memory)
        with small_cluster.owner_of(Keys(memory._identity[2]).of_session("s")[0]).client() as raw:
            session = Keys(memory._identity[2]).of_session("s")[0]
            granted = raw.hget(session, "until")
            await until(lambda: raw.hget(session, "until") != granted)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await end(memory, acquired)
        await memory.cleanup()
        assert await client.ping(target_nodes=redis_asyncio.RedisCluster.PRIMARIES)


# --- by hand: what a cluster goes through ----------------------------------------------------


@pytest.mark.long
class TestRedisCluster(MemoryConformance):
    """The whole suite."""

    @pytest.fixture(autouse=True)
    def on_a_cluster(self, small_cluster: Cluster) -> None:
        self.url = small_cluster.url
        self.cluster = small_cluster
        self.prefix = own_prefix()

    def make_memory(self) -> SessionMemory:
        return RedisSessionMemory(self.url, key_prefix=self.prefix, lease=3)

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        return RedisSessionMemory(self.url, key_prefix=self.prefix, lease=3)

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        session = Keys(self.prefix).of_session(session_id)[0]
        with self.cluster.owner_of(session).client() as client:
            client.hset(session, "until", "1")


SESSIONS = [f"s{number}" for number in range(12)]


@pytest.mark.long
async def test_slots_move_under_load(
    cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """Sessions that move from server to server are written to all the while."""

    def move() -> None:
        for number, session_id in enumerate(SESSIONS):
            key = Keys("p").of_session(session_id)[0]
            source = cluster.owner_of(key)
            others = [server for server in cluster.primaries if server is not source]
            cluster.move_slot_of(key, others[number % 2])

    await disturbed_under_load(open_memory(cluster, operation_timeout=60), SESSIONS, move)


@pytest.mark.long
async def test_a_primary_dies_under_load(
    cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """Its replica takes over; with replicas=1 every acknowledged append is there, once."""

    def kill() -> None:
        victim = cluster.primaries[0]
        victim.kill()
        cluster.wait_until_whole()

    memory = open_memory(cluster, operation_timeout=60, replicas=1)
    await disturbed_under_load(memory, SESSIONS, kill)


@pytest.mark.long
async def test_a_holder_that_outlives_a_failover_is_lost(
    cluster: Cluster, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """The replica may not know of a later holder: nobody writes under a lease of before."""
    memory = open_memory(cluster, operation_timeout=60, replicas=1, lease=600)
    key = Keys("p").of_session("s")[0]
    acquired = await acquire(memory)
    await memory.append_items(acquired.lease, 1, 0, [user("1")])
    fence = acquired.lease.fence
    victim = cluster.owner_of(key)
    await asyncio.to_thread(victim.kill)
    await asyncio.to_thread(cluster.wait_until_whole)
    memory = open_memory(cluster, operation_timeout=60, lease=600)
    with pytest.raises(TurnLost):
        await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
    assert await memory.load_session("s") == [user("1")]
    await memory.release("s")
    later = await acquire(memory)
    assert later.lease.fence > fence
    await end(memory, later)
