"""Connections that break, servers that die, stop or refuse: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from session_middleware import MemoryUnavailable, PostgresSessionMemory, SessionMemoryError
from session_middleware.conformance.samples import assistant, user
from session_middleware.stores.items import encode_items
from session_middleware.stores.managing import removing
from session_middleware.stores.records import (
    AcquireRequest,
    KeptState,
    PendingCall,
    ReadRequest,
    RunItems,
    TurnEnd,
)
from tests.support.conditions import until
from tests.support.limits import little_time
from tests.support.postgres import PostgresServer, make_database
from tests.support.postgres_proxy import Message, PostgresProxy
from tests.support.proxy import proxy_to


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[PostgresProxy]:
    """A proxy to the database, which cuts connections."""
    made = PostgresProxy(postgres_url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of these tests' own, which they may kill."""
    made = PostgresServer()
    yield made
    made.remove()


def request(session_id: str, **rest: Any) -> AcquireRequest:
    return AcquireRequest(session_id, datetime.now(UTC), **rest)


def completed(**rest: Any) -> TurnEnd:
    return TurnEnd("completed", datetime.now(UTC), **rest)


# --- a connection that is cut ------------------------------------------------------------------


class OneCut:
    """Cuts a connection before the message of this number in one direction, and no other."""

    def __init__(self, at: int, *, client: bool) -> None:
        self.at = at
        self.client = client
        self.seen = 0
        self.made = False

    def __call__(self, message: Message) -> bool:
        if message.client is not self.client or self.made:
            return False
        self.made = self.seen == self.at
        self.seen += 1
        return self.made


_WHOLE = [user("1"), assistant("1"), user("2"), assistant("2")]


async def _turn_in_steps(memory: Any, session_id: str) -> None:
    """A turn with every kind of write."""
    asked = RunItems(1, 0, encode_items([user("1")]), "d")
    acquired = await memory.acquire(request(session_id, read=ReadRequest(), input=asked))
    assert acquired.lease.turn == 1
    assert acquired.stored
    await memory.append_items(acquired.lease, 1, 1, [assistant("1")])
    await memory.append_items(acquired.lease, 2, 0, [user("2")])
    assert await memory.load_items(session_id) == [user("1"), assistant("1"), user("2")]
    answer = RunItems(2, 1, encode_items([assistant("2")]))
    await memory.write_turn(acquired.lease, [answer], completed(runs={1: "completed"}))


async def _writes_outside(memory: Any, session_id: str) -> None:
    """Every write that no turn makes."""
    await memory.append_to_session(session_id, [user("old"), assistant("old")])
    await memory.append_to_session(session_id, [user("popped")])
    assert await memory.pop_item(session_id) == user("popped")
    await memory.save_session(session_id, [user("1"), assistant("1"), user("2")])
    await memory.append_to_session(session_id, [assistant("2")])
    await memory.append_to_session(f"{session_id} gone", [user("x")])
    await memory.clear_session(f"{session_id} gone")


async def _retries(memory: Any, session_id: str) -> None:
    """A turn that is made again under its key, and a run that is in it."""
    first = await memory.acquire(request(session_id, idempotency_key="k"))
    await memory.append_items(first.lease, 1, 0, [user("1"), assistant("lost")])
    await memory.end_turn(first.lease, TurnEnd("failed", datetime.now(UTC), runs={1: "failed"}))
    again = await memory.acquire(request(session_id, idempotency_key="k"))
    assert (again.lease.turn, [run.item_count for run in again.carried]) == (2, [2])
    assert await memory.retry_run(again.lease, 1, 2) == 0
    await memory.append_items(again.lease, 2, 0, _WHOLE)
    await memory.end_turn(again.lease, completed(runs={2: "completed"}))


async def _labels(memory: Any, session_id: str) -> None:
    """What people note on a conversation: its title and metadata, and a decision."""
    await _parked(memory, session_id)
    await memory.set_title(session_id, "One")
    await memory.set_metadata(session_id, {"a": 1})
    await memory.decide(session_id, 1, "call_f", approve=False, message="no")
    await memory.delete(session_id)
    await memory.append_to_session(session_id, _WHOLE)


