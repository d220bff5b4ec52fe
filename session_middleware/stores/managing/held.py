"""What every managing method relies on: the primitives, and a session that is held meanwhile."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from session_middleware._current import current_turn
from session_middleware.errors import (
    ConflictingMemory,
    InvalidOption,
    InvalidSessionId,
    SessionBusy,
    SessionMemoryError,
)
from session_middleware.memory import SessionMemory, check_session_id
from session_middleware.stores.managed_store import (
    ManagedStore,
    SessionInfo,
    SessionQuery,
    TurnCopy,
)
from session_middleware.stores.numbers import MOST
from session_middleware.stores.protocol import MANAGE, TICKETS, TurnStore
from session_middleware.stores.records import AcquireRequest, Lease, TurnEnd, TurnRecord
from session_middleware.stores.reported import waiting
from session_middleware.stores.tickets import SHOW_AGAIN

PATIENCE = 60.0
"""Seconds for which a session that a turn holds is waited for; less where leases are shorter."""

PAGE = 100
"""Sessions or turns that are read at once."""


class Managed(SessionMemory, TurnStore, ManagedStore):
    """A memory with turns that can be managed, as the methods that manage it see it."""

    @property
    def identity(self) -> Hashable:
        """Equal for two memories that share one storage in this process."""
        raise NotImplementedError

    def _require_manage(self) -> None:
        if MANAGE not in self.capabilities:
            raise ConflictingMemory(
                f"{type(self).__name__} does not declare the capability {MANAGE!r}, which listing, "
                "exporting and deleting conversations need"
            )

    async def _info(self, session_id: str) -> SessionInfo | None:
        page = await self.list_page(SessionQuery(session_id=check_session_id(session_id), limit=1))
        return page[0] if page else None

    async def _record_of(self, session_id: str, turn: int) -> TurnRecord | None:
        page = await self.turns(session_id, limit=1, before=min(turn, MOST - 1) + 1)
        return page[0] if page and page[0].turn == turn else None

    async def _copies_between(self, session_id: str, first: int, last: int) -> list[TurnCopy]:
        copies: list[TurnCopy] = []
        after = first - 1
        while after < last and (page := await self.read_copies(session_id, after, PAGE)):
            copies += [copy for copy in page if copy.record.turn <= last]
            after = page[-1].record.turn
        return copies

    @asynccontextmanager
    async def held(self, session_id: str) -> AsyncIterator[Lease]:
        """Hold the session for this block, which ends the lease; if it fails, nothing is left.

        Raises:
            SessionBusy: a turn holds it, and did so for PATIENCE seconds.
        """
        if current_turn(self.identity, session_id) is not None:
            raise SessionBusy(
                f"session {session_id!r} is held by the turn that this is called from: call it "
                "when the turn is over"
            )
        lease = await self._acquire_patiently(session_id)
        try:
            yield lease
        except BaseException:
            with suppress(SessionMemoryError):  # otherwise the lease ends by itself
                await asyncio.shield(self.let_go(lease))
            raise

    async def let_go(self, lease: Lease) -> None:
        """End a lease under which nothing was changed; the turn it was for leaves no record."""
        await self.end_turn(lease, TurnEnd("cancelled", datetime.now(UTC), unlisted=True))

    async def _acquire_patiently(self, session_id: str) -> Lease:
        deadline = time.monotonic() + min(PATIENCE, 2 * self.lease_seconds)
        ticket = secrets.randbits(63) if TICKETS in self.capabilities else None
        request = AcquireRequest(session_id, datetime.now(UTC), ticket=ticket)
        try:
            while True:
                try:
                    return (await self.acquire(request)).lease
                except SessionBusy:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise
                with waiting():
                    if ticket is None:
                        await asyncio.sleep(min(0.02, left))
                    else:
                        await self.wait_for_session(session_id, ticket, min(left, SHOW_AGAIN))
        except BaseException:
            if ticket is not None:
                with suppress(SessionMemoryError):  # otherwise the ticket dies by itself
                    await asyncio.shield(self.withdraw_ticket(session_id, ticket))
            raise


def prefix_of(prefix: str | None) -> str | None:
    """The prefix; None where it is empty."""
    if prefix is not None and not isinstance(prefix, str):
        raise InvalidOption(f"prefix must be a string or None, got {type(prefix).__name__}")
    return prefix or None


def no_session(session_id: str) -> InvalidSessionId:
    """The error for a session that is not there."""
    return InvalidSessionId(f"there is no session {session_id!r} in this memory")
