"""What is particular to the memory on a server: its keys, options, clients, loops and end."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio as redis_asyncio

from session_middleware import open_memory
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import acquire, end, refused
from session_middleware.errors import (
    InvalidMemoryUrl,
    InvalidOption,
    MemoryUnavailable,
    SessionBusy,
    TurnLost,
    WrongSession,
)
from session_middleware.stores.redis import RedisSessionMemory, connections, line
from session_middleware.stores.redis.keys import Keys
from tests.support import ROOT
from tests.support.conditions import until
from tests.support.programs import Programs
from tests.support.valkey import ValkeyServer, own_prefix, valkey_server, wait_until

MakeMemory = Callable[..., RedisSessionMemory]


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def prefix_of(memory: RedisSessionMemory) -> str:
    return str(memory._identity[2])


def keys_of(raw: redis.Redis, memory: RedisSessionMemory) -> set[str]:
    return set(raw.scan_iter(f"{prefix_of(memory)}:*"))


# --- options and URLs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "hosts", "database", "lease"),
    [
        ("redis://h", (("h", 6379),), 0, 30),
        ("rediss://user:secret@h:7/3", (("h", 7),), 3, 30),
        ("valkey://h:7/0?lease=4&ttl=60", (("h", 7),), 0, 4),
        ("valkeys://h?ssl_cert_reqs=none&lease=5", (("h", 6379),), 0, 5),
        ("redis://:p%40ss@[::1]:7/0", (("::1", 7),), 0, 30),
        ("redis://a:1,b:2,c/0", (("a", 1), ("b", 2), ("c", 6379)), 0, 30),
        ("redis://a,b:7/0?sentinel=main", (("a", 26379), ("b", 7)), 0, 30),
    ],
)
def test_a_url_names_a_server(url: str, hosts: Any, database: int, lease: float) -> None:
    """Hosts, ports, database and our options; nothing is opened."""
    memory = open_memory(url)
    assert isinstance(memory, RedisSessionMemory)
    assert memory._identity[1][:2] == (hosts, database)
    assert memory.lease_seconds == lease


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@h:port/0",
        "redis://:secret@h/db",
        "redis://:secret@h/-1",
        "redis://:secret@h/0#x",
        "redis://:secret@h?lease=long",
        "redis+srv://:secret@h",
        "http://:secret@h",
    ],
)
def test_a_url_that_names_none_is_refused(url: str) -> None:
    """Without its password, and with a correct one."""
    with pytest.raises(InvalidMemoryUrl) as raised:
        open_memory(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lease": 0},
        {"lease": "30"},
        {"operation_timeout": -1},
        {"operation_timeout": float("inf")},
        {"key_prefix": ""},
        {"key_prefix": "a{b}"},
        {"ttl": 0},
        {"replicas": -1},
        {"replicas": 1.5},
        {"max_connections": 0},
        {"max_connections": True},
        {"url": "redis://h?lease=3", "lease": 4},
        {"url": "redis://h?unheard=3"},
        {"url": "redis://h", "client": redis_asyncio.Redis()},
        {"client": redis.Redis()},
        {"client": object()},
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    """Names it, and says what it must be."""
    with pytest.raises(InvalidOption):
        RedisSessionMemory(**options)


def test_the_extra_is_named_where_it_is_missing() -> None:
    """The package is imported without redis-py; only who asks for the memory is told."""
    script = (
        "import sys; sys.modules['redis'] = None\n"
        "import session_middleware\n"
        "from session_middleware import *\n"
        "for ask in (lambda: session_middleware.RedisSessionMemory,\n"
        "            lambda: session_middleware.open_memory('redis://h')):\n"
        "    try: ask()\n"
        "    except session_middleware.MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.count("pip install 'session-middleware[redis]'") == 2, done.stderr


def test_two_memories_on_one_database_are_one(redis_url: str) -> None:
    """By the same URL or by a client; another prefix or database is another memory."""
    url = "redis://localhost:7/1"
    memory = RedisSessionMemory(url)
    assert memory.identity == RedisSessionMemory("valkey://u:p@localhost:7/1?lease=3").identity
    client = redis_asyncio.Redis(host="localhost", port=7, db=1)
    assert memory.identity == RedisSessionMemory(client=client).identity
    assert memory.identity != RedisSessionMemory("redis://localhost:7/2").identity
    assert memory.identity != RedisSessionMemory(url, key_prefix="other").identity


# --- keys ------------------------------------------------------------------------------------


async def test_only_keys_under_the_prefix_are_touched(
    make_memory: MakeMemory, raw: redis.Redis
) -> None:
    """Also where another prefix begins with it, or has characters of a pattern."""
    odd = f"{own_prefix()}[a]*"
    memory, other = make_memory(key_prefix=odd), make_memory(key_prefix=f"{odd}:more")
    raw.set(f"{odd}x", "not ours")
    before = set(raw.scan_iter("*"))
    for each in (memory, other):
        await each.append_to_session("s", [user("1")])
        await end(each, await acquire(each, "t"), "awaiting_approval", park=(own_prefix(),))
    touched = set(raw.scan_iter("*")) - before
    assert touched
    assert all(key.startswith(f"{odd}:") for key in touched)
    assert await memory.list_sessions() == ["s"]
    await other.clear_session("s")
    assert await memory.list_sessions() == ["s"]
    assert raw.get(f"{odd}x") == "not ours"
    raw.delete(*touched, f"{odd}x")


async def test_a_session_has_always_the_same_keys(
    make_memory: MakeMemory, raw: redis.Redis
) -> None:
    """However many turns, runs and items it has, whatever its id is: all with one hash tag."""
    memory = make_memory()
    session_id = "a}b{c d/\N{WHITE SMILING FACE}"
    for number in range(5):
        acquired = await acquire(memory, session_id, idempotency_key=f"k{number}")
        await memory.append_items(acquired.lease, 1, 0, [user("1"), call("f"), output("f")])
        await end(memory, acquired, "awaiting_approval", park=(f"p{number}",))
    await memory.append_to_session(session_id, [user("2")])
    tags = {key.split("{")[1].split("}")[0] for key in keys_of(raw, memory)}
    assert {tag for tag in tags if not tag.startswith("index-")} == {"a%7Db%7Bc%20d%2F%E2%98%BA"}
    declared = set(Keys(prefix_of(memory)).of_session(session_id))
    assert {key for key in keys_of(raw, memory) if "index-" not in key} <= declared


async def test_what_is_deleted_leaves_no_word(make_memory: MakeMemory, raw: redis.Redis) -> None:
    """A tombstone with digests and a number stays, for a while."""
    memory = make_memory()
    acquired = await acquire(memory, "secret id", idempotency_key="secret key")
    await memory.append_items(acquired.lease, 1, 0, [user("secret word")])
    await end(memory, acquired, "awaiting_approval", park=("secret state",), output_text="secret")
    await memory.clear_session("secret id")
    left = keys_of(raw, memory)
    assert {key.rpartition(":")[2] for key in left} <= {"gone", "done"}
    for key in left:
        assert 0 < raw.ttl(key) <= 90 * 86400
    gone: Any = raw.hgetall(Keys(prefix_of(memory)).of_session("secret id")[6])
    done: Any = raw.zrange(Keys(prefix_of(memory)).of_session("secret id")[5], 0, -1)
    assert gone
    assert "secret" not in f"{gone} {done}"


async def test_a_fence_grows_with_every_holder(make_memory: MakeMemory, raw: redis.Redis) -> None:
    """Across sessions, over a clear, and where the server's clock was set back."""
    memory = make_memory()
    fences = []
    for session_id in ("a", "b", "a", "b"):
        acquired = await acquire(memory, session_id)
        fences.append(acquired.lease.fence)
        await end(memory, acquired)
        await memory.clear_session(session_id)
    assert fences == sorted(set(fences))
    gone = Keys(prefix_of(memory)).of_session("a")[6]
    ahead = int(raw.hget(gone, "fence") or 0) + 10**12
    raw.hset(gone, "fence", ahead)
    for _ in range(3):
        acquired = await acquire(memory, "a")
        assert acquired.lease.fence > ahead
        ahead = acquired.lease.fence
        await end(memory, acquired)


