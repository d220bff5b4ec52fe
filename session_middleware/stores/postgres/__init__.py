"""Sessions of many machines in one PostgreSQL database. Needs the extra ``postgres`` (asyncpg)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from session_middleware.stores.postgres.memory import PostgresSessionMemory

__all__ = ["PostgresSessionMemory"]


def __getattr__(name: str) -> Any:
    if name == "PostgresSessionMemory":
        from session_middleware.stores.postgres.memory import PostgresSessionMemory

        return PostgresSessionMemory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
