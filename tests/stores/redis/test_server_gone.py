"""A server that dies, stops, forgets, refuses or is full: what is acknowledged is there, once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis

from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import acquire, end
from session_middleware.errors import MemoryUnavailable, TurnLost
from session_middleware.stores.redis import RedisSessionMemory
from tests.support.limits import little_time
from tests.support.under_load import append, disturbed_under_load
from tests.support.valkey import ValkeyServer, valkey_server

DURABLE = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A server of the test's own, which writes to the disk before it answers."""
    with valkey_server(**DURABLE) as server:
        yield server


@pytest.fixture
async def open_memory(server: ValkeyServer) -> AsyncIterator[Callable[..., RedisSessionMemory]]:
    made: list[RedisSessionMemory] = []

    def make(**options: Any) -> RedisSessionMemory:
        made.append(RedisSessionMemory(server.url, **options))
        return made[-1]

    yield make
    for memory in made:
        await memory.cleanup()


async def kill_under_load(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory], kills: int
) -> None:
    """Turns and appends go on by themselves; every acknowledged one is there, none twice."""
    memory = open_memory(operation_timeout=60)
    sessions = [f"s{number}" for number in range(8)]

    async def write(memory: Any, session_id: str, text: str) -> None:
        if session_id in sessions[1::2]:
            await append(memory, session_id, text)
            return
        acquired = await acquire(memory, session_id)
        await memory.append_items(acquired.lease, 1, 0, [user(text)])
        await memory.append_items(acquired.lease, 1, 1, [assistant(text)])
        await end(memory, acquired, runs={1: "completed"})

    await disturbed_under_load(memory, sessions, server.restart, times=kills, write=write)
    for session_id in sessions:
        assert {record.state for record in await memory.turns(session_id)} == {"completed"}


async def test_a_killed_server_loses_and_doubles_nothing(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """kill -9 while eight sessions are written to, and a restart."""
    await kill_under_load(server, open_memory, kills=1)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_server_that_is_killed_again_and_again(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """The same, 20 times."""
    await kill_under_load(server, open_memory, kills=20)


async def test_a_stopped_server_ends_operations_at_their_limit(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """SIGSTOP: the connections are there and nothing answers; afterwards all goes on."""
    memory = open_memory()
    acquired = await acquire(memory)
    await memory.append_items(acquired.lease, 1, 0, [user("1")])
    with server.stopped(), little_time(memory, 0.5):
        for operation in (
            memory.load_session("s"),
            memory.append_to_session("t", [user("t")]),
            memory.append_items(acquired.lease, 1, 1, [assistant("1")]),
            acquire(memory, "u"),
            memory.list_sessions(),
        ):
            began = time.monotonic()
            with pytest.raises(MemoryUnavailable) as raised:
                await operation
            assert time.monotonic() - began >= 0.4
            assert isinstance(raised.value.__cause__, TimeoutError)
    await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
    await end(memory, acquired)
    assert await memory.load_session("s") == [user("1"), assistant("1")]


async def test_nobody_is_there(open_memory: Callable[..., RedisSessionMemory]) -> None:
    """A port that nobody listens on is MemoryUnavailable, without the password."""
    memory = RedisSessionMemory("redis://:secret@127.0.0.1:1/0", operation_timeout=0.2)
    with pytest.raises(MemoryUnavailable) as raised:
        await memory.load_session("s")
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value.__cause__, redis.ConnectionError)
    await memory.cleanup()


async def test_dropped_connections_are_made_again(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """A server that drops its clients in mid-turn is not noticed."""
    memory = open_memory()
    with server.client() as other:
        for number in range(5):
            acquired = await acquire(memory)
            other.client_kill_filter(_type="normal", skipme=True)
            await memory.append_items(acquired.lease, 1, 0, [user(f"{number}")])
            other.client_kill_filter(_type="normal", skipme=True)
            await end(memory, acquired)
    assert await memory.load_session("s") == [user(f"{number}") for number in range(5)]


async def test_forgotten_scripts_are_sent_again(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """SCRIPT FLUSH between any two operations changes nothing."""
    memory = open_memory(lease=3600)
    with server.client() as other:
        acquired = await acquire(memory)
        for position in range(3):
            other.script_flush()
            await memory.append_items(acquired.lease, 1, position, [user(f"{position}")])
        other.script_flush()
        assert await memory._renew({"s": acquired.lease.token}) == set()
        await end(memory, acquired)
    assert len(await memory.load_session("s")) == 3


async def test_a_full_pool_is_waited_for(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """Fifty operations at once on two connections are all done; the server sees no third."""
    memory = open_memory(max_connections=2)
    await asyncio.gather(*(memory.append_to_session("s", [user(f"{n}")]) for n in range(50)))
    assert len(await memory.load_session("s")) == 50
    with server.client() as other:
        assert len(other.client_list(_type="normal")) <= 3


async def test_a_read_only_server_is_waited_for(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """A replica is MemoryUnavailable to writers, until it is a primary."""
    memory = open_memory()
    await memory.append_to_session("s", [user("1")])
    with server.client() as other:
        other.replicaof("127.0.0.1", 1)
        with little_time(memory), pytest.raises(MemoryUnavailable) as raised:
            await memory.append_to_session("s", [user("refused")])
        assert isinstance(raised.value.__cause__, redis.ReadOnlyError)
        other.replicaof("NO", "ONE")
    await memory.append_to_session("s", [user("2")])
    assert await memory.load_session("s") == [user("1"), user("2")]


async def test_no_words_are_in_an_error(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """A server that refuses a command says with which arguments; the error does not."""
    memory = open_memory()
    await memory.ping()
    with server.client() as other:
        other.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
        with little_time(memory), pytest.raises(MemoryUnavailable) as raised:
            await memory.append_to_session("a session", [user("a word")])
        other.execute_command("ACL", "SETUSER", "default", "+@all")
    assert "a word" not in str(raised.value)
    assert "a session" not in str(raised.value)


# --- another server under the same name ------------------------------------------------------


async def test_a_restart_keeps_the_turn(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """A server that lost nothing goes on with the turn that it knows."""
    memory = open_memory(operation_timeout=30)
    acquired = await acquire(memory)
    await memory.append_items(acquired.lease, 1, 0, [user("1")])
    await asyncio.to_thread(server.restart)
    await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
    await end(memory, acquired)
    assert await memory.load_session("s") == [user("1"), assistant("1")]


async def test_a_lease_that_expired_before_the_restart_is_lost(
    server: ValkeyServer, open_memory: Callable[..., RedisSessionMemory]
) -> None:
    """Somebody may have had the session since, and be forgotten with what was not on the disk."""
    memory = open_memory(operation_timeout=30)
    acquired = await acquire(memory)
    memory._leases.forget_all()  # as if its process had been stopped
    with server.client() as other:
        other.hset("session_middleware:{s}:session", "until", "1")
    await asyncio.to_thread(server.restart)
    with pytest.raises(TurnLost):
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
    assert await memory.load_session("s") == []
    await end(memory, await acquire(memory))
