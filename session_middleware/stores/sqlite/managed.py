"""Conversations in an SQLite file as they are managed: the methods of ``ManagedStore``.

The statements are in ``managing``, and those that copy in ``copies``. No SQL here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from session_middleware.stores.base import TransactionalMemory
from session_middleware.stores.managed_store import (
    Labels,
    NewestTurn,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
    TurnCopy,
)
from session_middleware.stores.records import Lease, TurnEnd
from session_middleware.stores.sqlite import copies, managing
from session_middleware.stores.sqlite.database import Database
from session_middleware.stores.sqlite.group import Durability, Steps
from session_middleware.stores.sqlite.journal import Ending

T = TypeVar("T")


class ManagedFile(TransactionalMemory):
    """A memory in a file whose sessions can be listed, copied and removed."""

    _database: Database
    _durability: Durability

    @abstractmethod
    async def _write(
        self, work: Callable[[Any], T], durability: Durability = Durability.UNFLUSHED
    ) -> T:
        """Do ``work`` in the next group of writes."""

    @abstractmethod
    async def _read(self, work: Callable[[Any], T | Steps[T]]) -> T:
        """Do ``work`` on the connection that reads."""

    async def list_page(self, query: SessionQuery) -> list[SessionInfo]:
        """Read one page of the sessions, in one query."""
        return await self._read(partial(managing.page, query=query))

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """Read the newest turn of each of these sessions, in one transaction."""
        return await self._read(partial(managing.newest_turns, session_ids=session_ids))

    async def label(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata; False where there is no such session."""
        work = partial(managing.label, session_id=session_id, labels=labels)
        return await self._write(work, self._durability)

    async def read_copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """Read the next turns with a number above ``after``, oldest first."""
        return await self._read(
            partial(copies.read_copies, session_id=session_id, after=after, limit=limit)
        )

    async def write_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's, and end the lease."""
        work = partial(copies.write_copies, lease=lease, info=info, turns=turns, fence=fence)
        await self._write(work, Durability.FLUSHED)
        self._database.leases.drop(lease.token)
        self._database.erase_when_idle()

    async def newest_fence(self) -> int:
        """The fence of the newest lease of the file."""
        return await self._read(copies.newest_fence)

    async def remove_turns(self, lease: Lease, turns: Sequence[int], end: TurnEnd) -> None:
        """Remove every word of these turns, and end the lease's own."""
        work = partial(managing.remove_turns, lease=lease, turns=turns, ending=Ending.of(end))
        await self._write(work, self._durability)
        self._database.leases.drop(lease.token)
        self._database.erase_when_idle()

    async def delete_sessions(
        self, session_ids: Sequence[str], *, idle_since: datetime | None = None
    ) -> int:
        """Remove these sessions; return how many there were."""
        work = partial(managing.delete_sessions, session_ids=session_ids, idle_since=idle_since)
        deleted = await self._write(work, self._durability)
        await self._database.erase()
        return deleted

    async def find_trace(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id."""
        return await self._read(partial(managing.find_trace, trace_id=trace_id))

    async def parked_runs(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait for approval."""
        return await self._read(partial(managing.waiting, query=query))

    async def note_decision(
        self, session_id: str, turn: int, call_id: str, *, approved: bool, message: str | None
    ) -> None:
        """Keep the decision with the parked run, flushed."""
        work = partial(
            managing.note_decision,
            session_id=session_id,
            turn=turn,
            call_id=call_id,
            approved=approved,
            message=message,
        )
        await self._write(work, Durability.FLUSHED)
