"""Every session in one SQLite file: the embedded default. The driver is imported on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from session_middleware.stores.sqlite.memory import SQLiteSessionMemory

__all__ = ["SQLiteSessionMemory"]


def __getattr__(name: str) -> Any:
    if name == "SQLiteSessionMemory":
        from session_middleware.stores.sqlite.memory import SQLiteSessionMemory

        return SQLiteSessionMemory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
