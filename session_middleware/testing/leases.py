"""Time for leases: they end without waiting, and sessions are busy without a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from session_middleware.errors import InvalidOption
from session_middleware.memory import SessionMemory
from session_middleware.memory_option import turns_of
from session_middleware.stores.records import AcquireRequest, TurnEnd

__all__ = ["LeaseClock", "busy_session"]

_FOLDERS = {"sqlite": "sqlite", "postgresql": "postgres", "redis": "redis"}
"""A memory's ``backend`` -> the folder of its store, where it has leases that end."""


class LeaseClock:
    """The clock of the leases in some memories, which a test moves on.

    A process that is at work renews its leases as ever, within a third of their length, so only
    leases of dead processes stay ended.

    Example:
        await LeaseClock(memory).advance(60)
    """

    def __init__(self, *memories: SessionMemory) -> None:
        self._memories = list(memories)

    def add(self, memory: SessionMemory) -> None:
        """Let the clock move on for the leases of this memory, too."""
        self._memories.append(memory)

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass for every lease that is held in the storage of the memories.

        Args:
            seconds: more than the ``lease`` of the memories (30 by default) ends all leases.

        Raises:
            InvalidOption: seconds is no positive number, or a memory's leases never end: those in
                memory have no other process that could take over.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0:
            raise InvalidOption(f"seconds must be a positive number, got {seconds!r}")
        for memory in self._memories:
            if getattr(memory, "backend", None) not in _FOLDERS:
                raise InvalidOption(
                    f"leases of {type(memory).__name__} never end: use a SQLite, PostgreSQL or "
                    "Redis memory"
                )
        for memory in self._memories:
            folder = _FOLDERS[getattr(memory, "backend", "")]
            store: Any = import_module(f"session_middleware.stores.{folder}.for_tests")
            await store.age_leases(memory, float(seconds))


@asynccontextmanager
async def busy_session(memory: SessionMemory, session_id: str) -> AsyncIterator[None]:
    """Hold a session for the length of the block, as a turn of another worker would.

    Inside, a turn waits for the session or gets SessionBusy. Nothing of it stays in the session.

    Args:
        memory: a memory with turns.
        session_id: the session; it need not be there.

    Raises:
        SessionBusy: another turn holds the session.

    Example:
        async with busy_session(memory, "user_alice"):
            assert (await client.post("/chat", ...)).status_code == 409
    """
    store = turns_of(memory)
    acquired = await store.acquire(AcquireRequest(session_id, datetime.now(UTC)))
    try:
        yield
    finally:
        end = TurnEnd("completed", datetime.now(UTC), unlisted=True)
        await store.end_turn(acquired.lease, end)
