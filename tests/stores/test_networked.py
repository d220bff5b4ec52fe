"""A lease that its caller never hears of is ended, on each server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from session_middleware import _background, open_memory
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from session_middleware.errors import MemoryUnavailable, SessionBusy
from tests.support.conditions import until
from tests.support.limits import little_time
from tests.support.postgres import make_database
from tests.support.proxy import Proxy, proxy_to
from tests.support.valkey import own_prefix

MakeMemory = Callable[..., Any]


@pytest.fixture(params=["postgresql", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    """The URL of a place of the test's own on a server, of each kind, for one connection a loop."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server_url")
        return f"{asyncio.run(make_database(server))}?max_size=1"
    return f"{request.getfixturevalue('redis_url')}?key_prefix={own_prefix()}&max_connections=1"


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxy_to(urlsplit(server_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
async def make_memory(server_url: str) -> AsyncIterator[MakeMemory]:
    """Make memories there, directly or through a proxy, with leases that do not expire."""
    made: list[Any] = []

    def make(
        proxy: Proxy | None = None, *, operation_timeout: float = 30, lease: int = 3600
    ) -> Any:
        parts = urlsplit(server_url)
        if proxy is not None:
            user_info, at, _ = parts.netloc.rpartition("@")
            parts = parts._replace(netloc=f"{user_info}{at}127.0.0.1:{proxy.port}")
        url = f"{urlunsplit(parts)}&lease={lease}&operation_timeout={operation_timeout}"
        made.append(open_memory(url))
        return made[-1]

    await make().append_to_session("first", [user("1")])  # with time to make the tables
    yield make
    for memory in made:
        await memory.cleanup()


async def is_free(memory: Any) -> bool:
    """Whether the session is to be had; then it is free again."""
    try:
        await end(memory, await acquire(memory))
    except SessionBusy:
        return False
    return True


async def is_soon_free(memory: Any) -> bool:
    async with asyncio.timeout(60):
        await until(lambda: is_free(memory))
    return True


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_answer_that_is_lost_for_good_leaves_no_lease(
    make_memory: MakeMemory, proxy: Proxy, cancelled: bool
) -> None:
    """The server granted the lease and is gone; when it is back, the session is soon free."""
    memory, other = make_memory(proxy, operation_timeout=3), make_memory()
    await end(memory, await acquire(memory, "warm"))
    with proxy.gone_before_its_answer():
        acquiring = asyncio.ensure_future(acquire(memory))
        await until(lambda: not proxy.is_armed)
        if cancelled:
            acquiring.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else MemoryUnavailable):
            await acquiring
        assert not await is_free(other)
    assert await is_soon_free(other)
    assert (await other.turns("s"))[-1].state == "abandoned"


async def test_a_memory_that_goes_ends_what_it_may_hold(
    make_memory: MakeMemory, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cleanup does, where the background thread did not come to it, or cannot be started."""
    memory, other = make_memory(proxy, operation_timeout=3), make_memory()
    await end(memory, await acquire(memory, "warm"))

    def no_thread() -> Any:
        raise MemoryUnavailable("no thread can be started")

    with proxy.gone_before_its_answer(), monkeypatch.context() as patched:
        patched.setattr(_background, "loop", no_thread)
        with pytest.raises(MemoryUnavailable):
            await acquire(memory)
    with pytest.raises(SessionBusy):
        await acquire(other)
    await memory.cleanup()
    assert await is_free(other)


async def test_a_grant_that_cannot_be_understood_leaves_no_lease(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong after the server has granted it."""
    memory, other = make_memory(), make_memory()
    real = memory._acquire

    async def misunderstood(*asked: Any) -> None:
        await real(*asked)
        raise ValueError("no such record")

    monkeypatch.setattr(memory, "_acquire", misunderstood)
    with pytest.raises(ValueError, match="no such record"):
        await acquire(memory)
    assert await is_soon_free(other)


async def test_a_request_that_never_arrived_is_forgotten(
    make_memory: MakeMemory, proxy: Proxy
) -> None:
    """There is no lease to end; nothing is asked any more when one would have expired."""
    memory = make_memory(proxy, operation_timeout=3, lease=2)
    await end(memory, await acquire(memory, "warm"))
    with proxy.refusing(), pytest.raises(MemoryUnavailable):
        await acquire(memory)
    assert memory._doubtful._leases
    await until(lambda: not memory._doubtful._tries)
    assert not memory._doubtful._leases
    assert await is_free(memory)


@pytest.mark.parametrize("server_url", ["postgresql"], indirect=True)
async def test_a_request_that_is_carried_out_late_leaves_no_lease(
    make_memory: MakeMemory, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has given up, and the server grants the lease when it comes to it."""
    memory, other = make_memory(), make_memory()
    await other.append_to_session("s", [user("1")])
    await memory.ping()
    end_leases, found = memory._doubtful._end, []

    async def noting(*asked: Any) -> Any:
        found.append(await end_leases(*asked))
        return found[-1]

    monkeypatch.setattr(memory._doubtful, "_end", noting)
    connection: Any = await asyncpg.connect(server_url.partition("?")[0])
    async with connection.transaction():
        await connection.execute(
            "SELECT FROM session_middleware_session WHERE session_id = 's' FOR UPDATE"
        )
        with little_time(memory), pytest.raises(MemoryUnavailable):
            await acquire(memory)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await until(lambda: connection.fetchval(waiting))
        await until(lambda: found)
        assert not found[0], "it was granted already"

    async def is_carried_out() -> bool:
        return len(await other.turns("s")) > 1

    await until(is_carried_out)
    assert await is_soon_free(other)
    await connection.close()


async def test_a_refusal_is_no_doubt(make_memory: MakeMemory) -> None:
    """A busy session was not granted, so nothing is asked in the background."""
    memory, other = make_memory(), make_memory()
    acquired = await acquire(other)
    with pytest.raises(SessionBusy):
        await acquire(memory)
    assert not memory._doubtful._leases
    await end(other, acquired)
