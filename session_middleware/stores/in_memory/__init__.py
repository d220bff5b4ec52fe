"""A memory that lives and dies with the process."""

from session_middleware.stores.in_memory.memory import InMemorySessionMemory

__all__ = ["InMemorySessionMemory"]
