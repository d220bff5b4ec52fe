"""A memory that sees the sessions of one tenant only.

The sessions of a scope lie in the memory itself under ids that begin with the tenant's name. Runs
go to that memory under those full ids, which traces and the storage show; the methods here take
and tell the ids without it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace as with_fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from session_middleware.errors import InvalidOption, InvalidSessionId
from session_middleware.memory import SessionMemory, check_session_id
from session_middleware.stores import export as exporting
from session_middleware.stores.cursors import read as read_cursor
from session_middleware.stores.managed_store import (
    NewestTurn,
    Order,
    PendingTurn,
    SessionInfo,
    TurnCopy,
)
from session_middleware.stores.records import Item, Items, TurnRecord

if TYPE_CHECKING:
    from agents import SessionABC

    from session_middleware.stores.managing import ManagedMemory

T = TypeVar("T", SessionInfo, PendingTurn, TurnRecord)


class ScopedMemory(SessionMemory):
    """The sessions of one tenant; made by ``memory.scoped("tenant")``.

    Pass it as ``memory=`` wherever a memory is wanted, or call its methods: each has the name and
    the meaning that it has on the memory itself. No method reads, lists or changes a session of
    another tenant.

    Args:
        memory: the memory that has the sessions.
        tenant: the tenant's name.

    Attributes:
        memory: the memory that has the sessions.
        prefix: what the full ids begin with.
    """

    def __init__(self, memory: ManagedMemory, tenant: str, outer: str = "") -> None:
        if not isinstance(tenant, str) or not tenant.strip():
            raise InvalidOption("tenant must be a string that is not blank")
        self.memory = memory
        self.prefix = f"{outer}{tenant.replace('%', '%25').replace(':', '%3A')}:"
        check_session_id(self.prefix)
        self.capabilities = memory.capabilities  # type: ignore[misc] # of the class elsewhere

    @property
    def whole(self) -> ManagedMemory:
        """The memory that has the sessions."""
        return self.memory

    def full_id(self, session_id: str) -> str:
        """The id under which the session is stored, traced and grouped."""
        return check_session_id(self.prefix + check_session_id(session_id))

    def scoped(self, tenant: str) -> ScopedMemory:
        """Return a narrower scope within this one."""
        return ScopedMemory(self.memory, tenant, self.prefix)

    def session(self, session_id: str) -> SessionABC:
        """Return a view of one session in the SDK's own ``Session`` protocol."""
        return self.memory.session(self.full_id(session_id))

    # --- the six methods -------------------------------------------------------------------

    async def load_session(self, session_id: str) -> Items:
        """Return the whole history, oldest item first."""
        return await self.memory.load_session(self.full_id(session_id))

    async def save_session(self, session_id: str, conversation_history: Items) -> None:
        """Replace the history by this one."""
        await self.memory.save_session(self.full_id(session_id), conversation_history)

    async def append_to_session(self, session_id: str, new_items: Items) -> None:
        """Add items at the end of the history."""
        await self.memory.append_to_session(self.full_id(session_id), new_items)

    async def clear_session(self, session_id: str) -> None:
        """Forget the session; no error where there is none."""
        await self.memory.clear_session(self.full_id(session_id))

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions of the scope."""
        ids: list[str] = []
        after: SessionInfo | None = None
        while page := await self.memory.sessions(self.prefix, 1_000, after, "id"):
            ids += [self._own_id(info.session_id) for info in page]
            after = page[-1]
        return ids

    async def session_exists(self, session_id: str) -> bool:
        """Return whether there is a session of this id in the scope."""
        return await self.memory.session_exists(self.full_id(session_id))

    # --- turns -----------------------------------------------------------------------------

    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items."""
        records = await self.memory.turns(self.full_id(session_id), limit, before)
        return [self._own(record) for record in records]

    async def release(self, session_id: str) -> bool:
        """End the lease of the session; returns whether anybody held it."""
        return await self.memory.release(self.full_id(session_id))

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none."""
        return await self.memory.pop_item(self.full_id(session_id))

    # --- managing --------------------------------------------------------------------------

    async def sessions(
        self,
        prefix: str | None = None,
        limit: int = 100,
        after: SessionInfo | str | None = None,
        order: Order = "updated",
    ) -> list[SessionInfo]:
        """Return one page of the sessions of the scope."""
        cursor = after.cursor if isinstance(after, SessionInfo) else after
        if isinstance(cursor, str) and cursor and read_cursor(cursor) is None:
            cursor = self.full_id(cursor)
        page = await self.memory.sessions(self._prefixed(prefix), limit, cursor, order)
        return [self._own(info) for info in page]

    async def session_info(self, session_id: str) -> SessionInfo | None:
        """Return what is known of one session; None where nothing is stored in it."""
        info = await self.memory.session_info(self.full_id(session_id))
        return None if info is None else self._own(info)

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """Read the newest turn of each of these sessions: see ``ManagedStore.newest_turns``."""
        found = await self.memory.newest_turns([self.full_id(each) for each in session_ids])
        return [
            None if newest is None else with_fields(newest, record=self._own(newest.record))
            for newest in found
        ]

    async def set_title(self, session_id: str, title: str | None) -> None:
        """Give the session a title; None removes it."""
        await self.memory.set_title(self.full_id(session_id), title)

    async def set_metadata(self, session_id: str, metadata: Mapping[str, Any]) -> None:
        """Merge these members into the session's metadata."""
        await self.memory.set_metadata(self.full_id(session_id), metadata)

    async def pending(
        self, session_id: str | None = None, prefix: str | None = None
    ) -> list[PendingTurn]:
        """Return the runs of the scope that wait for approval."""
        full = None if session_id is None else self.full_id(session_id)
        found = await self.memory.pending(full, self._prefixed(prefix))
        return [self._own(waiting) for waiting in found]

    async def decide(
        self,
        session_id: str,
        turn: int,
        call_id: str,
        approve: bool = True,
        message: str | None = None,
    ) -> None:
        """Note a person's decision on a call that waits; the first one stands."""
        await self.memory.decide(self.full_id(session_id), turn, call_id, approve, message)

    async def find_turn(self, trace_id: str) -> TurnRecord | None:
        """Return the turn that a trace is of; None where no turn of the scope has it."""
        record = await self.memory.find_turn(trace_id)
        if record is None or not record.session_id.startswith(self.prefix):
            return None
        return self._own(record)

    async def history_at(
        self, session_id: str, turn: int, run: int = 1, call: int = 1
    ) -> list[Item]:
        """Return the items that a model call was given."""
        return await self.memory.history_at(self.full_id(session_id), turn, run, call)

    async def fork(self, session_id: str, new_id: str, at_turn: int | None = None) -> SessionInfo:
        """Make a session of its own from the turns of another; both are in the scope."""
        full, new = self.full_id(session_id), self.full_id(new_id)
        return self._own(await self.memory.fork(full, new, at_turn))

    async def undo(self, session_id: str, turns: int = 1) -> list[TurnRecord]:
        """Remove the newest turns that have items, and return them as they were."""
        removed = await self.memory.undo(self.full_id(session_id), turns)
        return [self._own(record) for record in removed]

    async def delete(self, *session_ids: str) -> int:
        """Remove these sessions of the scope; return how many there were."""
        return await self.memory.delete(*map(self.full_id, session_ids))

    async def delete_prefix(self, prefix: str) -> int:
        """Remove every session of the scope whose id begins with ``prefix``."""
        if not isinstance(prefix, str) or not prefix:
            raise InvalidOption("prefix must be a string that is not empty")
        return await self.memory.delete_prefix(self.prefix + prefix)

    async def prune(self, older_than: float | timedelta) -> int:
        """Remove the sessions of the scope without activity for so long."""
        return await self.memory.prune_prefix(self.prefix, older_than)

    async def export(self, *session_ids: str, prefix: str | None = None) -> AsyncIterator[str]:
        """Yield sessions of the scope as lines of JSON, under their ids in the scope."""
        full = [self.full_id(session_id) for session_id in session_ids]
        wanted = self._prefixed(prefix) if prefix is not None or not full else None
        async for line in self.memory.export(*full, prefix=wanted):
            yield exporting.renamed(line, self._own_id)

    async def import_(
        self, lines: Iterable[str] | AsyncIterable[str], *, replace: bool = False
    ) -> int:
        """Store the sessions of an export in the scope; return how many."""
        return await self.memory.import_as(self.full_id, lines, replace=replace)

    async def put_session(
        self, info: SessionInfo, turns: Sequence[TurnCopy], fence: int = 0, **options: bool
    ) -> bool:
        """Store a copied session whole in the scope: see ``Copying.put_session``."""
        full = with_fields(info, session_id=self.full_id(info.session_id))
        return await self.memory.put_session(full, turns, fence, **options)

    async def cleanup(self) -> None:
        """Do nothing: the memory that has the sessions is its owner's."""

    # --- ids -------------------------------------------------------------------------------

    def _prefixed(self, prefix: str | None) -> str:
        if prefix is not None and not isinstance(prefix, str):
            raise InvalidOption(f"prefix must be a string or None, got {type(prefix).__name__}")
        return self.prefix + (prefix or "")

    def _own_id(self, full_id: str) -> str:
        if not full_id.startswith(self.prefix):
            raise InvalidSessionId("this session is not in the scope")
        return full_id.removeprefix(self.prefix)

    def _own(self, told: T) -> T:
        """The record under its id in the scope."""
        return with_fields(told, session_id=self._own_id(told.session_id))
