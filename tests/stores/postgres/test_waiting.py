"""Whoever waits for a session is told when it is free, and asks now and then besides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from session_middleware import session_scope
from session_middleware.conformance.steps import acquire, end, refused
from session_middleware.errors import SessionBusy
from tests.support.conditions import until
from tests.support.postgres_proxy import PostgresProxy

LONG = 60.0


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[PostgresProxy]:
    """A proxy to the database, which counts."""
    made = PostgresProxy(postgres_url)
    yield made
    made.close()


async def test_whoever_waits_is_told_without_asking(
    memory: Any, proxy: PostgresProxy, make_memory: Callable[..., Any]
) -> None:
    """Nothing is sent while it waits, and it hears of the end of the turn at once."""
    waiter = make_memory(proxy.url)
    holder = await acquire(memory)
    await refused(SessionBusy, acquire(waiter, ticket=1))
    await waiter.wait_for_session("s", 1, LONG)  # returns early: it listens only now
    await refused(SessionBusy, acquire(waiter, ticket=1))
    proxy.count_anew()
    waiting = asyncio.ensure_future(waiter.wait_for_session("s", 1, LONG))
    await asyncio.sleep(0)
    assert not waiting.done()
    await end(memory, holder)
    async with asyncio.timeout(LONG / 2):
        await waiting
    assert proxy.asks == 0
    await end(waiter, await acquire(waiter, ticket=1))


async def test_a_notification_that_comes_too_early_is_remembered(
    memory: Any, make_memory: Callable[..., Any]
) -> None:
    """The turn may end between the refusal and the waiting."""
    waiter = make_memory()
    holder = await acquire(memory)
    await refused(SessionBusy, acquire(waiter, ticket=1))
    await waiter.wait_for_session("s", 1, LONG)
    await refused(SessionBusy, acquire(waiter, ticket=1))
    await end(memory, holder)
    listener: Any = waiter._listener
    await until(lambda: 1 in listener._woken)
    async with asyncio.timeout(LONG / 2):
        await waiter.wait_for_session("s", 1, LONG)


@pytest.mark.parametrize("how", ["broken", "behind a pgbouncer"])
async def test_without_a_listening_connection_it_asks(
    how: str, memory: Any, proxy: PostgresProxy, make_memory: Callable[..., Any]
) -> None:
    """Where no notification can come, it looks now and then, and gets the session all the same."""
    waiter = make_memory(proxy.url, pgbouncer=how != "broken")
    holder = await acquire(memory)

    async def wait() -> None:
        async with session_scope("s", memory=waiter, wait_timeout=LONG):
            pass

    waiting = asyncio.ensure_future(wait())
    await until(lambda: proxy.asks > 3)
    if how == "broken":
        proxy.cut()
    await end(memory, holder)
    async with asyncio.timeout(LONG):
        await waiting
