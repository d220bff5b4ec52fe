"""Sessions on a Redis or Valkey server. Needs the extra ``redis``, imported on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_middleware.errors import MissingExtra

if TYPE_CHECKING:
    from session_middleware.stores.redis.memory import RedisSessionMemory

__all__ = ["RedisSessionMemory"]


def __getattr__(name: str) -> Any:
    if name == "RedisSessionMemory":
        try:
            import redis.asyncio  # noqa: F401 - only to name the extra where it is missing
        except ImportError as error:
            raise MissingExtra(
                "RedisSessionMemory needs redis-py: pip install 'session-middleware[redis]'"
            ) from error
        from session_middleware.stores.redis.memory import RedisSessionMemory

        return RedisSessionMemory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
