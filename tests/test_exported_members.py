"""The public surface, written down once more: a name comes or goes on purpose only."""

from __future__ import annotations

import session_middleware
from session_middleware import errors
from tests.support.programs import Programs

SURFACE = {
    # the decorator, and a turn as a block
    "with_session_memory",
    "session_scope",
    "current_session",
    # the run middleware
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
    "SessionMemoryError",
    "SessionIdRequired",
    "InvalidSessionId",
    "InvalidItem",
    "InvalidOption",
    "InvalidMemoryUrl",
    "ConflictingMemory",
    "WrongSession",
    "SessionBusy",
    "TurnInProgress",
    "TurnLost",
    "UnknownState",
    "DuplicateTurn",
    "IdempotencyConflict",
    "MemoryUnavailable",
    "MemoryClosed",
    "UnsupportedSchema",
    "NotADatabase",
    "OutcomeUnknown",
    "MissingExtra",
}


def test_all_is_the_surface() -> None:
    """__all__ names exactly this, each once."""
    assert set(session_middleware.__all__) == SURFACE
    assert len(session_middleware.__all__) == len(SURFACE)


def test_nothing_else_is_public(programs: Programs) -> None:
    """Importing the package puts no other public name of its own into it, submodules apart."""
    script = (
        "import session_middleware\n"
        "for name, value in vars(session_middleware).items():\n"
        "    where = getattr(value, '__module__', '') or ''\n"
        "    if not name.startswith('_') and where.startswith('session_middleware'):\n"
        "        print(name)"
    )
    done = programs.run("-c", script)
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    assert "with_session_memory" in names
    assert names <= SURFACE


def test_every_name_is_there_and_documented() -> None:
    """Each name exists, says what it is for, and belongs to the package's own module."""
    for name in SURFACE:
        value = getattr(session_middleware, name)
        assert value.__doc__, name
        assert value.__module__.startswith("session_middleware"), name


def test_every_error_is_handed_on() -> None:
    """All errors can be imported from the package, and all are SessionMemoryError."""
    for name in errors.__all__:
        error = getattr(session_middleware, name)
        assert error is getattr(errors, name)
        assert issubclass(error, session_middleware.SessionMemoryError)


def test_errors_are_also_what_python_calls_them() -> None:
    """Some errors are caught by the built-in name for their kind as well."""
    assert issubclass(session_middleware.InvalidOption, TypeError)
    assert issubclass(session_middleware.InvalidMemoryUrl, ValueError)
    assert issubclass(session_middleware.MissingExtra, ImportError)
