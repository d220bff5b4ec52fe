"""How spans of this package are made, fail and end; OpenTelemetry's API and nothing else.

Nothing here knows of a turn's course. What is asked of a provider may raise; the callers see to
that.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import opentelemetry.context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from session_middleware.telemetry import names
from session_middleware.telemetry.metrics import package_version
from session_middleware.telemetry.providers import PerProvider

# Instrumentations set two keys: a plain one, and one the API creates anew in each process. Only
# the first is agreed upon; the second is what the SDK's exporters and some libraries set alone.
_SUPPRESS = "suppress_instrumentation"
_SUPPRESS_OF_PROCESS = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", _SUPPRESS)

_tracers: PerProvider[Tracer] = PerProvider()


def suppressed(context: Context) -> bool:
    """Whether this context asks instrumentations to emit nothing."""
    return bool(context.get(_SUPPRESS) or context.get(_SUPPRESS_OF_PROCESS))


def tracer(provider: TracerProvider | None) -> Tracer:
    """The tracer of this provider, or of the global one as it is now."""
    provider = trace.get_tracer_provider() if provider is None else provider
    known = _tracers.get(provider)
    if known is None:
        known = provider.get_tracer(names.SCOPE, package_version())
        if not isinstance(provider, trace.ProxyTracerProvider):
            # A proxy's tracer turns into that of the first real provider, for good.
            _tracers.keep(provider, known)
    return known


def provided(provider: TracerProvider | None) -> bool:
    """Whether the application has given a tracer provider, here or as the global one."""
    provider = trace.get_tracer_provider() if provider is None else provider
    return not type(provider).__module__.startswith(trace.__name__)


def set_attributes(span: Span, attributes: Mapping[str, AttributeValue | None]) -> None:
    """Set those attributes that have a value, if the span records."""
    if span.is_recording():
        span.set_attributes({key: value for key, value in attributes.items() if value is not None})


def fail(span: Span, error_type: str) -> None:
    """Mark the span as failed."""
    span.set_attribute(names.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, error_type))


def record(span: Span, error: BaseException, message: str | None) -> None:
    """Record the exception on the span, with the places it came from.

    A formatted traceback quotes source lines and messages, and both may hold what a user said;
    so the places are given without them, and the message is the caller's decision.
    """
    attributes = {
        names.EXCEPTION_TYPE: _qualified_name(type(error)),
        names.EXCEPTION_STACKTRACE: _places(error),
    }
    if message is not None:
        attributes[names.EXCEPTION_MESSAGE] = message
    span.add_event(names.EXCEPTION_EVENT, attributes)


def error_type(error: BaseException | None) -> str:
    """The class name, or the conventions' word where there is no exception."""
    return names.OTHER_ERROR if error is None else type(error).__name__


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    return chain


def _places(error: BaseException) -> str:
    lines: list[str] = []
    for cause in reversed(causes(error)):
        lines.append("Traceback (most recent call last):")
        for frame, line in traceback.walk_tb(cause.__traceback__):
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
        lines.append(_qualified_name(type(cause)))
    return "\n".join(lines)


def _qualified_name(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