async def test_a_session_lives_for_its_ttl_after_its_last_turn(
    make_memory: MakeMemory, raw: redis.Redis
) -> None:
    """Each turn refreshes it; what has expired is not there, and is not listed."""
    memory = make_memory(ttl=1000)
    await memory.append_to_session("s", [user("1")])
    items = Keys(prefix_of(memory)).items_of("s")
    raw.pexpire(items, 5000)
    await end(memory, await acquire(memory))
    assert raw.pttl(items) > 900_000
    lives = {key for key in keys_of(raw, memory) if "{s}" in key and raw.ttl(key) == -1}
    assert lives == set()
    brief = make_memory(ttl=0.05)
    await brief.append_to_session("t", [user("1")])
    await until(lambda: not raw.exists(*Keys(prefix_of(memory)).of_session("t")[:2]))
    assert await memory.session_exists("t") is False
    assert await memory.load_session("t") == []
    assert await memory.list_sessions() == ["s"]


async def test_sessions_are_listed_page_by_page(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a server looks at for one page."""
    monkeypatch.setattr(connections, "SCAN_PAGE", 10)
    memory = make_memory()
    ids = [f"session {number}" for number in range(100)]
    await asyncio.gather(*(memory.append_to_session(each, [user("1")]) for each in ids))
    assert sorted(await memory.list_sessions()) == sorted(ids)


# --- clients, loops, threads, processes ------------------------------------------------------


@pytest.mark.parametrize("decodes", [False, True])
async def test_a_client_of_the_callers_is_used_and_not_closed(
    redis_url: str, decodes: bool
) -> None:
    """Whatever it makes of texts, with its own small pool; leases are renewed beside it."""
    async with redis_asyncio.from_url(
        redis_url, decode_responses=decodes, max_connections=2
    ) as client:
        memory = RedisSessionMemory(client=client, key_prefix=own_prefix(), lease=0.3)
        acquired = await acquire(memory)
        session = Keys(prefix_of(memory)).of_session("s")[0]
        granted = await client.hget(session, "until")
        while await client.hget(session, "until") == granted:  # noqa: ASYNC110 - by the server
            await asyncio.sleep(0.01)
        await asyncio.gather(
            *(memory.append_items(acquired.lease, run, 0, [user(f"{run}")]) for run in range(1, 21))
        )
        await end(memory, acquired, output_text="done")
        assert len(await memory.load_session("s")) == 20
        assert (await memory.turns("s"))[0].output_text == "done"
        await memory.cleanup()
        assert await client.ping()


def test_one_memory_serves_threads_and_loops(redis_url: str) -> None:
    """Each loop has connections of its own, closed with it without a word."""
    memory = RedisSessionMemory(redis_url, key_prefix=own_prefix())

    def work(thread: int) -> None:
        for number in range(3):
            asyncio.run(memory.append_to_session("s", [user(f"{thread} {number}")]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asyncio.run(memory.load_session("s"))) == 12
    assert not [loop for loop in memory._connections._clients if loop.is_closed()]
    asyncio.run(memory.cleanup())


@pytest.mark.parametrize("how", ["returns", "raises", "forks"])
def test_a_program_that_closes_nothing_ends_at_once(
    programs: Programs, redis_url: str, raw: redis.Redis, how: str
) -> None:
    """It says nothing, its session is free at once, and a forked child goes on with its own."""
    prefix = own_prefix()
    script = f"""
import asyncio, os, sys
from session_middleware import RedisSessionMemory
from session_middleware.conformance.steps import acquire, end
from session_middleware.conformance.samples import user
memory = RedisSessionMemory({redis_url!r}, key_prefix={prefix!r}, lease=600)
async def main():
    await acquire(memory, "held")
    await memory.append_to_session("s", [user("parent")])
asyncio.run(main())
if {how!r} == "forks":
    child = os.fork()
    asyncio.run(memory.append_to_session("s", [user("child" if child == 0 else "after")]))
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(len(asyncio.run(memory.load_session("s"))))
if {how!r} == "raises":
    raise SystemExit(3)
"""
    done = programs.run("-W", "always", "-c", script, timeout=60)
    assert done.stderr == ""
    assert done.returncode == (3 if how == "raises" else 0)
    assert done.stdout == ("3\n" if how == "forks" else "")
    assert raw.hget(Keys(prefix).of_session("held")[0], "token") is None


async def test_cleaning_up_frees_what_is_held(make_memory: MakeMemory) -> None:
    """At once; with a drain it waits for the turns first."""
    memory, other = make_memory(lease=3600), make_memory(lease=3600)
    acquired = await acquire(memory, "s")
    await refused(SessionBusy, acquire(other, "s"))
    closing = asyncio.ensure_future(memory.cleanup(drain=60))
    await end(memory, acquired)
    await closing
    memory = make_memory(lease=3600)
    await acquire(memory, "s")
    await memory.cleanup()
    await end(other, await acquire(other, "s"))


async def test_a_memory_that_nobody_refers_to_closes_its_connections(
    redis_url: str, raw: redis.Redis
) -> None:
    """Some time after the last reference is gone."""
    url = f"{redis_url}?client_name={own_prefix()}"
    name = url.partition("client_name=")[2]

    def connections() -> int:
        return sum(client["name"] == name for client in raw.client_list())

    memory = RedisSessionMemory(url)
    await memory.ping()
    assert connections() == 1
    del memory

    def is_gone() -> bool:
        gc.collect()
        return connections() == 0

    async with asyncio.timeout(60):
        await until(is_gone)


async def test_a_lease_is_renewed_while_the_loop_is_busy(
    make_memory: MakeMemory, raw: redis.Redis
) -> None:
    """By the housekeeping thread: a tool that blocks the loop loses nothing."""
    memory = make_memory(lease=0.3)
    acquired = await acquire(memory)
    session = Keys(prefix_of(memory)).of_session("s")[0]
    for _ in range(3):
        renewed = raw.hget(session, "until")
        wait_until(lambda renewed=renewed: raw.hget(session, "until") != renewed)  # type: ignore[misc]
    await memory.append_items(acquired.lease, 1, 0, [user("1")])
    await end(memory, acquired)


# --- replicas --------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """A primary and its replica."""
    with valkey_server() as primary, valkey_server() as replica:
        with replica.client() as client:
            client.replicaof("127.0.0.1", primary.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        yield primary, replica


async def test_replicas_confirm_what_is_written(
    pair: tuple[ValkeyServer, ValkeyServer],
) -> None:
    """What was acknowledged is on the replica; without one, it is not acknowledged."""
    primary, replica = pair
    memory = RedisSessionMemory(primary.url, replicas=1, operation_timeout=4)
    with replica.client() as client:
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1"), assistant("1")])
        assert client.zcard("session_middleware:{s}:items") == 2
        await end(memory, acquired)
        client.replicaof("NO", "ONE")
    with pytest.raises(MemoryUnavailable, match="0 of the 1 replicas confirmed"):
        await memory.append_to_session("s", [user("2")])
    await memory.cleanup()


async def test_a_holder_that_outlives_a_failover_is_lost(
    pair: tuple[ValkeyServer, ValkeyServer],
) -> None:
    """The promoted replica knows its lease, and may not know of a later holder's."""
    primary, replica = pair
    old = RedisSessionMemory(primary.url, replicas=1, lease=600)
    new = RedisSessionMemory(replica.url, lease=600)
    acquired = await acquire(old)
    await old.append_items(acquired.lease, 1, 0, [user("1")])
    primary.kill()
    with replica.client() as client:
        client.replicaof("NO", "ONE")
    with pytest.raises(TurnLost):
        await new.append_items(acquired.lease, 1, 1, [assistant("1")])
    assert await new._renew({"s": acquired.lease.token}) == {acquired.lease.token}
    await refused(SessionBusy, acquire(new))  # what it does beside the memory may still go on
    await new.release("s")
    later = await acquire(new)
    assert later.lease.fence > acquired.lease.fence
    await new.append_items(later.lease, 1, 0, [user("2")])
    await end(new, later)
    assert await new.load_session("s") == [user("1"), user("2")]
    await new.cleanup()
    old._leases.forget_all()
    await old.cleanup()


async def test_the_rights_of_the_page_are_enough() -> None:
    """docs/redis.md says which rights the program's user needs, and which options a server."""
    page = (ROOT / "docs" / "redis.md").read_text()
    rights = re.findall(r"`([~&+][^`]+)`", page)
    with valkey_server() as server, server.client() as client:
        words = " ".join(rights).split()
        client.execute_command("ACL", "SETUSER", "program", "on", ">word", "resetchannels", *words)
        url = f"redis://program:word@127.0.0.1:{server.port}/0"
        async with RedisSessionMemory(url, replicas=0) as memory, RedisSessionMemory(url) as peer:
            acquired = await acquire(memory, "s", idempotency_key="k")
            await memory.append_items(acquired.lease, 1, 0, [user("1")])
            await refused(SessionBusy, acquire(peer, ticket=7))
            waiting = asyncio.ensure_future(peer.wait_for_session("s", 7, 60))
            await end(memory, acquired, "awaiting_approval", park=("p",))
            await waiting
            await end(peer, await acquire(peer, ticket=7))
            await refused(WrongSession, acquire(memory, "other", resume="p"))
            assert await memory.list_sessions() == ["s"]
            await memory.clear_session("s")
        denied = client.execute_command("ACL", "LOG")
    assert denied == []


async def test_a_message_wakes_who_waits(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first in the line hears that the session is free, without looking again."""
    monkeypatch.setattr(line, "LOOK_AGAIN", 600)
    memory, peer = make_memory(), make_memory()
    looked = asyncio.Event()
    look = peer._calls.may_be_next

    async def noticed(session_id: str, ticket: int) -> bool:
        answer = await look(session_id, ticket)
        looked.set()
        return answer

    monkeypatch.setattr(peer._calls, "may_be_next", noticed)
    acquired = await acquire(memory)
    await refused(SessionBusy, acquire(peer, ticket=7))
    waiting = asyncio.ensure_future(peer.wait_for_session("s", 7, 600))
    await looked.wait()
    await end(memory, acquired)
    async with asyncio.timeout(60):
        await waiting
    await end(peer, await acquire(peer, ticket=7))
