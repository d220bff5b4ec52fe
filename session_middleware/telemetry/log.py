"""Log events: through the application's structlog, or else as records of the standard library.

Configures nothing and binds nothing at import time. An application that has configured structlog
gets the events through its own processors. In any other, they go to the standard library's logger
``session_middleware``, which is silent until the application gives it (or the root) a handler.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from opentelemetry import trace

from session_middleware.telemetry import names

Method = TypeVar("Method", bound=Callable[..., None])

_NUMBERS: dict[names.Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def wanted(event: str, level: names.Level | None = None) -> bool:
    """Whether logging ``event`` can have an effect; True where only the application knows."""
    if _structlog() is not None:
        return True
    return _logger().isEnabledFor(_NUMBERS[level or names.LEVELS.get(event, "debug")])


def emit(event: str, level: names.Level | None = None, **fields: Any) -> None:
    """Log ``event`` with ``fields`` and the ids of the current span.

    Args:
        level: instead of the one that ``names.LEVELS`` gives the event.
        fields: none may have the name of an attribute of ``logging.LogRecord``, because a
            record carries them as attributes of its own.
    """
    if not wanted(event, level):
        return
    level = level or level_of(event)
    add_trace_context(None, level, fields)
    structlog = _structlog()
    if structlog is not None:
        getattr(structlog.get_logger(names.SCOPE), level)(event, **fields)
        return
    # The text is a template that is the same for all events of a kind, so that tools can group by
    # it; a formatter that prints messages alone still shows every field.
    template = " ".join([event, *(f"{field}=%({field})r" for field in fields)])
    arguments = (fields,) if fields else ()
    extra = {"event": event, **fields}
    _logger().log(_NUMBERS[level], template, *arguments, extra=extra, stacklevel=2)


def swallowed(where: str, error: Exception) -> None:
    """Say that telemetry failed at ``where`` and that the run went on; never raises."""
    # Where the application's logging fails too, nobody is left to tell.
    with suppress(Exception):
        # The class only: the message is somebody else's and may carry anything.
        emit(names.TELEMETRY_FAILED, where=where, error_type=type(error).__name__)


def never_raises(method: Method) -> Method:
    """Let a method of telemetry swallow what a provider or a logger raises."""

    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            swallowed(method.__name__, error)

    return guarded  # type: ignore[return-value]  # the same signature, by construction


def add_trace_context(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor that adds ``trace_id`` and ``span_id`` (hex) of the current span.

    The events of this package have both. For those of your own, put it among your processors;
    this package installs none.

        structlog.configure(processors=[add_trace_context, structlog.processors.JSONRenderer()])

    Without a valid current span the event stays as it is; keys that are there already win.
    """
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event_dict.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event_dict.setdefault("span_id", trace.format_span_id(context.span_id))
    return event_dict


def level_of(event: str) -> names.Level:
    """The level of an event where nothing says otherwise."""
    return names.LEVELS.get(event, "debug")


@functools.cache
def _logger() -> logging.Logger:
    logger = logging.getLogger(names.SCOPE)
    # Without it, warnings of an application without logging would go to stderr.
    logger.addHandler(logging.NullHandler())
    return logger


def _structlog() -> Any:
    """The module, where the application has configured it; it has imported it then."""
    structlog = sys.modules.get("structlog")
    return structlog if structlog is not None and structlog.is_configured() else None
