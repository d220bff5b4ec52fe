"""Tests for anybody's memory: subclass one of these classes, say how to make a memory, run pytest.

Nothing here depends on pytest or a plugin of it: every test is a plain method that runs its own
event loop, on a memory of its own. Only the public contracts are used.

- ``MemoryConformance``: what every ``SessionMemory`` does, its six methods.
- ``TurnConformance``: what ``SupportsTurns`` adds as far as one process can keep it.
- ``TurnMemoryConformance``: both in one object, with idempotency keys and discarding.
- ``SharedStorageConformance``: all of it, for a storage that several objects or processes share.

Example:
    class TestMyMemory(MemoryConformance):
        def make_memory(self) -> SessionMemory:
            return MyMemory()
"""

from session_middleware.conformance._histories import MemoryConformance
from session_middleware.conformance._shared_storage import SharedStorageConformance
from session_middleware.conformance._turn_memory import TurnConformance, TurnMemoryConformance

__all__ = [
    "MemoryConformance",
    "TurnConformance",
    "TurnMemoryConformance",
    "SharedStorageConformance",
]
