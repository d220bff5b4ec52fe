"""The sessions that a memory holds: renewed while their turns run, given up when the memory goes.

All leases of a memory are renewed by one call of its store, from the background loop, and only
while there are any. A lease whose event loop was closed is left to expire: its turn cannot go on.
A lease of which nobody knows whether it was granted is ended, from the background loop as well.
How a store renews and ends leases is not known here.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from session_middleware import _background
from session_middleware._fork import Step, forgetting_at_fork
from session_middleware.errors import MemoryClosed, MemoryUnavailable

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries to end a doubtful lease

K = TypeVar("K")
"""What a store calls a session: its id, or the key of its row."""


@dataclass(frozen=True, eq=False, slots=True)
class _Held(Generic[K]):
    key: K
    loop: asyncio.AbstractEventLoop
    lost: Callable[[], None]


class HeldLeases(Generic[K]):
    """The leases that were granted to one memory object and have not ended.

    Args:
        renew: gives each of these sessions (key to token) the whole lease again, and returns the
            tokens that are no longer the session's.
        release: ends the leases of these sessions (key to token), within so many seconds; None is
            the store's own limit.
        seconds: the length of a lease; a third of it passes between two renewals.
    """

    def __init__(
        self,
        renew: Callable[[Mapping[K, int]], Awaitable[Collection[int]]],
        release: Callable[[Mapping[K, int], float | None], Awaitable[object]],
        seconds: float,
    ) -> None:
        self._renew = renew
        self._release = release
        self._seconds = seconds
        self.forget_all()
        _all.add(self)

    def forget_all(self) -> None:
        """Hold nothing: as new, or in a forked child, whose parent holds them."""
        self._lock = threading.Lock()
        self._held: dict[int, _Held[K]] = {}
        self._renewal: asyncio.Task[None] | None = None
        self._renewing = False
        self._watchers: list[Future[None]] = []

    def add(self, token: int, key: K, lost: Callable[[], None]) -> None:
        """Renew the lease of the session with this key; its turn runs on the caller's loop.

        ``lost`` is called when a renewal finds that another turn has taken the session over.
        """
        with self._lock:
            self._held[token] = _Held(key, asyncio.get_running_loop(), lost)
            if self._renewing:
                return
            _background.loop().call_soon_threadsafe(self._start_renewal)
            self._renewing = True  # only now: the loop may not have started

    def drop(self, token: int) -> None:
        """Note that the lease has ended, or is lost."""
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
        """End every lease; its turn becomes abandoned."""
        if self._renewal is not None:
            self._renewal.cancel()
        held = self._by_key(including_closed=True)
        with self._lock:
            self._held.clear()
            self._tell_watchers()
        if held:
            await self._release(held, patience)

    def _tell_watchers(self) -> None:
        if not self._held:
            while self._watchers:
                self._watchers.pop().set_result(None)

    def _by_key(self, *, including_closed: bool = False) -> dict[K, int]:
        """Token by key, of the leases whose turn can still go on."""
        with self._lock:
            return {
                held.key: token
                for token, held in self._held.items()
                if including_closed or not held.loop.is_closed()
            }

    # --- the background loop ---------------------------------------------------------------

    def _start_renewal(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew_while_held())

    async def _renew_while_held(self) -> None:
        while self._goes_on():
            await asyncio.sleep(self._seconds / 3)
            held = self._by_key()
            if not held:
                continue
            try:
                lost = await self._renew(held)
            except MemoryClosed:
                return
            except Exception:  # noqa: S112 - whatever it is, the next renewal may do better
                continue
            for token in lost:
                with self._lock:
                    ended = self._held.get(token)
                self.drop(token)
                if ended is not None:  # its turn goes on, and keeps others of this process waiting
                    ended.lost()

    def _goes_on(self) -> bool:
        with self._lock:
            self._renewing = bool(self._held)
            return self._renewing


class DoubtfulLeases:
    """The leases that one memory object may have been granted, with the answer lost.

    The server may carry a lost request out late, when the lease was looked for and not found. So
    it is asked again, until it has ended the lease or so much time has passed as a lease lasts.

    Args:
        end: ends these leases (token to session id), within so many seconds; None is the store's
            own limit. Returns the tokens of those that were still a session's.
        seconds: the length of a lease.
    """

    def __init__(
        self,
        end: Callable[[Mapping[int, str], float | None], Awaitable[Collection[int]]],
        seconds: float,
    ) -> None:
        self._end = end
        self._seconds = seconds
        self.forget_all()
        _doubtful.add(self)

    def forget_all(self) -> None:
        """Doubt nothing: as new, or in a forked child, whose parent ends them."""
        self._lock = threading.Lock()
        self._leases: dict[int, tuple[str, float]] = {}  # session id, and until when it lasts
        self._ending: asyncio.Task[None] | None = None
        self._tries = False

    def end_soon(self, token: int, session_id: str) -> None:
        """End the lease in the background, whether it was granted or not; return at once."""
        with self._lock:
            self._leases[token] = (session_id, time.monotonic() + self._seconds)
            if self._tries:
                return
            with suppress(MemoryUnavailable):  # no thread can be started: ``end_now`` is left
                _background.loop().call_soon_threadsafe(self._start)
                self._tries = True

    async def end_now(self, patience: float | None = None) -> None:
        """End them, as far as it can be done in so many seconds; the memory goes."""
        with self._lock:
            leases, self._leases = self._leases, {}
        if leases:
            await self._end(
                {token: session_id for token, (session_id, _) in leases.items()}, patience
            )

    # --- the background loop ---------------------------------------------------------------

    def _start(self) -> None:
        self._ending = asyncio.get_running_loop().create_task(self._end_while_in_doubt())

    async def _end_while_in_doubt(self) -> None:
        pause = _FIRST_PAUSE
        while leases := self._in_doubt():
            ended: Collection[int] = ()
            try:
                ended = await self._end(leases, None)
            except MemoryClosed:
                ended = leases
            except Exception:  # noqa: S110 - whatever it is, the next try may do better
                pass
            with self._lock:
                for token in ended:
                    self._leases.pop(token, None)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _in_doubt(self) -> dict[int, str]:
        """Session id by token, without those that must have ended by themselves."""
        now = time.monotonic()
        with self._lock:
            self._leases = {t: lease for t, lease in self._leases.items() if lease[1] > now}
            self._tries = bool(self._leases)
            return {token: session_id for token, (session_id, _) in self._leases.items()}


_all: weakref.WeakSet[HeldLeases[Any]] = forgetting_at_fork(Step.LEASES, HeldLeases.forget_all)
_doubtful = forgetting_at_fork(Step.LEASES, DoubtfulLeases.forget_all)
