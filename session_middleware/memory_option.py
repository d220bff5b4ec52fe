"""Which memory the option ``memory=`` names, and its view as one that keeps turns.

Reading the other options is for ``options``.
"""

from __future__ import annotations

import os
from typing import TypeAlias, cast

from session_middleware.errors import InvalidOption
from session_middleware.memory import SessionMemory
from session_middleware.stores import shared
from session_middleware.stores.protocol import TURNS, TurnStore

DEFAULT_MEMORY = "agent_sessions.db"

MemoryOption: TypeAlias = SessionMemory | str | bool | None

_default_of_a_test: SessionMemory | None = None


def default_of_a_test() -> SessionMemory | None:
    """The memory that ``memory=True`` means for the length of a test; None outside of tests."""
    return _default_of_a_test


def put_default_of_a_test(memory: SessionMemory | None) -> SessionMemory | None:
    """Let ``memory=True`` mean this memory, for functions decorated before as well.

    None ends that. Returns the memory that it meant before.
    """
    global _default_of_a_test
    before, _default_of_a_test = _default_of_a_test, memory
    return before


def resolve_memory(memory: object) -> SessionMemory | None:
    """The memory that ``memory=`` names: none, the default, a URL's, or the object itself.

    Raises:
        InvalidOption: it is none of these.
        InvalidMemoryUrl: the URL has a scheme or an option that no memory has.
    """
    if memory is None or memory is False:
        return None
    if memory is True:
        return shared(os.environ.get("SESSION_MIDDLEWARE_MEMORY") or f"sqlite:///{DEFAULT_MEMORY}")
    if isinstance(memory, str):
        return shared(memory)
    if isinstance(memory, SessionMemory):
        return memory
    if isinstance(memory, type) and issubclass(memory, SessionMemory):
        raise InvalidOption(f"memory must be an instance of {memory.__name__}, got the class")
    raise InvalidOption(
        "memory must be True, None, a URL such as 'sqlite:///chat.db', or a SessionMemory, got "
        f"{memory!r}"
    )


def turns_of(memory: SessionMemory) -> TurnStore:
    """The memory itself if it keeps turns, that of a scope, or an adapter for this process."""
    if TURNS in memory.capabilities:
        return cast(TurnStore, memory.whole)
    # Imported where a memory is used: a program that uses none is not kept waiting for it.
    from session_middleware.stores.flat import FlatTurns

    return FlatTurns(memory)
