"""A span processor that marks other libraries' spans with the session; needs opentelemetry-sdk.

Imported only by those who ask for ``SessionSpanProcessor``, so that the package itself works with
opentelemetry-api alone.
"""

from __future__ import annotations

from session_middleware import _current
from session_middleware.errors import MissingExtra
from session_middleware.telemetry import names

try:
    from opentelemetry.context import Context, get_value
    from opentelemetry.sdk.trace import Span, SpanProcessor
except ImportError as error:
    raise MissingExtra(
        "SessionSpanProcessor needs the OpenTelemetry SDK: "
        f"pip install '{names.DISTRIBUTION}[otel]'"
    ) from error


class SessionSpanProcessor(SpanProcessor):
    """Puts ``session.id`` and ``gen_ai.conversation.id`` on every span started inside a turn.

        provider.add_span_processor(SessionSpanProcessor())

    The spans of HTTP clients, databases and model providers then belong to the session as ours
    do. A key that a span has already is left alone. A task that was started inside a turn and
    outlives it is in no session: its spans are not marked.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Mark the span, if the context it starts in carries a session."""
        session_id = get_value(names.SESSION_ID, parent_context)
        if not isinstance(session_id, str) or _current.outlives_turn():
            return
        present = span.attributes or {}
        for key in (names.SESSION_ID, names.CONVERSATION_ID):
            if key not in present:
                span.set_attribute(key, session_id)
