"""A memory that lives and dies with the process: for tests, notebooks and single-process apps.

Everything a durable store does, but for the durability; it shares nothing with other processes.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from session_middleware._fork import Step, forgetting_at_fork
from session_middleware.errors import MemoryClosed
from session_middleware.history import LastItems, LastTurns
from session_middleware.memory import check_session_id
from session_middleware.stores.base import TransactionalMemory
from session_middleware.stores.in_memory.managed_engine import ManagedEngine
from session_middleware.stores.items import decode_items
from session_middleware.stores.managed_store import (
    Labels,
    NewestTurn,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
    TurnCopy,
)
from session_middleware.stores.protocol import (
    COMPACTION,
    JOURNAL,
    LOOK_UP,
    MANAGE,
    MANIFEST,
    STORE_WITH_ACQUIRE,
    TTL,
    TURNS,
    WRITE_TURN,
)
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    JournalEntry,
    Lease,
    Loaded,
    RunItems,
    TurnEnd,
    TurnRecord,
)
from session_middleware.stores.sweeps import Expiry


class InMemorySessionMemory(TransactionalMemory):
    """Keep conversations in this process's memory.

    One object serves any number of sessions, threads and event loops. Items are kept as JSON
    texts, so a history that is read is always a copy. A turn holds its session until it ends or
    ``release`` is called: leases do not expire, because no other process could take over.

    Args:
        ttl: seconds without activity after which a session is deleted, soon; None: never.

    Raises:
        InvalidOption: ttl is no number of seconds.

    Example:
        memory = InMemorySessionMemory()
        await memory.append_to_session("user-42", [{"role": "user", "content": "Hi"}])
    """

    backend = "memory"
    networked = False
    lease_seconds = math.inf
    capabilities = frozenset(
        {
            *(TURNS, WRITE_TURN, STORE_WITH_ACQUIRE, LOOK_UP),
            *(MANIFEST, JOURNAL, COMPACTION, MANAGE, TTL),
        }
    )

    def __init__(self, *, ttl: float | None = None) -> None:
        self._expiry = Expiry(self, ttl)
        self._engine = ManagedEngine()
        self._changed = threading.Condition()
        _memories.add(self)

    @contextmanager
    def _open(self) -> Iterator[ManagedEngine]:
        """The engine, for one thread at a time; never held across an await."""
        self._expiry.begin()
        with self._changed:
            if self.closed:
                raise MemoryClosed("this memory was cleaned up: make a new InMemorySessionMemory")
            yield self._engine
            self._changed.notify_all()  # a session may be free now

    # --- TurnStore -------------------------------------------------------------------------

    @property
    def identity(self) -> Hashable:
        """The memory itself: two of them never share anything."""
        return self

    async def acquire(self, request: AcquireRequest) -> Acquired:
        """Acquire the session, or raise why not; never wait."""
        check_session_id(request.session_id)
        with self._open() as engine:
            return engine.acquire(request)

    async def look_up(self, request: AcquireRequest) -> None:
        """Raise what ``acquire`` would, if the request's work was done before."""
        check_session_id(request.session_id)
        with self._open() as engine:
            engine.look_up(request)

    async def _load_turns(
        self,
        session_id: str,
        newest: LastTurns | LastItems | None,
        hide: tuple[int, Collection[int]] | None,
        texts: bool,
    ) -> Loaded:
        with self._open() as engine:
            return engine.load(session_id, newest=newest, hide=hide, texts=texts)

    async def _load_items(self, session_id: str, turn: int | None, limit: int | None) -> list[Item]:
        with self._open() as engine:
            texts = engine.texts(session_id, turn=turn, limit=limit)
        return [item for item in decode_items(texts)[0] if item is not None]

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over from ``failed``; returns how many items it starts with."""
        with self._open() as engine:
            return engine.retry(lease, failed, run)

    async def journal(
        self, lease: Lease, entries: Sequence[JournalEntry], *, durable: bool
    ) -> None:
        """Keep these entries of the turn's journal; nothing outlives the process."""
        with self._open() as engine:
            engine.journal(lease, entries)

    async def _store(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        with self._open() as engine:
            engine.append(lease, items)
            if end is not None:
                engine.end(lease, end)

    async def _pop(self, session_id: str, lease: Lease | None) -> Item | None:
        with self._open() as engine:
            if lease is not None:
                engine.fenced(lease)
            text = engine.pop(session_id)
        return None if text is None else decode_items([text])[0][0]

    async def _release(self, session_id: str) -> bool:
        with self._open() as engine:
            return engine.release(session_id)

    async def _records(
        self, session_id: str, limit: int | None, before: int | None
    ) -> list[TurnRecord]:
        with self._open() as engine:
            return engine.records(session_id, limit, before)

    # --- ManagedStore ----------------------------------------------------------------------

    async def list_page(self, query: SessionQuery) -> list[SessionInfo]:
        """Read one page of the sessions."""
        with self._open() as engine:
            return engine.page(query)

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """Read the newest turn of each of these sessions."""
        with self._open() as engine:
            return [engine.newest_turn(session_id) for session_id in session_ids]

    async def label(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata; False where there is no such session."""
        with self._open() as engine:
            return engine.relabel(session_id, labels)

    async def read_copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """Read the next turns with a number above ``after``, oldest first."""
        with self._open() as engine:
            return engine.copies(session_id, after, limit)

    async def write_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's, and end the lease."""
        with self._open() as engine:
            engine.put_copies(lease, info, turns, fence)

    async def newest_fence(self) -> int:
        """The fence of the newest lease."""
        with self._open() as engine:
            return engine.newest_fence()

    async def remove_turns(self, lease: Lease, turns: Sequence[int], end: TurnEnd) -> None:
        """Remove every word of these turns, and end the lease's own."""
        with self._open() as engine:
            engine.remove_words(lease, turns, end)

    async def delete_sessions(
        self, session_ids: Sequence[str], *, idle_since: datetime | None = None
    ) -> int:
        """Remove these sessions; return how many there were."""
        with self._open() as engine:
            return engine.delete(session_ids, idle_since)

    async def find_trace(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id."""
        with self._open() as engine:
            return engine.find(trace_id)

    async def parked_runs(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait for approval."""
        with self._open() as engine:
            return engine.waiting(query)

    async def note_decision(
        self, session_id: str, turn: int, call_id: str, *, approved: bool, message: str | None
    ) -> None:
        """Keep the decision with the parked run."""
        with self._open() as engine:
            engine.decide(session_id, turn, call_id, approved, message)

    # --- histories and sessions ------------------------------------------------------------

    async def _append_turn(self, session_id: str, texts: Sequence[str]) -> None:
        with self._open() as engine:
            engine.append_turn(session_id, texts)

    async def _replace(
        self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None
    ) -> None:
        with self._open() as engine:
            engine.replace(session_id, turns, lease)

    async def _forget(self, session_id: str, lease: Lease | None) -> None:
        with self._open() as engine:
            engine.forget(session_id, lease)

    async def _exists(self, session_id: str) -> bool:
        with self._open() as engine:
            return engine.exists(session_id)

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions that something was stored or saved in."""
        with self._open() as engine:
            return engine.sessions()

    # --- life ------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Do nothing, unless the memory was cleaned up.

        Raises:
            MemoryClosed: after ``cleanup``.
        """
        with self._open():
            pass

    async def cleanup(self, drain: float | None = None) -> None:
        """Forget everything; whatever is asked of the memory afterwards is MemoryClosed.

        Args:
            drain: first wait for running turns to end, for at most this many seconds.
        """
        if drain:
            await asyncio.to_thread(self._wait_for_turns, drain)
        with self._changed:
            self.closed = True
            self._engine = ManagedEngine()

    def _wait_for_turns(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._engine.is_held(), seconds)

    def _end_turns_of_parent(self) -> None:
        # The threads that held sessions, or the condition, are the parent's.
        self._changed = threading.Condition()
        self._engine.release_all()


_memories = forgetting_at_fork(Step.IN_MEMORY_SESSIONS, InMemorySessionMemory._end_turns_of_parent)
