"""Conversations in PostgreSQL as they are managed: the methods of ``ManagedStore``.

The statements are in ``managing`` and ``copies``. No SQL here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from session_middleware import _background
from session_middleware.stores import rules
from session_middleware.stores.listing import decided, relabelled
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
from session_middleware.stores.postgres import copies, managing, reads
from session_middleware.stores.postgres.texts import readable, storable
from session_middleware.stores.records import Lease, TurnEnd
from session_middleware.stores.sql import calls_text
from session_middleware.stores.sweeps import Expiry

if TYPE_CHECKING:
    from session_middleware.stores.postgres.connection import Server


class ManagedTables(NetworkedMemory):
    """A memory in PostgreSQL whose sessions can be listed, copied and removed."""

    _server: Server
    _expiry: Expiry

    async def list_page(self, query: SessionQuery) -> list[SessionInfo]:
        """Read one page of the sessions, in one query."""
        self._expiry.begin()
        statement, arguments = managing.page(query)
        rows = await self._server.fetch(statement, *arguments)
        return [managing.info(row, query.order) for row in rows]

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """Read the newest turn of each of these sessions, in one query."""
        rows = await self._server.fetch(reads.NEWEST_TURNS, list(session_ids))
        found = {row["session_id"]: reads.newest_turn(row) for row in rows}
        return [found.get(session_id) for session_id in session_ids]

    async def label(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata; False where there is no such session."""
        while rows := await self._server.fetch(managing.LABELS, session_id):
            before = (rows[0]["title"], rows[0]["metadata"])
            title, metadata = relabelled(readable(before[0]), before[1], labels)
            row = await _background.finish(
                self._server.fetch_row(
                    managing.LABEL, session_id, storable(title), metadata, *before
                )
            )
            if row["labelled"]:
                return True
        return False

    async def read_copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """Read the next turns with a number above ``after``, oldest first."""
        rows = await self._server.fetch(copies.COPIES, session_id, after, limit)
        return [copies.copy(row) for row in rows]

    async def write_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's, and end the lease."""
        arguments = copies.put_arguments(lease, info, turns, fence)
        await self._end_turn(lease, copies.PUT_COPIES, *arguments)

    async def newest_fence(self) -> int:
        """The fence of the newest lease of the tables."""
        row = await self._server.fetch_row(copies.NEWEST_FENCE)
        return int(row["last"])

    async def remove_turns(self, lease: Lease, turns: Sequence[int], end: TurnEnd) -> None:
        """Remove every word of these turns, and end the lease's own."""
        arguments = managing.remove_arguments(lease, turns, end)
        await self._end_turn(lease, managing.REMOVE_TURNS, *arguments)

    async def _end_turn(self, lease: Lease, statement: str, *arguments: object) -> None:
        try:
            await self._write(lease, statement, *arguments, told=True)
        finally:
            self._leases.drop(lease.token)

    async def delete_sessions(
        self, session_ids: Sequence[str], *, idle_since: datetime | None = None
    ) -> int:
        """Remove these sessions; return how many there were."""
        row = await _background.finish(
            self._server.fetch_row(managing.DELETE_SESSIONS, list(session_ids), idle_since)
        )
        return int(row["deleted"])

    async def find_trace(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id."""
        rows = await self._server.fetch(managing.FIND_TRACE, trace_id)
        return (rows[0]["session_id"], rows[0]["turn"]) if rows else None

    async def parked_runs(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait for approval."""
        statement, arguments = managing.parked_runs(query)
        return [managing.pending(row) for row in await self._server.fetch(statement, *arguments)]

    async def note_decision(
        self, session_id: str, turn: int, call_id: str, *, approved: bool, message: str | None
    ) -> None:
        """Keep the decision with the parked run, flushed."""
        while True:
            rows = await self._server.fetch(managing.PARKED_IN_TURN, session_id, turn)
            runs = [managing.pending(row) for row in rows]
            run, calls = decided(runs, session_id, turn, call_id, approved, message)
            (row,) = [row for row, each in zip(rows, runs, strict=True) if each is run]
            noted = await _background.finish(
                self._server.fetch_row(
                    managing.DECIDE,
                    session_id,
                    row["identity"],
                    row["calls"],
                    calls_text(calls),
                    told=True,
                )
            )
            if noted["decided"]:
                return

    async def _write(
        self, lease: Lease | None, statement: str, *arguments: object, told: bool = False
    ) -> str:
        """Send a write and await its outcome, whatever cancels the caller meanwhile.

        Raises:
            TurnLost: the lease is no longer the session's, and nothing was written.
            ValueError: the place of an item has another one.
        """
        self._expiry.begin()
        row = await _background.finish(self._server.fetch_row(statement, *arguments, told=told))
        outcome: str = row["outcome"]
        if outcome == "lost" and lease is not None:
            raise rules.lost(lease)
        return outcome
