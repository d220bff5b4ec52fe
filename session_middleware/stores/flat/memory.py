"""Turns for a memory that has only the six methods of ``SessionMemory``, within one process.

The leases of sessions, the runs of turns and their ends are recorded in this process; the items
live in the memory alone. Other processes that use the same storage are not seen.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable, Collection, Coroutine, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from session_middleware import _background
from session_middleware._current import current_turn
from session_middleware.errors import (
    ConflictingMemory,
    MemoryUnavailable,
    SessionBusy,
    SessionMemoryError,
)
from session_middleware.history import LastItems, LastTurns, Turn, split
from session_middleware.memory import SessionMemory, check_session_id, tell_released
from session_middleware.stores.flat.state import RunOrder, flat_state_of, places
from session_middleware.stores.items import decode_items, encode_items
from session_middleware.stores.numbers import cut
from session_middleware.stores.protocol import END_RUN, TURNS, TurnStore
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    Lease,
    Loaded,
    RunItems,
    TurnEnd,
    TurnRecord,
)

KEPT_TURNS = 20
KEPT_SESSIONS = 1_000


class FlatTurns(TurnStore):
    """A ``TurnStore`` for one memory object that has only the six methods.

    Turns are kept apart among all tasks, threads and event loops of this process. Runs of one
    turn that happen at once do not mix: the first one that stores something goes through to the
    memory, the items of the others wait here until ``end_run`` or ``end_turn`` says that it is
    over. An item that waits is part of what ``load_turns`` and ``load_items`` return, is not yet
    seen by the memory's own ``load_session``, and is lost if the process dies.

    Records, and parked runs that may be resumed, are those of this process: the newest 20 turns
    of a session, for the 1,000 sessions used last. Clearing or saving a session directly on the
    memory does not end the turn that runs there; ``release`` does.

    Idempotency keys and discarding need a memory with the capability ``TURNS``.

    Args:
        memory: the memory to serve. All ``FlatTurns`` of one object are one.
    """

    backend = "custom"
    networked = False
    lease_seconds = math.inf
    capabilities: ClassVar[frozenset[str]] = frozenset({END_RUN})

    def __init__(self, memory: SessionMemory) -> None:
        self._memory = memory
        self._state = flat_state_of(memory)

    @property
    def identity(self) -> Hashable:
        """Equal for all ``FlatTurns`` of one memory object."""
        return self._state

    async def acquire(self, request: AcquireRequest) -> Acquired:
        """Acquire the session within this process, or raise why not; never wait.

        Raises:
            ConflictingMemory: the request has an idempotency key.
        """
        session_id = check_session_id(request.session_id)
        if request.idempotency_key is not None:
            raise self._unable("an idempotency key")
        first = 1
        if not self._state.engine.knows(session_id):
            first += len(split((await self._history(session_id))[0]))
        with self._state.lock:
            if session_id in self._state.writes:
                raise SessionBusy(
                    f"the last write of session {session_id!r} is not over: try again"
                )
            acquired = self._state.engine.acquire(request, first=first)
            self._state.orders[session_id] = RunOrder()
            self._state.idle.pop(session_id, None)
        return acquired

    async def load_turns(
        self,
        session_id: str,
        *,
        newest: LastTurns | LastItems | None = None,
        hide: tuple[int, Collection[int]] | None = None,
        texts: bool = False,
    ) -> Loaded:
        """Read the history, split into turns, oldest first; the current turn is the last.

        Older turns are numbered by their place in the history.
        """
        history, corrupt = await self._history(check_session_id(session_id))
        hidden: Collection[int] = hide[1] if hide is not None else ()
        current: list[Item] = []
        number = 0
        with self._state.lock:
            order = self._state.orders.get(session_id)
            if order is not None:
                number = self._state.engine.holder(session_id)
                if hide is not None and hide[0] != number:
                    hidden = ()
                at = places(order.stored, history)
                start = len(history) - len(order.stored)
                if at == list(range(start, len(history))):
                    history, own = history[:start], order.stored
                    current.extend(item for run, item in own if run not in hidden)
                else:  # another writer was there: each hidden item is left out at its own place
                    gone = {
                        place
                        for place, (run, _) in zip(at, order.stored, strict=True)
                        if run in hidden
                    }
                    history = [item for place, item in enumerate(history) if place not in gone]
                for run, items in order.waiting.items():
                    if run not in hidden:
                        current.extend(items)
        turns = [Turn(place, items) for place, items in enumerate(split(history), start=1)]
        if current:
            turns.append(Turn(max(number, len(turns) + 1), current))
        kept = turns if newest is None else newest(turns)
        if texts:
            for turn in kept:
                turn.texts = [_text(item) for item in turn.items]
        return Loaded(kept, complete=len(kept) == len(turns), corrupt=corrupt)

    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]:
        """Read raw items, oldest first; of one turn, as far as this process remembers it."""
        check_session_id(session_id)
        turn, limit = cut("turn", turn), cut("limit", limit)
        if turn is not None:
            with self._state.lock:
                texts = self._state.engine.texts(session_id, turn=turn, limit=limit)
            return _decoded(texts)
        items, _ = await self._history(session_id)
        with self._state.lock:
            order = self._state.orders.get(session_id)
            if order is not None:
                items.extend(item for run in order.waiting.values() for item in run)
        return items if limit is None or limit < 0 else items[max(0, len(items) - limit) :]

    async def append_items(
        self,
        lease: Lease,
        run: int,
        position: int,
        items: Sequence[Item],
        *,
        input_digest: str | None = None,
    ) -> None:
        """Store items; those of a run that is not let through yet wait (see the class)."""
        texts = encode_items(items)
        added = _decoded(texts)
        state = self._state
        with state.lock:
            state.engine.append(lease, [RunItems(run, position, texts, input_digest)])
            order = state.orders[lease.session_id]
            order.over.discard(run)
            if order.through is None:
                order.through = run
            if order.through != run:
                order.waiting.setdefault(run, []).extend(added)
                return
            order.stored.extend((run, item) for item in added)

            def afterwards(succeeded: bool) -> None:
                if not succeeded:
                    state.engine.take_back(lease, run, range(position, position + len(texts)))
                    order.take_back(added)

            write = self._queue(
                lease.session_id, lambda: self._append(lease.session_id, added), afterwards
            )
        await _background.finish(write)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` take over from ``failed``; returns how many items it starts with."""
        state = self._state
        with state.lock:
            kept = state.engine.retry(lease, failed, run)
            order = state.orders[lease.session_id]
            if failed in order.waiting:
                order.waiting[run] = order.waiting.pop(failed)[:kept]
                return kept
            own = [place for place, (owner, _) in enumerate(order.stored) if owner == failed]
            before = list(order.stored)
            dropped = set(own[kept:])
            order.stored = [
                (run if owner == failed else owner, item)
                for place, (owner, item) in enumerate(before)
                if place not in dropped
            ]
            if order.through == failed:
                order.through = run
            if not dropped:
                return kept

            async def remove() -> None:
                history, _ = await self._history(lease.session_id)
                at = places(before, history)
                gone = {at[place] for place in dropped}
                await self._call(
                    "save_session",
                    lease.session_id,
                    [item for place, item in enumerate(history) if place not in gone],
                )

            write = self._queue(lease.session_id, remove)
        await _background.finish(write)
        return kept

    async def end_run(self, lease: Lease, run: int) -> None:
        """Say that ``run`` stores nothing more, so that the items that wait for it are stored.

        When that fails (MemoryUnavailable) they wait on, and ``end_turn`` tries again.
        """
        state = self._state
        with state.lock:
            state.engine.fenced(lease)
            order = state.orders[lease.session_id]
            order.over.add(run)
            batch = order.advance()
            if not batch:
                return

            def afterwards(succeeded: bool) -> None:
                if not succeeded:
                    order.put_back(batch)

            write = self._queue(
                lease.session_id,
                lambda: self._append(lease.session_id, _items(batch)),
                afterwards,
            )
        await _background.finish(write)

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        """Store the items that still wait, write the turn's record, and end its lease.

        The lease ends even when that storing fails (MemoryUnavailable).

        Raises:
            ConflictingMemory: ``end.discard`` is set.
        """
        if end.discard:
            raise self._unable("discarding a turn's items")
        state = self._state
        with state.lock:
            state.engine.fenced(lease)
            batch = state.orders[lease.session_id].end()

            def end_lease(_: bool = True) -> None:
                state.engine.end(lease, end)
                self._forget_order(lease.session_id)

            if not batch and lease.session_id not in state.writes:
                end_lease()
                return
            write = self._queue(
                lease.session_id,
                lambda: self._append(lease.session_id, _items(batch)),
                end_lease,
            )
        await _background.finish(write)

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none."""
        turn = current_turn(self.identity, check_session_id(session_id))
        popped: list[Item] = []

        async def pop() -> None:
            history, _ = await self._history(session_id)
            if history:
                await self._call("save_session", session_id, history[:-1])
                popped.append(history[-1])

        state = self._state
        with state.lock:
            if turn is not None and turn.lease is not None:
                state.engine.fenced(turn.lease)
            order = state.orders.get(session_id)
            if order is not None and order.waiting:
                run, item = order.pop()
                state.engine.pop(session_id, run=run)
                return item
            write = self._queue(session_id, pop)
        await _background.finish(write)
        with state.lock:
            if popped and _decoded(state.engine.texts(session_id, limit=1)) == popped:
                state.engine.pop(session_id)
            if popped and order is not None and order.stored and order.stored[-1][1] == popped[0]:
                order.stored.pop()
        return popped[0] if popped else None

    async def release(self, session_id: str) -> bool:
        """End the lease of the session; items that wait are stored first."""
        state = self._state
        with state.lock:
            released = state.engine.release(check_session_id(session_id))
            tell_released(self.identity, session_id)
            order = state.orders.get(session_id)
            if order is None:
                return released
            batch = order.end()
            self._forget_order(session_id)
            if not batch:
                return released
            write = self._queue(session_id, lambda: self._append(session_id, _items(batch)))
        await _background.finish(write)
        return released

    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns that this process remembers, newest first, with their items."""
        with self._state.lock:
            return self._state.engine.records(
                check_session_id(session_id), cut("limit", limit), cut("before", before)
            )

    # --- the memory ------------------------------------------------------------------------

    async def _history(self, session_id: str) -> tuple[list[Item], int]:
        """The items the memory has, in a list of our own, and how many entries are none."""
        history = await self._call("load_session", session_id)
        if not isinstance(history, list):
            raise MemoryUnavailable(
                f"{type(self._memory).__name__}.load_session returned {type(history).__name__}, "
                "not a list of items"
            )
        items = [item for item in history if isinstance(item, dict)]
        return items, len(history) - len(items)

    async def _append(self, session_id: str, items: list[Item]) -> None:
        if items:
            await self._call("append_to_session", session_id, list(items))

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._memory, method)(*arguments)
        except SessionMemoryError:
            raise
        except Exception as error:
            raise MemoryUnavailable(
                f"{type(self._memory).__name__}.{method} failed with {type(error).__name__}: see "
                "its cause"
            ) from error

    def _queue(
        self,
        session_id: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        afterwards: Callable[[bool], None] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """A coroutine that does ``work`` after every earlier write of the session.

        Called under the lock: the order of the calls is the order of the writes, whatever loops
        they run on. ``afterwards`` is called under the lock, whatever became of the work, and is
        told whether it succeeded.
        """
        writes = self._state.writes
        earlier = writes.get(session_id)
        over: Future[None] = Future()
        writes[session_id] = over
        succeeded = False

        def finish() -> None:
            with self._state.lock:
                if over.done():
                    return
                if writes.get(session_id) is over:
                    del writes[session_id]
                over.set_result(None)
                if afterwards is not None:
                    afterwards(succeeded)

        async def in_order() -> None:
            nonlocal succeeded
            try:
                if earlier is not None:
                    await asyncio.shield(asyncio.wrap_future(earlier))
                await work()
                succeeded = True
            finally:
                finish()

        write = in_order()
        # A loop that shuts down at this moment drops the write before its first step.
        weakref.finalize(write, finish).atexit = False
        return write

    def _forget_order(self, session_id: str) -> None:
        state = self._state
        state.orders.pop(session_id, None)
        state.engine.keep_newest(session_id, KEPT_TURNS)
        state.idle[session_id] = None
        state.idle.move_to_end(session_id)
        while len(state.idle) > KEPT_SESSIONS:
            oldest, _ = state.idle.popitem(last=False)
            state.engine.forget(oldest, None, deleted=False)

    def _unable(self, what: str) -> ConflictingMemory:
        return ConflictingMemory(
            f"{what} needs a memory with the capability {TURNS!r}, which "
            f"{type(self._memory).__name__} does not have: use SQLiteSessionMemory, or leave it out"
        )


def _items(batch: Sequence[tuple[int, Item]]) -> list[Item]:
    return [item for _, item in batch]


def _decoded(texts: Sequence[str]) -> list[Item]:
    return [item for item in decode_items(texts)[0] if item is not None]


def _text(item: Item) -> str:
    try:
        return encode_items([item])[0]
    except SessionMemoryError:
        return repr(item)  # the memory made it, and it has no JSON
