"""What a memory does now and then by itself: a step in the background, again and again.

A sweep runs in the background loop, as long as its memory is used by somebody and open. It keeps
neither the memory nor the process alive, and a step that fails is tried again with the next.
"""

from __future__ import annotations

import asyncio
import random
import threading
import weakref
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from session_middleware import _background
from session_middleware._fork import Step, forgetting_at_fork
from session_middleware.errors import MemoryClosed
from session_middleware.stores.cursors import Cursor, read
from session_middleware.stores.managed_store import ManagedStore, SessionQuery
from session_middleware.stores.numbers import seconds

M = TypeVar("M")

_AT_ONCE = 20
"""So many sessions are deleted in one step, so that no turn waits long for it."""

_PAUSES = (0.05, 60.0)
"""Seconds between two steps, at least and at most."""

_BUSY_PAUSE = 1.0
"""Seconds at most after a step that left something to do."""


class Sweep:
    """The sweep of one memory.

    Args:
        memory: the object to sweep; the sweep ends with it.
        step: sweeps a part of it, and returns whether there is more to do now.
        pause: seconds between two steps, where there is not.
    """

    def __init__(self, memory: M, step: Callable[[M], Awaitable[bool]], pause: float) -> None:
        self._memory = weakref.ref(memory)
        self._step: Callable[[Any], Awaitable[bool]] = step
        self._pause = min(max(pause, _PAUSES[0]), _PAUSES[1])
        self.forget_all()
        _all.add(self)

    def forget_all(self) -> None:
        """Sweep nothing: as new, or in a forked child, which begins with its own first use."""
        self._lock = threading.Lock()
        self._running = False

    def begin(self) -> None:
        """Sweep from now on; the memory is in use."""
        if self._running:
            return
        with self._lock:
            if not self._running:
                _background.loop().call_soon_threadsafe(self._start)
                self._running = True  # only now: the loop may not have started

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        pause = self._pause
        while True:
            # Not all processes that share a storage at the same moment.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            memory = self._memory()
            if memory is None:
                return
            try:
                more = await self._step(memory)
            except MemoryClosed:
                return
            except Exception:  # whatever it is, the next step may do better
                more = False
            del memory
            pause = min(self._pause, _BUSY_PAUSE) if more else self._pause


_all: weakref.WeakSet[Sweep] = forgetting_at_fork(Step.LEASES, Sweep.forget_all)


class Expiry:
    """Deletes the sessions of a memory that had no activity for ``ttl`` seconds.

    Args:
        memory: where they are.
        ttl: the option of that name; None: no session is deleted.
        clock: given the memory, tells the moment by the clock that dates what happens in its
            sessions; None: that is this machine's.

    Raises:
        InvalidOption: ttl is no number of seconds.
    """

    def __init__(
        self,
        memory: ManagedStore,
        ttl: float | None,
        clock: Callable[[Any], Awaitable[datetime]] | None = None,
    ) -> None:
        self.ttl = None if ttl is None else seconds("ttl", ttl)
        self._clock = clock
        self._after: Cursor | None = None
        self._sweep = None if self.ttl is None else Sweep(memory, self._step, self.ttl / 10)

    def begin(self) -> None:
        """Delete from now on; the memory is in use."""
        if self._sweep is not None:
            self._sweep.begin()

    async def _step(self, memory: Any) -> bool:
        assert self.ttl is not None  # noqa: S101 - else there is no sweep
        now = datetime.now(UTC) if self._clock is None else await self._clock(memory)
        idle_since = now - timedelta(seconds=self.ttl)
        query = SessionQuery(limit=_AT_ONCE, after=self._after, idle_since=idle_since)
        page = await memory.list_page(query)
        ids = [info.session_id for info in page]
        if ids:
            await memory.delete_sessions(ids, idle_since=idle_since)
        # A session that a turn holds stays: the next step looks behind it.
        is_full = len(page) == _AT_ONCE
        self._after = read(page[-1].cursor) if is_full else None
        return is_full