async def _copies(memory: Any, session_id: str) -> None:
    """Turns that are undone, and put in the place of others."""
    await memory.append_to_session(session_id, _WHOLE)
    copied = [line async for line in memory.export(session_id)]
    assert [record.turn for record in await memory.undo(session_id)] == [1]
    assert await memory.import_(copied, replace=True) == 1


async def _parked(memory: Any, session_id: str) -> None:
    acquired = await memory.acquire(request(session_id))
    await memory.append_items(acquired.lease, 1, 0, [user("refund")])
    state = KeptState("p", (PendingCall("call_f", "refund"),), "{}")
    end = TurnEnd("awaiting_approval", datetime.now(UTC), park=("p",), states=(state,))
    await memory.end_turn(acquired.lease, end)


# An answer of the server's has four messages or more, which a client hears of together: each
# answer is cut also where every third message is.
EACH = [("client", 1), ("server", 3), pytest.param("server", 1, marks=pytest.mark.long)]


@pytest.mark.parametrize("scenario", [_turn_in_steps, _writes_outside, _retries, _labels, _copies])
@pytest.mark.parametrize(("direction", "every"), EACH)
async def test_a_connection_that_is_cut_at_each_message(
    scenario: Callable[[Any, str], Any],
    direction: str,
    every: int,
    proxy: PostgresProxy,
    make_memory: Callable[..., Any],
    psql: Any,
) -> None:
    """Wherever the connection breaks, each write is carried out once, and no caller hears of it."""
    memory = make_memory(proxy.url, max_size=1)
    await scenario(memory, "warm")
    for at in itertools.count(0, every):
        cut = OneCut(at, client=direction == "client")
        proxy.cut_before = cut
        session_id = f"cut {direction} {at}"
        await scenario(memory, session_id)
        assert await memory.load_items(session_id) == _WHOLE, at
        records = await memory.turns(session_id)
        assert {record.state for record in records} <= {"completed", "replaced"}
        held = "SELECT count(*) FROM session_middleware_session WHERE token IS NOT NULL"
        assert await psql.fetchval(held) == 0
        if not cut.made:
            break
    assert at > 5


@pytest.mark.parametrize("direction", ["client", "server"])
async def test_a_connection_that_is_cut_while_sessions_are_deleted(
    direction: str,
    proxy: PostgresProxy,
    make_memory: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the connection breaks, every session with the prefix is deleted, page by page."""
    monkeypatch.setattr(removing, "PAGE", 2)
    memory = make_memory(proxy.url, max_size=1)
    for at in itertools.count():
        for number in range(5):
            await memory.append_to_session(f"a:{number}", [user("x")])
        cut = OneCut(at, client=direction == "client")
        proxy.cut_before = cut
        await memory.delete_prefix("a:")
        assert await memory.list_sessions() == [], at
        if not cut.made:
            break
    assert at > 5


async def test_a_server_that_cannot_be_reached(make_memory: Callable[..., Any]) -> None:
    """The error names the server, not the password, and comes within the limit."""
    memory = make_memory("postgresql://u:secret@127.0.0.1:1/db", operation_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(MemoryUnavailable, match=r"127\.0\.0\.1:1") as raised:
        await memory.load_session("s")
    assert time.monotonic() - began < 5
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is not None


@pytest.fixture
async def standby(psql: Any) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The database takes no writes; the function promotes it."""
    database = await psql.fetchval("SELECT current_database()")
    await psql.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')

    async def promote() -> None:
        await psql.execute("SET default_transaction_read_only = off")
        await psql.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')

    yield promote
    await promote()


@pytest.fixture
def silent_host() -> Iterator[str]:
    """A host that takes connections and says nothing, as one whose machine stalls."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_the_primary_is_found_behind_a_silent_host(
    silent_host: str, postgres_url: str, make_memory: Callable[..., Any]
) -> None:
    """One of several hosts that does not answer, or that is gone, stands in nobody's way."""
    memory = make_memory(
        postgres_url.replace("@", f"@{silent_host},127.0.0.1:1,"), operation_timeout=20
    )
    began = time.monotonic()
    await memory.append_to_session("s", [user("1")])
    assert time.monotonic() - began < 15
    assert await memory.load_session("s") == [user("1")]


async def test_only_standbys_answer(
    silent_host: str, standby: Any, postgres_url: str, make_memory: Callable[..., Any]
) -> None:
    """The error is of the host that may be the primary, and names all of them."""
    hosts = f"{silent_host},127.0.0.1:1,{urlsplit(postgres_url).netloc.rpartition('@')[2]}"
    url = postgres_url.replace("@", f"@{silent_host},127.0.0.1:1,")
    memory = make_memory(f"{url}?target_session_attrs=read-write", operation_timeout=5)
    with pytest.raises(MemoryUnavailable, match=hosts) as told:
        await memory.load_session("s")
    assert not isinstance(told.value.__cause__, asyncpg.TargetServerAttributeNotMatched)
    memory = make_memory(f"{postgres_url}?target_session_attrs=read-write", operation_timeout=5)
    with pytest.raises(MemoryUnavailable, match="read-only standby"):
        await memory.load_session("s")


async def test_a_standby_is_promoted_while_the_old_primary_is_silent(
    silent_host: str, standby: Any, postgres_url: str, make_memory: Callable[..., Any]
) -> None:
    """It is asked again and again, and found, long before the silent host is given up."""
    with proxy_to(urlsplit(postgres_url).port or 0) as proxy:
        host = f"{silent_host},127.0.0.1:{proxy.port}"
        url = f"postgresql://postgres@{host}{urlsplit(postgres_url).path}"
        memory = make_memory(f"{url}?target_session_attrs=read-write", operation_timeout=100)
        writing = asyncio.ensure_future(memory.append_to_session("s", [user("1")]))
        await until(lambda: proxy.requests > 5)
        assert not writing.done()
        began = time.monotonic()
        await standby()
        await writing
        assert time.monotonic() - began < 50
        assert await memory.load_session("s") == [user("1")]


async def test_a_pool_that_is_full(make_memory: Callable[..., Any], psql: Any) -> None:
    """Operations wait for a connection within the limit, and go on when one is free."""
    memory = make_memory(max_size=1)
    await memory.append_to_session("s", [user("1")])
    async with psql.transaction():
        await psql.execute("SELECT FROM session_middleware_session FOR UPDATE")
        with little_time(memory, 3):
            blocked = asyncio.ensure_future(memory.append_to_session("s", [user("2")]))
            await until(lambda: psql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        with little_time(memory), pytest.raises(MemoryUnavailable, match="did not answer in time"):
            await memory.load_session("s")
        with pytest.raises(MemoryUnavailable, match="did not answer in time"):
            await blocked
    assert (await memory.load_session("s"))[0] == user("1")


async def test_a_read_only_standby_is_named(standby: Any, make_memory: Callable[..., Any]) -> None:
    """A server that takes no writes is MemoryUnavailable, and the message says why."""
    memory = make_memory(operation_timeout=5)
    with pytest.raises(MemoryUnavailable, match="read-only"):
        await memory.append_to_session("s", [user("1")])


# --- a server that dies ------------------------------------------------------------------------


class Load:
    """Clients that each append turn after turn to a session of their own."""

    def __init__(self, memory: Any, clients: int) -> None:
        self.memory = memory
        self.acknowledged: dict[str, list[str]] = {f"s{n}": [] for n in range(clients)}
        self.unsure: dict[str, set[str]] = {name: set() for name in self.acknowledged}
        self.errors: list[Exception] = []
        self.ends = False

    async def run(self) -> None:
        await asyncio.gather(*(self._converse(name) for name in self.acknowledged))

    async def _converse(self, name: str) -> None:
        for number in itertools.count():
            if self.ends:
                return
            said = f"{name} {number}"
            try:
                acquired = await self.memory.acquire(request(name))
                await self.memory.append_items(acquired.lease, 1, 0, [user(said)])
                answer = [RunItems(1, 1, encode_items([assistant(said)]))]
                await self.memory.write_turn(acquired.lease, answer, completed())
            except SessionMemoryError as error:
                self.errors.append(error)
                self.unsure[name].add(said)
                continue
            self.acknowledged[name].append(said)

    @property
    def turns(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def reaches(self, more: int) -> None:
        """Wait until so many more turns were acknowledged."""
        wanted = self.turns + more
        await until(lambda: self.turns >= wanted)

    async def check(self) -> None:
        """Every acknowledged turn is there, whole, in order and once."""
        for name, said in self.acknowledged.items():
            items = await self.memory.load_items(name)
            asked = [item["content"] for item in items if item["role"] == "user"]
            answered = [item["content"][0]["text"] for item in items if item["role"] != "user"]
            assert len(set(asked)) == len(asked), f"{name}: doubled"
            assert len(set(answered)) == len(answered), f"{name}: doubled"
            known = [text for text in asked if text not in self.unsure[name]]
            assert known == said, f"{name}: lost or reordered"
            assert set(said) <= set(answered), f"{name}: an answer is lost"


async def _killed_under_load(server: PostgresServer, times: int) -> None:
    url = await make_database(server.url)
    async with PostgresSessionMemory(url, operation_timeout=30, lease=5) as memory:
        load = Load(memory, 8)
        running = asyncio.ensure_future(load.run())
        for _ in range(times):
            await load.reaches(30)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await load.reaches(30)
        load.ends = True
        await running
        await load.check()
        assert load.errors == [], "within the limit no client hears of it"


async def test_a_server_that_is_killed_and_starts_again(server: PostgresServer) -> None:
    """kill -9 under a load of turns: all acknowledged ones are there once, and clients go on."""
    await _killed_under_load(server, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_server_that_is_killed_twenty_times(server: PostgresServer) -> None:
    """The same, twenty times in a row."""
    await _killed_under_load(server, 20)


async def test_a_server_that_is_stopped(server: PostgresServer) -> None:
    """SIGSTOP: every operation ends at its limit, and the memory works again afterwards."""
    url = await make_database(server.url)
    async with PostgresSessionMemory(url) as memory:
        await memory.append_to_session("s", [user("1")])
        acquired = await memory.acquire(request("t"))
        with server.frozen(), little_time(memory, 0.5):
            for work in (
                memory.load_session("s"),
                memory.append_to_session("s", [user("2")]),
                memory.append_items(acquired.lease, 1, 0, [user("1")]),
                memory.ping(),
            ):
                began = time.monotonic()
                with pytest.raises(MemoryUnavailable, match="in time"):
                    await work
                assert time.monotonic() - began < 5
        assert (await memory.load_session("s"))[0] == user("1")


async def test_a_database_that_is_restarted_in_order(server: PostgresServer) -> None:
    """A restart in the middle of a turn is not noticed by the turn."""
    url = await make_database(server.url)
    async with PostgresSessionMemory(url, operation_timeout=30) as memory:
        acquired = await memory.acquire(request("s"))
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await asyncio.to_thread(server.stop)
        appending = asyncio.ensure_future(
            memory.append_items(acquired.lease, 1, 1, [assistant("1")])
        )
        await asyncio.to_thread(server.start)
        await appending
        await memory.end_turn(acquired.lease, completed())
        (record,) = await memory.turns("s")
        assert (record.state, record.items) == ("completed", [user("1"), assistant("1")])


async def test_tables_that_were_dropped(psql: Any, postgres_server_url: str) -> None:
    """A database without our functions is told as such, with what to do."""
    url = await make_database(postgres_server_url)
    async with PostgresSessionMemory(url, operation_timeout=2) as memory:
        await memory.ping()
        connection: Any = await asyncpg.connect(url)
        await connection.execute("DROP TABLE session_middleware_session CASCADE")
        await connection.close()
        with pytest.raises(SessionMemoryError, match="session-middleware schema"):
            await memory.append_to_session("s", [user("1")])
