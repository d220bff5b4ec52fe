"""A memory that lives and dies with the process: for tests, notebooks and single-process apps.

Everything a durable store does, but for the durability; it shares nothing with other processes.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import weakref
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager

from session_middleware.errors import MemoryClosed
from session_middleware.history import LastItems, LastTurns
from session_middleware.memory import (
    Item,
    Lease,
    Loaded,
    RunItems,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnRecord,
    check_session_id,
    tell_released,
)
from session_middleware.stores._base import TurnMemory, decode_items, encode_items
from session_middleware.stores._ledger import Ledger

_memories: weakref.WeakSet[InMemorySessionMemory] = weakref.WeakSet()


class InMemorySessionMemory(TurnMemory):
    """Keep conversations in this process's memory.

    One object serves any number of sessions, threads and event loops. Items are kept as JSON
    texts, so what is read is always a copy. A turn holds its session until it ends or somebody
    calls ``release``: nothing expires, as nobody else could take over.

    Example:
        memory = InMemorySessionMemory()
        await memory.append_to_session("user-42", [{"role": "user", "content": "Hi"}])
    """

    backend = "memory"
    networked = False
    lease_seconds = math.inf
    stores_with_taking = True

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._changed = threading.Condition()
        _memories.add(self)

    @contextmanager
    def _open(self) -> Iterator[Ledger]:
        """The ledger, for one thread at a time; never held across an await."""
        with self._changed:
            if self.closed:
                raise MemoryClosed("this memory was cleaned up: make a new InMemorySessionMemory")
            yield self._ledger

    # --- SupportsTurns ---------------------------------------------------------------------

    @property
    def identity(self) -> Hashable:
        """The memory itself: two of them never share anything."""
        return self

    async def take_turn(self, request: TakeTurn) -> Taken:
        """Take the session, or say why not; never wait."""
        check_session_id(request.session_id)
        with self._open() as ledger:
            return ledger.take(request)

    async def look_up(self, request: TakeTurn) -> None:
        """Raise what taking the session would, if the request's work was done before."""
        check_session_id(request.session_id)
        with self._open() as ledger:
            ledger.look_up(request)

    async def load_turns(
        self,
        session_id: str,
        *,
        newest: LastTurns | LastItems | None = None,
        hide: tuple[int, Collection[int]] | None = None,
        texts: bool = False,
    ) -> Loaded:
        """Read the history in whole turns, oldest first."""
        with self._open() as ledger:
            return ledger.load(session_id, newest=newest, hide=hide, texts=texts)

    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]:
        """Read raw items, oldest first."""
        with self._open() as ledger:
            texts = ledger.texts(session_id, turn=turn, limit=limit)
        return [item for item in decode_items(texts)[0] if item is not None]

    async def append_items(
        self,
        lease: Lease,
        run: int,
        position: int,
        items: Sequence[Item],
        *,
        input_digest: str | None = None,
    ) -> None:
        """Store items as (session, turn, run, position ...); all of them or none."""
        await self._store(lease, [RunItems(run, position, encode_items(items), input_digest)])

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over what ``failed`` left; returns how many items it starts with."""
        with self._open() as ledger:
            return ledger.retry(lease, failed, run)

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        """Write the turn's end and let the session go."""
        await self._store(lease, (), end)

    async def write_turn(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        """Store items, and the turn's end if it is given: all of it or nothing."""
        await self._store(lease, items, end)

    async def _store(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        with self._open() as ledger:
            ledger.append(lease, items)
            if end is not None:
                ledger.end(lease, end)
                self._changed.notify_all()

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none.

        Raises:
            TurnLost: the current turn of this context no longer holds the session.
        """
        lease = await self._lease(check_session_id(session_id))
        with self._open() as ledger:
            if lease is not None:
                ledger.fenced(lease)
            text = ledger.pop(session_id)
        return None if text is None else decode_items([text])[0][0]

    async def release(self, session_id: str) -> bool:
        """Take the session away from whoever holds it; returns whether anybody did."""
        with self._open() as ledger:
            released = ledger.release(check_session_id(session_id))
            self._changed.notify_all()
        tell_released(self.identity, session_id)
        return released

    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items.

        Args:
            session_id: the session.
            limit: at most this many.
            before: only turns with a smaller number; pass the last one seen to page on.
        """
        await self._held(check_session_id(session_id))
        with self._open() as ledger:
            return ledger.records(session_id, limit, before)

    # --- SessionMemory, as far as the base leaves it open ----------------------------------

    async def append_turn(self, session_id: str, items: Sequence[Item]) -> None:
        """Store items as a completed turn of their own, after every turn there is."""
        texts = encode_items(items)
        with self._open() as ledger:
            ledger.append_turn(session_id, texts)

    async def replace_history(
        self, session_id: str, turns: Sequence[Sequence[Item]], lease: Lease | None
    ) -> None:
        """Put these turns in place of the history."""
        texts = [encode_items(turn) for turn in turns]
        with self._open() as ledger:
            ledger.replace(session_id, texts, lease)
            self._changed.notify_all()

    async def forget_session(self, session_id: str, lease: Lease | None) -> None:
        """Remove the session; with a lease, all but the current turn, which goes on empty."""
        with self._open() as ledger:
            ledger.forget(session_id, lease)
            self._changed.notify_all()

    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions that something was stored or saved in."""
        with self._open() as ledger:
            return ledger.sessions()

    async def session_exists(self, session_id: str) -> bool:
        """Return whether something was stored or saved in a session of this id."""
        check_session_id(session_id)
        with self._open() as ledger:
            return ledger.exists(session_id)

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
            self._ledger = Ledger()

    def _wait_for_turns(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._ledger.is_held(), seconds)

    def _after_fork(self) -> None:
        # The threads that held sessions, or the condition, are the parent's.
        self._changed = threading.Condition()
        self._ledger.release_all()


def _after_fork_in_child() -> None:
    for memory in list(_memories):
        memory._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
