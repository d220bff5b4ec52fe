"""One turn, as tracing tools, metrics and logs see it.

Telemetry never sees a store and never decides anything: the core tells it what happened. It uses
opentelemetry-api and structlog as the application configured them, and configures neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_middleware.telemetry.content import Said
from session_middleware.telemetry.log import add_trace_context
from session_middleware.telemetry.operation import REFUSALS, Operation
from session_middleware.telemetry.settings import Telemetry, TelemetrySettings
from session_middleware.telemetry.turn import TurnTelemetry

if TYPE_CHECKING:
    from session_middleware.telemetry.processor import SessionSpanProcessor

__all__ = [
    "REFUSALS",
    "Operation",
    "Said",
    "SessionSpanProcessor",
    "Telemetry",
    "TelemetrySettings",
    "TurnTelemetry",
    "add_trace_context",
]


def __getattr__(name: str) -> Any:
    if name == "SessionSpanProcessor":  # lazily: it needs the extra `otel`
        from session_middleware.telemetry.processor import SessionSpanProcessor

        return SessionSpanProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
