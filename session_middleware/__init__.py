"""A memory for agent runs of the OpenAI Agents SDK, by session id, without touching the agents.

The public surface is what ``__all__`` lists; everything else may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from session_middleware._current import current_session
from session_middleware._turns.tool_calls import ToolCall, current_tool_call
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
    OutcomeUnknown,
    SessionBusy,
    SessionIdRequired,
    SessionMemoryError,
    TurnInProgress,
    TurnLost,
    UnknownState,
    UnsupportedSchema,
    WrongSession,
)
from session_middleware.history import last_items, last_turns, token_budget
from session_middleware.hooks import SessionRunHooks
from session_middleware.install import install, installed, uninstall
from session_middleware.memory import SessionMemory
from session_middleware.scope import session_scope
from session_middleware.stores import open_memory
from session_middleware.stores.records import TurnRecord

if TYPE_CHECKING:
    from session_middleware.stores.base import TurnMemory
    from session_middleware.stores.copy_memory import CopyProgress, copy_memory
    from session_middleware.stores.in_memory import InMemorySessionMemory
    from session_middleware.stores.managed_store import PendingTurn, SessionInfo
    from session_middleware.stores.postgres import PostgresSessionMemory
    from session_middleware.stores.redis import RedisSessionMemory as RedisSessionMemory
    from session_middleware.stores.sdk_sessions import import_sdk_sessions
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
    "current_tool_call",
    "ToolCall",
    # memories
    "SessionMemory",
    "SQLiteSessionMemory",
    "InMemorySessionMemory",
    "PostgresSessionMemory",
    "open_memory",
    "TurnMemory",
    "TurnRecord",
    "SessionInfo",
    "PendingTurn",
    "copy_memory",
    "CopyProgress",
    "import_sdk_sessions",
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
    "OutcomeUnknown",
    "SessionBusy",
    "SessionIdRequired",
    "SessionMemoryError",
    "TurnInProgress",
    "TurnLost",
    "UnknownState",
    "UnsupportedSchema",
    "WrongSession",
]

_ON_DEMAND = {
    "SQLiteSessionMemory": "stores.sqlite",
    "InMemorySessionMemory": "stores.in_memory",
    "PostgresSessionMemory": "stores.postgres",
    "TurnMemory": "stores.base",
    "SessionInfo": "stores.managed_store",
    "PendingTurn": "stores.managed_store",
    "CopyProgress": "stores.copy_memory",
    "copy_memory": "stores.copy_memory",
    "import_sdk_sessions": "stores.sdk_sessions",
    # Not in __all__, as `import *` must work without the extra:
    "RedisSessionMemory": "stores.redis",
    "SessionSpanProcessor": "telemetry",
}
"""Name -> the module it is imported from when it is first asked for."""


def __getattr__(name: str) -> Any:
    """Import what is of a store, or needs an extra, when it is first asked for."""
    if name in _ON_DEMAND:
        return getattr(import_module(f"{__name__}.{_ON_DEMAND[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
