"""A method of a memory that somebody called by itself: an operation that belongs to no turn.

A method takes no settings. Those in force are what was said of the same storage elsewhere: an id
that must not be shown in the traces of turns must not be shown here either.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

from opentelemetry.context import get_current

from session_middleware.telemetry import log, spans
from session_middleware.telemetry.metrics import instruments
from session_middleware.telemetry.operation import MemoryOperation, Operation
from session_middleware.telemetry.root import RootSpan
from session_middleware.telemetry.settings import Telemetry, emitted_id
from session_middleware.telemetry.turn_metrics import TurnMetrics

_DEFAULT = Telemetry()
_noted: dict[Hashable, Telemetry] = {}
_noted_of_objects: WeakKeyDictionary[Hashable, Telemetry] = WeakKeyDictionary()


def note_settings(identity: Hashable, settings: Telemetry) -> None:
    """Keep what turns on this storage emit, for the memory's own methods.

    The newest settings count; but none that shows ids replaces one that maps them.
    """
    known = _settings_of(identity)
    if settings == _DEFAULT or (known.session_id is not None and settings.session_id is None):
        return
    try:
        _noted_of_objects[identity] = settings
    except TypeError:  # a tuple or a text, which nothing can refer to weakly
        _noted[identity] = settings


def _settings_of(identity: Hashable) -> Telemetry:
    noted = _noted.get(identity)
    if noted is None and _noted_of_objects:
        try:
            noted = _noted_of_objects.get(identity)
        except TypeError:  # likewise
            return _DEFAULT
    return noted or _DEFAULT


def settings_heard(identity: Hashable) -> Telemetry | None:
    """The settings for methods on this storage; None where nobody has given a provider."""
    try:
        settings = _settings_of(identity)
        if spans.provided(settings.tracer_provider) or instruments(settings.meter_provider):
            return settings
    except Exception as error:
        log.swallowed("settings", error)
    return None


def method_called(
    settings: Telemetry,
    operation: str,
    method: str,
    session_id: str | None,
    *,
    backend: str,
    networked: bool,
) -> AbstractContextManager[Operation]:
    """Time and trace one call of a memory's method, under the span that is current here.

    Args:
        session_id: as the user gave it; None where the call is of several sessions.
    """
    shown = None if session_id is None else emitted_id(settings, session_id)
    root = RootSpan(settings, session_id, shown)
    metrics = TurnMetrics(backend)
    try:
        root.suppressed = spans.suppressed(get_current())
        if spans.provided(settings.tracer_provider):
            root.start_without_span()
    except Exception as error:
        log.swallowed(method, error)
    metrics.start(settings.meter_provider, None)
    return MemoryOperation(
        operation, root=root, metrics=metrics, backend=backend, networked=networked, method=method
    )
