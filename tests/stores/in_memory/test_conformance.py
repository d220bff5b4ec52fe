"""The memory in the process passes the suite that ships."""

from __future__ import annotations

import json
from typing import Any

from session_middleware.conformance import MemoryConformance
from session_middleware.memory import SessionMemory
from session_middleware.stores.in_memory import InMemorySessionMemory


class TestInMemory(MemoryConformance):
    def make_memory(self) -> SessionMemory:
        return InMemorySessionMemory()

    async def raw_items(self, memory: Any, session_id: str) -> list[Any]:
        session = memory._engine._sessions.get(session_id)
        turns = () if session is None else session.turns.values()
        return [json.loads(text) for turn in turns for text in turn.texts()]

    async def raw_bytes(self, memory: Any) -> bytes:
        return repr(memory._engine._sessions).encode()
