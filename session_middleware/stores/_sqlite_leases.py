"""The sessions that a memory holds: kept held while their turns run, let go when it goes.

All leases of a memory are renewed by one statement, from the background loop, and only while
there are any. A lease whose event loop was closed is left to expire: its turn cannot go on.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from functools import partial

from session_middleware import _background
from session_middleware.errors import MemoryClosed, MemoryUnavailable
from session_middleware.stores import _sqlite_taking as taking
from session_middleware.stores._sqlite_connection import ConnectionQueue


class HeldLeases:
    """The leases that were granted through ``writes`` and have not ended.

    Args:
        writes: where renewals are queued.
        seconds: the length of a lease; a third of it passes between two renewals.
    """

    def __init__(self, writes: ConnectionQueue, seconds: float) -> None:
        self._writes = writes
        self._seconds = seconds
        self.forget_all()

    def forget_all(self) -> None:
        """Hold nothing: as new, or in a forked child, whose parent holds them."""
        self._lock = threading.Lock()
        self._held: dict[int, tuple[int, asyncio.AbstractEventLoop]] = {}
        self._renewal: asyncio.Task[None] | None = None
        self._renewing = False
        self._watchers: list[Future[None]] = []

    def add(self, token: int, key: int) -> None:
        """Keep the session with this key held; its turn runs on the caller's event loop."""
        with self._lock:
            self._held[token] = (key, asyncio.get_running_loop())
            if self._renewing:
                return
            self._renewing = True
        _background.loop().call_soon_threadsafe(self._start_renewal)

    def drop(self, token: int) -> None:
        """The lease has ended, or is lost."""
        with self._lock:
            self._held.pop(token, None)
            self._tell_watchers()

    async def wait_until_none(self, seconds: float) -> None:
        """Wait until nothing is held any more, for at most this many seconds."""
        watcher: Future[None] = Future()
        with self._lock:
            self._watchers.append(watcher)
            self._tell_watchers()
        await asyncio.wait((asyncio.wrap_future(watcher),), timeout=seconds)
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    async def release_all(self, patience: float | None = None) -> None:
        """Let every session go; its turn becomes abandoned."""
        if self._renewal is not None:
            self._renewal.cancel()
        held = self._by_key(including_closed=True)
        with self._lock:
            self._held.clear()
            self._tell_watchers()
        if held:
            await self._writes.submit(partial(taking.release_held, held=held), timeout=patience)

    def _tell_watchers(self) -> None:
        if not self._held:
            while self._watchers:
                self._watchers.pop().set_result(None)

    def _by_key(self, *, including_closed: bool = False) -> dict[int, int]:
        """Token by key, of the leases whose turn can still go on."""
        with self._lock:
            return {
                key: token
                for token, (key, loop) in self._held.items()
                if including_closed or not loop.is_closed()
            }

    # --- the background loop ---------------------------------------------------------------

    def _start_renewal(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while self._goes_on():
            await asyncio.sleep(self._seconds / 3)
            held = self._by_key()
            if not held:
                continue
            try:
                still = await self._writes.submit(
                    partial(taking.renew, held=held, lease=self._seconds)
                )
            except MemoryUnavailable:
                continue  # tried again in a third of the lease
            except MemoryClosed:
                return
            for token in set(held.values()) - still:
                self.drop(token)

    def _goes_on(self) -> bool:
        with self._lock:
            self._renewing = bool(self._held)
            return self._renewing
