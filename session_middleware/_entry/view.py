"""One session of a memory, in the SDK's own ``Session`` protocol.

The view only reads and writes its memory. That a run with it becomes a turn is up to the
interceptor, which knows it by its class.
"""

from __future__ import annotations

from typing import Any

from session_middleware import _sdk, history
from session_middleware._current import current_turn
from session_middleware._turns.wrapped_session import asking_run
from session_middleware.errors import ConflictingMemory
from session_middleware.memory import SessionMemory
from session_middleware.memory_option import turns_of
from session_middleware.stores.records import Items


class SessionView(_sdk.SessionABC):
    """One session of a memory, in the SDK's ``Session`` protocol.

    As ``session=`` of a Runner call it makes that run a full turn. Called directly, its methods
    are the memory's own: ``get_items(n)`` gives exactly the newest n items.

    Args:
        memory: the memory that holds the session.
        session_id: the session's id.
    """

    session_settings: Any = None

    def __init__(self, memory: SessionMemory, session_id: str) -> None:
        self.memory = memory
        self.session_id = session_id

    async def get_items(self, limit: int | None = None) -> Items:
        """The newest ``limit`` items, oldest first; all without a limit."""
        asking = asking_run(self.session_id)
        if asking is not None:
            items: Items = await asking.run.get_items(limit)
            return items
        turns = turns_of(self.memory)
        held = current_turn(turns.identity, self.session_id)
        if held is not None:
            await held.settle()
        return await turns.load_items(self.session_id, limit=limit)

    async def add_items(self, items: Items) -> None:
        """Add items at the end."""
        asking = asking_run(self.session_id)
        if asking is not None:
            await asking.run.add_items(items, asking.added)
        else:
            await self.memory.append_to_session(self.session_id, items)

    async def pop_item(self) -> Any:
        """Remove and return the newest item; None for an empty session."""
        asking = asking_run(self.session_id)
        if asking is not None:
            return await asking.run.pop_item()
        return await turns_of(self.memory).pop_item(self.session_id)

    async def clear_session(self) -> None:
        """Forget the session."""
        asking = asking_run(self.session_id)
        if asking is not None:
            await asking.run.clear_session()
        else:
            await self.memory.clear_session(self.session_id)

    async def _atomic_replace_items(self, items: Items) -> bool:
        """The SDK's compaction: it would clear the session, and add these.

        The items stay, and so do the records of their turns: a compaction item stands for all
        before it, so the history begins there.

        Raises:
            ConflictingMemory: no compaction item is among them that can be read.
        """
        if not history.holds_compaction(items):
            raise ConflictingMemory(
                "a session cannot be compacted to items without a readable compaction item, which "
                "is what this wrapper makes of it: leave the wrapper out that encrypts them"
            )
        await self.add_items(items)
        return True


def view_within(session: Any) -> SessionView | None:
    """The view that this session is or wraps, however deep; None where there is none."""
    for _ in range(_DEPTH):
        if session is None or isinstance(session, SessionView):
            return session
        session = _sdk.underlying_session(session)
    return None


_DEPTH = 8
