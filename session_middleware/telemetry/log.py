"""Log events through structlog: the application's configuration, or the standard library's.

Configures nothing and binds nothing at import time. An application that has configured structlog
gets the events through its own processors. In any other, they go to the standard library's logger
``session_middleware``, which is silent until the application gives it (or the root) a handler:
structlog's own defaults would print.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any

from opentelemetry import trace

from session_middleware.telemetry import names

_NUMBERS: dict[names.Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def wanted(event: str) -> bool:
    """Whether logging ``event`` can have an effect; says yes where only the application knows."""
    if _structlog_is_configured():
        return True
    return _logger().isEnabledFor(_NUMBERS[_level(event)])


def emit(event: str, **fields: Any) -> None:
    """Log ``event`` with ``fields`` at the level that ``names.LEVELS`` gives it."""
    if not wanted(event):
        return
    getattr(_get_logger(), _level(event))(event, **fields)


def swallowed(where: str, error: Exception) -> None:
    """Say that telemetry failed at ``where`` and that the run went on; never raises."""
    # Where the application's logging fails too, nobody is left to tell.
    with suppress(Exception):
        # The class only: the message is somebody else's and may carry anything.
        emit(names.TELEMETRY_FAILED, where=where, error_type=type(error).__name__)


def add_trace_context(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor that adds ``trace_id`` and ``span_id`` (hex) of the current span.

    It is not installed by this package: put it among your own processors.

        structlog.configure(processors=[add_trace_context, structlog.processors.JSONRenderer()])

    Without a valid current span the event stays as it is; keys that are there already win.
    """
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event_dict.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event_dict.setdefault("span_id", trace.format_span_id(context.span_id))
    return event_dict


def _level(event: str) -> names.Level:
    return names.LEVELS.get(event, "debug")


@cache
def _logger() -> logging.Logger:
    logger = logging.getLogger(names.SCOPE)
    # Without it, warnings of an application without logging would go to stderr.
    logger.addHandler(logging.NullHandler())
    return logger


def _structlog_is_configured() -> bool:
    # Who has configured it has imported it. We import it for the first event that is logged: it
    # brings rich along where that is installed, and takes longer than all the rest of us.
    structlog = sys.modules.get("structlog")
    return structlog is not None and bool(structlog.is_configured())


def _get_logger() -> Any:
    import structlog

    if structlog.is_configured():
        return structlog.get_logger(names.SCOPE)
    return structlog.wrap_logger(
        _logger(),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )
