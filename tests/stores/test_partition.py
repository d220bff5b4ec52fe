"""A network that tears between the holder of a session and its server: by marker, needs root."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import session_middleware
from session_middleware import SessionBusy, open_memory
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import acquire, end
from tests.support.conditions import until
from tests.support.partition import PartitionedNetwork, partitioned_network
from tests.support.postgres import PostgresServer, make_database
from tests.support.valkey import valkey_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LEASE = 4.0
LIMIT = 2.0
"""Seconds for each operation of both sides."""


@pytest.fixture
def network() -> Iterator[PartitionedNetwork]:
    with partitioned_network() as network:
        yield network


@pytest.fixture(params=["postgresql", "valkey"])
def url(request: pytest.FixtureRequest, network: PartitionedNetwork) -> Iterator[str]:
    """A server of the test's own at this machine's end of the network."""
    options = f"lease={LEASE:g}&operation_timeout={LIMIT:g}"
    if request.param == "valkey":
        listening = {"bind": f"127.0.0.1 {network.near}", "protected_mode": "no"}
        with valkey_server(**listening) as valkey:
            yield f"redis://{network.near}:{valkey.port}/0?{options}"
        return
    server = PostgresServer(f"listen_addresses = '127.0.0.1,{network.near}'")
    try:
        with (server.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network.network} trust\n")
        path = urlsplit(asyncio.run(_database(server))).path
        yield f"postgresql://postgres@{network.near}:{server.port}{path}?{options}"
    finally:
        server.remove()


async def _database(server: PostgresServer) -> str:
    url = await make_database(server.url)
    connection: Any = await asyncpg.connect(url)
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    return url


@pytest.fixture
async def memory(url: str) -> AsyncIterator[Any]:
    """This process's memory, on the server's side of the network."""
    made: Any = open_memory(url)
    yield made
    await made.cleanup()


class HolderProcess:
    """The process on the other side; it is spoken to through pipes, which no network tears."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked, self._told = process.stdin, process.stdout

    async def hears(self) -> str:
        return (await self._told.readline()).decode().strip()

    def say(self, command: str) -> None:
        self._asked.write(f"{command}\n".encode())

    async def does(self, command: str) -> tuple[str, float]:
        """The outcome of a command, and the seconds until the holder knew it."""
        self.say(command)
        outcome, _, seconds = (await self.hears()).partition(" ")
        return outcome, float(seconds)


@pytest.fixture
async def holder(url: str, network: PartitionedNetwork) -> AsyncIterator[HolderProcess]:
    process = await asyncio.create_subprocess_exec(
        *network.inside([sys.executable, "-m", "tests.support.lease_holder", url]),
        cwd=Path(session_middleware.__file__).parents[1],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield HolderProcess(process)
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


async def taken_over(memory: Any) -> Any:
    """The session, acquired as soon as the lease of its holder has ended, and not before."""
    ends: set[Any] = set()
    made: list[Any] = []

    async def is_acquired() -> bool:
        try:
            made.append(await acquire(memory))
        except SessionBusy as busy:
            ends.add(busy.until)
            return False
        return True

    await until(is_acquired)
    # Held at first, and not renewed any more, but for what arrived just before the cut.
    assert 1 <= len(ends) <= 2
    return made[0]


async def test_a_holder_that_is_cut_off_writes_nothing_more(
    network: PartitionedNetwork, memory: Any, holder: HolderProcess
) -> None:
    """It is told within the limit; another has the session; what was under way changes nothing."""
    assert (await holder.does("acquire"))[0] == "done"
    assert (await holder.does("append before"))[0] == "done"
    network.cut()
    taking = asyncio.ensure_future(taken_over(memory))
    for attempt in ("append first", "append second", "end"):
        outcome, seconds = await holder.does(attempt)
        assert outcome == "MemoryUnavailable"
        assert LIMIT * 0.9 < seconds < LIMIT + 1
    later = await taking
    await memory.append_items(later.lease, 1, 0, [user("after")])
    assert network.bytes_under_way() > 0, "nothing of the old holder's can arrive late"
    network.heal()
    await until(lambda: network.bytes_under_way() == 0)
    assert await memory.load_session("s") == [user("before"), user("after")]
    for attempt in ("append third", "end"):
        assert (await holder.does(attempt))[0] == "TurnLost"
    await memory.append_items(later.lease, 1, 1, [assistant("after")])
    await end(memory, later, runs={1: "completed"})
    assert await memory.load_session("s") == [user("before"), user("after"), assistant("after")]
    assert [record.state for record in await memory.turns("s")] == ["completed", "abandoned"]
    assert (await holder.does("acquire"))[0] == "done", "the network is whole again"


async def test_a_holder_that_nobody_replaced_goes_on(
    network: PartitionedNetwork, memory: Any, holder: HolderProcess
) -> None:
    """A lease that merely ran out while the network was torn is renewed when it is whole."""
    assert (await holder.does("acquire"))[0] == "done"
    network.cut()
    assert (await holder.does("append late"))[0] == "MemoryUnavailable"
    network.heal()
    await until(lambda: network.bytes_under_way() == 0)
    assert (await holder.does("append more"))[0] == "done"
    assert (await holder.does("end"))[0] == "done"
    assert user("more") in await memory.load_session("s")


@pytest.mark.parametrize("heals", [False, True], ids=["torn", "healed"])
async def test_a_run_that_is_cut_off_fails(
    network: PartitionedNetwork, memory: Any, holder: HolderProcess, heals: bool
) -> None:
    """A run whose tool outlasts its lease raises, and its answer is in nobody's history."""
    holder.say("run question")
    assert await holder.hears() == "in tool"
    network.cut()
    later = await taken_over(memory)
    if heals:
        network.heal()
        await until(lambda: network.bytes_under_way() == 0)
    outcome, _ = await holder.does("go on")
    assert outcome == ("TurnLost" if heals else "MemoryUnavailable")
    network.heal()
    await until(lambda: network.bytes_under_way() == 0)
    await memory.append_items(later.lease, 1, 0, [user("after"), assistant("after")])
    await end(memory, later, runs={1: "completed"})
    history = await memory.load_session("s")
    assert history[-2:] == [user("after"), assistant("after")]
    assert not any("done" in str(item) for item in history)
    assert [record.state for record in await memory.turns("s")] == ["completed", "abandoned"]
