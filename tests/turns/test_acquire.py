"""Acquiring a session that another process holds: asked for until it is free, or given up."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from session_middleware import InMemorySessionMemory, SessionBusy, session_scope
from session_middleware.stores.records import Acquired, AcquireRequest, TurnEnd
from session_middleware.stores.sqlite import SQLiteSessionMemory
from tests.support.conditions import until


class Asked:
    """Says how often a memory was asked for a session, and for how long it was to wait for one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asks = 0
        self.waits: list[float] = []

    async def acquire(self, request: AcquireRequest) -> Acquired:
        self.asks += 1
        acquired: Acquired = await super().acquire(request)  # type: ignore[misc]
        return acquired


class AskedInMemory(Asked, InMemorySessionMemory):
    """One without tickets."""


class AskedFile(Asked, SQLiteSessionMemory):
    """One with tickets."""

    async def wait_for_session(self, session_id: str, ticket: int, seconds: float) -> None:
        self.waits.append(seconds)
        await super().wait_for_session(session_id, ticket, seconds)


KINDS = (AskedInMemory, lambda: AskedFile("chat.db"))


@pytest.fixture(params=KINDS, ids=["in memory", "sqlite"])
async def asked(request: Any, tmp_path: Any, monkeypatch: Any) -> Any:
    """A memory of each kind."""
    monkeypatch.chdir(tmp_path)
    make: Callable[[], Any] = request.param
    memory = make()
    yield memory
    await memory.cleanup()


async def held(memory: Any) -> Acquired:
    """A lease that no turn of this process has."""
    acquired: Acquired = await memory.acquire(AcquireRequest("s", datetime.now(UTC)))
    memory.asks = 0
    return acquired


async def turn(memory: Any, **options: Any) -> None:
    """A turn that does nothing."""
    async with session_scope("s", memory=memory, **options):
        pass


async def test_a_lease_is_asked_for_until_it_is_free(asked: Any) -> None:
    """Between two questions the turn waits, and others go on."""
    acquired = await held(asked)
    waiting = asyncio.create_task(turn(asked))
    await until(lambda: asked.asks > 2)
    assert not waiting.done()
    await asked.end_turn(acquired.lease, TurnEnd("completed", datetime.now(UTC)))
    await waiting
    if isinstance(asked, AskedFile):
        assert len(asked.waits) == asked.asks - 1


async def test_nobody_waits_longer_than_the_options_say(asked: Any) -> None:
    """Each wait is at most as long as what is left of wait_timeout, and none comes after it."""
    await held(asked)
    with pytest.raises(SessionBusy):
        await turn(asked, wait_timeout=0.05)
    assert asked.asks > 1
    assert all(0 < seconds < 0.05 for seconds in asked.waits)
    assert sorted(asked.waits, reverse=True) == asked.waits


async def test_by_default_a_turn_waits_for_twice_the_lease(make_memory: Any) -> None:
    """So long, and no less, as a holder that died may keep the session."""
    memory = make_memory(lease=0.1)
    async with session_scope("s", memory=memory):
        with pytest.raises(SessionBusy, match=r"waited 0\.2 s for it"):
            await asyncio.create_task(turn(memory), context=contextvars.Context())
