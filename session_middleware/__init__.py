"""A memory for agent runs of the OpenAI Agents SDK, by session id, without touching the agents.

The public surface is what ``__all__`` lists; everything else may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_middleware._scope import current_session
from session_middleware.decorator import with_session_memory
from session_middleware.errors import (
    ConflictingMemory,
    DuplicateTurn,
    IdempotencyConflict,
    InvalidItem,
    InvalidMemoryUrl,
    InvalidOption,
    InvalidSessionId,
    MemoryClosed,
    MemoryUnavailable,
    MissingExtra,
    NotADatabase,
    SessionBusy,
    SessionIdRequired,
    SessionMemoryError,
    TurnInProgress,
    TurnLost,
    UnsupportedSchema,
    WrongSession,
)
from session_middleware.history import last_items, last_turns, token_budget
from session_middleware.hooks import SessionRunHooks
from session_middleware.memory import SessionMemory, TurnRecord
from session_middleware.middleware import install, installed, session_scope, uninstall
from session_middleware.stores import open_memory

if TYPE_CHECKING:
    from session_middleware.stores.in_memory import InMemorySessionMemory
    from session_middleware.stores.sqlite import SQLiteSessionMemory
    from session_middleware.telemetry import SessionSpanProcessor as SessionSpanProcessor

__all__ = [
    # put a session around runs
    "with_session_memory",
    "session_scope",
    "current_session",
    "install",
    "uninstall",
    "installed",
    "SessionRunHooks",
    # memories
    "SessionMemory",
    "SQLiteSessionMemory",
    "InMemorySessionMemory",
    "open_memory",
    "TurnRecord",
    # windows
    "last_turns",
    "last_items",
    "token_budget",
    # errors
    "ConflictingMemory",
    "DuplicateTurn",
    "IdempotencyConflict",
    "InvalidItem",
    "InvalidMemoryUrl",
    "InvalidOption",
    "InvalidSessionId",
    "MemoryClosed",
    "MemoryUnavailable",
    "MissingExtra",
    "NotADatabase",
    "SessionBusy",
    "SessionIdRequired",
    "SessionMemoryError",
    "TurnInProgress",
    "TurnLost",
    "UnsupportedSchema",
    "WrongSession",
]


def __getattr__(name: str) -> Any:
    """Import a store, or what needs an extra, when it is first asked for."""
    if name in ("SQLiteSessionMemory", "InMemorySessionMemory"):
        from session_middleware import stores

        return getattr(stores, name)
    if name == "SessionSpanProcessor":  # not in __all__: `import *` must work without the extra
        from session_middleware.telemetry import SessionSpanProcessor

        return SessionSpanProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
