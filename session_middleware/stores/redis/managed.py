"""Conversations on a server of Redis as they are managed: the methods of ``ManagedStore``.

What is asked of the server is in ``managing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from session_middleware import _background
from session_middleware.stores.managed_store import (
    Labels,
    NewestTurn,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
    TurnCopy,
)
from session_middleware.stores.networked import NetworkedMemory
from session_middleware.stores.records import Lease, TurnEnd
from session_middleware.stores.redis.index import Index
from session_middleware.stores.redis.managing import Managing


class ManagedKeys(NetworkedMemory):
    """A memory on Redis whose sessions can be listed, copied and removed."""

    _index: Index
    _managing: Managing

    async def list_page(self, query: SessionQuery) -> list[SessionInfo]:
        """Read one page of the sessions: one query a shard, and one a session of the page."""
        return await self._managing.page(query)

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """Read the newest turn of each of these sessions, in one exchange with each server."""
        return await self._managing.newest_turns(session_ids)

    async def label(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata; False where there is no such session."""
        return await _background.finish(self._managing.label(session_id, labels))

    async def read_copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """Read the next turns with a number above ``after``, oldest first."""
        return await self._managing.read_copies(session_id, after, limit)

    async def write_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's, and end the lease."""
        try:
            await _background.finish(self._managing.write_copies(lease, info, turns, fence))
        finally:
            self._leases.drop(lease.token)

    async def newest_fence(self) -> int:
        """A fence that no lease of the memory is above."""
        return await self._managing.newest_fence()

    async def remove_turns(self, lease: Lease, turns: Sequence[int], end: TurnEnd) -> None:
        """Remove every word of these turns, and end the lease's own."""
        try:
            await _background.finish(self._managing.remove_turns(lease, turns))
        finally:
            self._leases.drop(lease.token)

    async def delete_sessions(
        self, session_ids: Sequence[str], *, idle_since: datetime | None = None
    ) -> int:
        """Remove these sessions; return how many there were."""
        return await _background.finish(self._managing.delete_sessions(session_ids, idle_since))

    async def find_trace(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id."""
        return await self._managing.find_trace(trace_id)

    async def parked_runs(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait for approval."""
        return await self._managing.parked_runs(query)

    async def note_decision(
        self, session_id: str, turn: int, call_id: str, *, approved: bool, message: str | None
    ) -> None:
        """Keep the decision with the parked run."""
        await _background.finish(
            self._managing.note_decision(session_id, turn, call_id, approved, message)
        )

    async def figures(self) -> dict[str, float]:
        """Tell figures of the sessions for a dashboard: see ``TurnStore.figures``."""
        parked, since = await self._index.figures()
        figures: dict[str, float] = {"turn.parked": parked}
        if since is not None:
            figures["turn.parked.age"] = since
        return figures
