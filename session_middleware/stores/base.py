"""What our stores share: the six methods of the interface, and those of a turn, over primitives.

``TurnMemory`` makes the six methods of any ``TurnStore`` with a few writes of flat histories.
``TransactionalMemory`` makes the most of a ``TurnStore`` for a storage with transactions. What a
caller can get wrong is caught here, before anything is stored. No I/O, nothing of any one backend.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Hashable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar

from session_middleware._current import CurrentTurn, current_turn
from session_middleware.errors import SessionMemoryError
from session_middleware.history import LastItems, LastTurns, split
from session_middleware.memory import check_session_id, tell_released
from session_middleware.stores.items import encode_in_steps
from session_middleware.stores.managing import ManagedMemory
from session_middleware.stores.numbers import cut
from session_middleware.stores.protocol import SHORTCUTS, TURNS
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    Items,
    Lease,
    Loaded,
    RunItems,
    TurnEnd,
    TurnRecord,
)
from session_middleware.stores.reported import reported


class TurnMemory(ManagedMemory):
    """A memory with turns: the six methods of the interface, over the store's primitives.

    Runs do not come through the six: a subclass that changes what is stored overrides
    ``append_items``, ``load_turns`` and ``load_items``. The capabilities in ``SHORTCUTS`` pass by
    those methods, so no class inherits them: a class has them when its own body sets
    ``capabilities``, and forgetting that costs round trips and nothing else. The conformance
    suite finds a class that declares a shortcut and does something else there.

    Example:
        class Logged(SQLiteSessionMemory):  # overrides no primitive, so it keeps the shortcuts
            capabilities = SQLiteSessionMemory.capabilities
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({TURNS})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "capabilities" not in vars(cls):
            cls.capabilities = cls.capabilities - SHORTCUTS

    closed: bool = False
    """Whether ``cleanup`` was called; a store sets it, and raises MemoryClosed from then on."""

    url: str | None = None
    """The URL by which ``stores.shared`` opened it, for other processes to open it again."""

    def __reduce__(self) -> Any:
        if self.url is None or ":memory:" in self.url:
            raise TypeError(
                f"{type(self).__name__} cannot be sent to another process: name the memory by its "
                "URL, or make it in a module that the other process imports"
            )
        from session_middleware.stores import shared

        return shared, (self.url,)

    @property
    @abstractmethod
    def identity(self) -> Hashable: ...

    @abstractmethod
    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]: ...

    @abstractmethod
    async def append_items(
        self,
        lease: Lease,
        run: int,
        position: int,
        items: Sequence[Item],
        *,
        input_digest: str | None = None,
    ) -> None: ...

    @abstractmethod
    async def append_turn(self, session_id: str, items: Sequence[Item]) -> None:
        """Store items as a completed turn of their own, after every turn there is."""

    @abstractmethod
    async def replace_history(
        self, session_id: str, turns: Sequence[Sequence[Item]], lease: Lease | None
    ) -> None:
        """Put these turns in place of the history; with no turns, an empty session exists.

        Without a lease the session's lease ends, and its turn is lost. With one, the current
        turn stays and all items become its own, as its run 0, which no Runner run ever is.
        """

    @abstractmethod
    async def forget_session(self, session_id: str, lease: Lease | None) -> None:
        """Remove the session; with a lease, all but the current turn, which goes on empty."""

    async def _current(self, session_id: str) -> CurrentTurn | None:
        """The current turn of this context on the session, with all its items stored, or None."""
        turn = current_turn(self.identity, session_id)
        if turn is not None:
            await turn.settle()
        return turn

    async def _lease(self, session_id: str) -> Lease | None:
        """The lease of that turn, or None."""
        turn = await self._current(session_id)
        return None if turn is None else turn.lease

    @reported("search_memory")
    async def load_session(self, session_id: str) -> Items:
        """Return the whole history, oldest item first; an empty list for an unknown session."""
        await self._current(check_session_id(session_id))
        return await self.load_items(session_id)

    @reported("update_memory")
    async def save_session(self, session_id: str, conversation_history: Items) -> None:
        """Replace the history by this one, split into turns.

        Each user message that follows an item of another kind begins a turn. Within the current
        turn of this session the whole history becomes that turn's. From outside, a turn that
        runs there loses the session (TurnLost).

        Raises:
            InvalidSessionId, InvalidItem: nothing was changed.
        """
        check_session_id(session_id)
        # Not turn by turn: a fault is named by its position in the whole list.
        await encode_in_steps(conversation_history)
        lease = await self._lease(session_id)
        await self.replace_history(session_id, split(conversation_history), lease)
        if lease is None:
            tell_released(self.identity, session_id)

    @reported("create_memory")
    async def append_to_session(self, session_id: str, new_items: Items) -> None:
        """Add items: within the current turn of this session, else as a turn of their own.

        Raises:
            InvalidSessionId, InvalidItem: nothing was stored.
            TurnLost: the current turn no longer holds the session.
        """
        check_session_id(session_id)
        if isinstance(new_items, list) and not new_items:
            return
        turn = await self._current(session_id)
        if turn is not None and turn.lease is not None:
            await self.append_items(turn.lease, turn.next_run(), 0, new_items)
        else:
            await self.append_turn(session_id, new_items)

    @reported("delete_memory")
    async def clear_session(self, session_id: str) -> None:
        """Forget the session; no error where there is none.

        Within the current turn of this session that turn goes on with nothing stored. From
        outside, a turn that runs there loses the session (TurnLost).
        """
        lease = await self._lease(check_session_id(session_id))
        await self.forget_session(session_id, lease)
        if lease is None:
            tell_released(self.identity, session_id)

    @abstractmethod
    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items."""


class TransactionalMemory(TurnMemory):
    """A memory whose storage writes what belongs together in one transaction.

    Session ids, numbers and items are checked here. A store adds ``acquire``, the methods of its
    other capabilities, and the primitives, which get checked ids, whole numbers and texts.
    """

    # --- TurnStore -------------------------------------------------------------------------

    async def load_turns(
        self,
        session_id: str,
        *,
        newest: LastTurns | LastItems | None = None,
        hide: tuple[int, Collection[int]] | None = None,
        texts: bool = False,
    ) -> Loaded:
        """Read the history in whole turns, oldest first."""
        return await self._load_turns(check_session_id(session_id), newest, hide, texts)

    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]:
        """Read raw items, oldest first."""
        check_session_id(session_id)
        return await self._load_items(session_id, cut("turn", turn), cut("limit", limit))

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
        texts = await encode_in_steps(items)
        await self._store(lease, [RunItems(run, position, texts, input_digest)])

    async def write_turn(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        """Store items, and the turn's end if it is given: all of it or nothing."""
        await self._store(lease, items, end)

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        """Write the turn's end and end its lease."""
        await self._store(lease, (), end)

    async def pop_item(self, session_id: str) -> Item | None:
        """Remove and return the newest item of the session; None where there is none.

        Raises:
            TurnLost: the current turn of this context no longer holds the session.
        """
        return await self._pop(session_id, await self._lease(check_session_id(session_id)))

    async def release(self, session_id: str) -> bool:
        """End the lease of the session, whoever holds it; returns whether anybody did."""
        released = await self._release(check_session_id(session_id))
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
        await self._current(check_session_id(session_id))
        return await self._records(session_id, cut("limit", limit), cut("before", before))

    async def _undo(self, request: AcquireRequest, acquired: Acquired) -> None:
        """Give back a session that was acquired for a caller who was cancelled meanwhile."""
        items, end = acquired.undone(request, datetime.now(UTC))
        with suppress(SessionMemoryError):  # otherwise the lease ends by itself
            await self._store(acquired.lease, items, end)

    # --- SessionMemory, as far as TurnMemory leaves it open --------------------------------

    async def append_turn(self, session_id: str, items: Sequence[Item]) -> None:
        """Store items as a completed turn of their own, after every turn there is."""
        check_session_id(session_id)
        await self._append_turn(session_id, await encode_in_steps(items))

    async def replace_history(
        self, session_id: str, turns: Sequence[Sequence[Item]], lease: Lease | None
    ) -> None:
        """Put these turns in place of the history."""
        check_session_id(session_id)
        encoded = iter(await encode_in_steps([item for items in turns for item in items]))
        await self._replace(session_id, [[next(encoded) for _ in items] for items in turns], lease)

    async def forget_session(self, session_id: str, lease: Lease | None) -> None:
        """Remove the session; with a lease, all but the current turn, which goes on empty."""
        await self._forget(check_session_id(session_id), lease)

    async def session_exists(self, session_id: str) -> bool:
        """Return whether something was stored or saved in a session of this id."""
        return await self._exists(check_session_id(session_id))

    # --- primitives ------------------------------------------------------------------------
    # A write that has begun comes to its end, whatever cancels its caller.

    @abstractmethod
    async def _load_turns(
        self,
        session_id: str,
        newest: LastTurns | LastItems | None,
        hide: tuple[int, Collection[int]] | None,
        texts: bool,
    ) -> Loaded: ...

    @abstractmethod
    async def _load_items(
        self, session_id: str, turn: int | None, limit: int | None
    ) -> list[Item]: ...

    @abstractmethod
    async def _store(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None: ...

    @abstractmethod
    async def _pop(self, session_id: str, lease: Lease | None) -> Item | None: ...

    @abstractmethod
    async def _release(self, session_id: str) -> bool: ...

    @abstractmethod
    async def _records(
        self, session_id: str, limit: int | None, before: int | None
    ) -> list[TurnRecord]: ...

    @abstractmethod
    async def _append_turn(self, session_id: str, texts: Sequence[str]) -> None: ...

    @abstractmethod
    async def _replace(
        self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None
    ) -> None: ...

    @abstractmethod
    async def _forget(self, session_id: str, lease: Lease | None) -> None: ...

    @abstractmethod
    async def _exists(self, session_id: str) -> bool: ...
