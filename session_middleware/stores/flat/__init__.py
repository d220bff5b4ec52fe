"""Turns for a memory that has only the six methods, within one process."""

from session_middleware.stores.flat.memory import FlatTurns

__all__ = ["FlatTurns"]
