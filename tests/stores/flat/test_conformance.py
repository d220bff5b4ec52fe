"""A memory with six methods, and the turns made for it, pass the suite that ships."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance import MemoryConformance
from session_middleware.memory import SessionMemory
from session_middleware.stores.flat import FlatTurns
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.records import Item
from tests.support.six_methods import SixMethods


class TestSixMethods(MemoryConformance):
    def make_memory(self) -> SessionMemory:
        return SixMethods()

    def make_peer(self, memory: Any) -> SessionMemory:
        peer = SixMethods()
        peer.histories = memory.histories
        return peer

    async def raw_items(self, memory: Any, session_id: str) -> list[Item]:
        return list(memory.histories.get(session_id, []))

    async def raw_bytes(self, memory: Any) -> bytes:
        return repr(memory.histories).encode()


class TestFlatTurns(TestSixMethods):
    def turns_of(self, memory: Any) -> TurnStore:
        return FlatTurns(memory)
