"""Methods of a memory that people call themselves, as telemetry is told of them.

Stores know no telemetry, and telemetry no store: this is where they meet outside of turns.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypedDict

from session_middleware.errors import InvalidSessionId
from session_middleware.memory import SessionMemory, check_session_id
from session_middleware.stores.reported import Report, set_reporter
from session_middleware.telemetry.method import method_called, settings_heard

if TYPE_CHECKING:
    from session_middleware.stores.managing import ManagedMemory


class Kind(TypedDict):
    """What spans and metrics say of a memory."""

    backend: str
    networked: bool


def kind_of(memory: SessionMemory | None) -> Kind:
    """The kind of the memory, or of the one that the scope is in."""
    memory = None if memory is None else memory.whole
    return Kind(
        backend=str(getattr(memory, "backend", None) or type(memory).__name__),
        networked=bool(getattr(memory, "networked", False)),
    )


def _report(
    memory: ManagedMemory, operation: str, method: str, session_id: object
) -> AbstractContextManager[Report] | None:
    settings = settings_heard(memory.identity)
    if settings is None:
        return None
    try:
        shown = None if session_id is None else check_session_id(session_id)
    except InvalidSessionId:  # the method is about to refuse it
        shown = None
    return method_called(settings, operation, method, shown, **kind_of(memory))


set_reporter(_report)
