"""A memory as somebody writes it who needs no more than the six methods."""

from __future__ import annotations

import asyncio
import copy

from session_middleware.memory import SessionMemory
from session_middleware.stores.records import Item


class SixMethods(SessionMemory):
    """The interface and nothing else.

    Args:
        pauses: other tasks may come in before each load and each write.

    Attributes:
        histories: the items by session id.
    """

    def __init__(self, *, pauses: bool = False) -> None:
        self.histories: dict[str, list[Item]] = {}
        self._pauses = pauses

    async def _called(self, name: str) -> None:
        """A load, save or append begins."""
        if self._pauses:
            await asyncio.sleep(0)

    async def load_session(self, session_id: str) -> list[Item]:
        await self._called("load")
        return copy.deepcopy(self.histories.get(session_id, []))

    async def save_session(self, session_id: str, conversation_history: list[Item]) -> None:
        await self._called("save")
        self.histories[session_id] = copy.deepcopy(conversation_history)

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        await self._called("append")
        self.histories.setdefault(session_id, []).extend(copy.deepcopy(new_items))

    async def clear_session(self, session_id: str) -> None:
        self.histories.pop(session_id, None)

    async def list_sessions(self) -> list[str]:
        return list(self.histories)

    async def session_exists(self, session_id: str) -> bool:
        return session_id in self.histories
