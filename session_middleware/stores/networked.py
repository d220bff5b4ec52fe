"""What memories on a server share: acquiring over a connection that may break, and their end.

A lease is the server's, and this process may not know that it has one: the caller may be gone when
it is granted, or the answer lost. Either way the session must not stay held. How a server is asked
is not known here.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from abc import abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial

from session_middleware import _background
from session_middleware.errors import MemoryUnavailable, SessionMemoryError
from session_middleware.memory import check_session_id, tell_released
from session_middleware.stores.base import TransactionalMemory
from session_middleware.stores.leases import DoubtfulLeases, HeldLeases
from session_middleware.stores.records import Acquired, AcquireRequest

_EXIT_PATIENCE = _background.EXIT_SECONDS / 2


class NetworkedMemory(TransactionalMemory):
    """A memory on a server, which several processes and machines share.

    A store calls ``__init__`` with the seconds of a lease, and adds the primitives at the end.
    """

    networked = True

    def __init__(self, lease: float) -> None:
        self.lease_seconds = lease
        self._leases: HeldLeases[str] = HeldLeases(self._renew, self._end_held, lease)
        self._doubtful = DoubtfulLeases(self._end_leases, lease)
        _memories.add(self)
        _background.at_exit(_end_all)

    async def acquire(self, request: AcquireRequest) -> Acquired:
        """Acquire the session, or raise why not; never wait for its holder."""
        check_session_id(request.session_id)
        token = secrets.randbits(63)
        acquiring, cancelled = await _background.run_shielded(self._acquire_held(request, token))
        error = acquiring.exception()
        if error is not None and _leaves_in_doubt(error):
            self._doubtful.end_soon(token, request.session_id)
        if cancelled is None:
            return acquiring.result()
        if error is None:  # acquired, and nobody will ever end this turn
            await self._undo(request, acquiring.result())
        raise cancelled

    async def _acquire_held(self, request: AcquireRequest, token: int) -> Acquired:
        acquired = await self._acquire(request, token)
        lost = partial(tell_released, self.identity, request.session_id)
        self._leases.add(token, request.session_id, lost)
        return acquired

    # --- life ------------------------------------------------------------------------------

    async def cleanup(self, drain: float | None = None) -> None:
        """Close the connections; whatever is asked of the memory afterwards is MemoryClosed.

        Turns that this object still holds become abandoned, and their sessions are free at once;
        so are those of which nobody knows whether this object holds them. A pool or client that
        was handed in stays open.

        Args:
            drain: first wait for those turns to end, for at most this many seconds.
        """
        if drain and not self.closed:
            await self._leases.wait_until_none(drain)
        self.closed = True
        await _background.finish(self._end_and_close())

    async def _end_and_close(self) -> None:
        await self._end_all_leases()
        await self._close_connections()

    async def _end_all_leases(self, patience: float | None = None) -> None:
        """End the leases that are held, or may be, as far as it can be done in so many seconds."""
        with suppress(SessionMemoryError, TimeoutError):  # otherwise they end by themselves
            await self._leases.release_all(patience)
            await self._doubtful.end_now(patience)

    async def _end_held(self, held: Mapping[str, int], patience: float | None) -> None:
        await self._end_leases({token: session_id for session_id, token in held.items()}, patience)

    async def _end_leases(
        self, leases: Mapping[int, str], patience: float | None = None
    ) -> Collection[int]:
        async with asyncio.timeout(patience):
            return await self._end(leases)

    async def _leave(self) -> None:
        """Free the sessions as the interpreter exits; the connections just end."""
        await self._end_all_leases(_EXIT_PATIENCE)

    # --- primitives ------------------------------------------------------------------------

    @abstractmethod
    async def _acquire(self, request: AcquireRequest, token: int) -> Acquired:
        """Ask for the session under this token, again where a connection breaks.

        Raises:
            MemoryUnavailable: the server did not answer, and may have granted the lease.
            SessionMemoryError: another one is the server's refusal.
        """

    @abstractmethod
    async def _renew(self, held: Mapping[str, int]) -> Collection[int]:
        """Renew these leases (session to token); returns the tokens that are lost."""

    @abstractmethod
    async def _end(self, leases: Mapping[int, str]) -> Collection[int]:
        """End these leases (token to session); returns the tokens that were still a session's."""

    @abstractmethod
    async def _close_connections(self) -> None:
        """Take no more requests, and close every connection, in whatever loop it is."""


def _leaves_in_doubt(error: BaseException) -> bool:
    """Whether the lease may have been granted although acquiring it failed with this error."""
    return isinstance(error, MemoryUnavailable) or not isinstance(error, SessionMemoryError)


_memories: weakref.WeakSet[NetworkedMemory] = weakref.WeakSet()


async def _end_all() -> None:
    await asyncio.gather(*(memory._leave() for memory in list(_memories)), return_exceptions=True)
