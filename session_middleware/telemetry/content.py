"""A conversation's content in telemetry: nothing, unless the environment asks for it.

``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is read when a turn ends. It says NO_CONTENT
(the default, and what anything unknown means), SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT.
"""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

from opentelemetry.context import Context

from session_middleware.telemetry import names
from session_middleware.telemetry.metrics import package_version


class Capture(NamedTuple):
    """Where content may go."""

    span: bool
    event: bool


_MODES = {
    "SPAN_ONLY": Capture(span=True, event=False),
    "EVENT_ONLY": Capture(span=False, event=True),
    "SPAN_AND_EVENT": Capture(span=True, event=True),
}


def requested() -> Capture:
    """Where the environment asks for content, now."""
    mode = os.environ.get(names.CAPTURE_CONTENT_VARIABLE, "").strip().upper()
    return _MODES.get(mode, Capture(span=False, event=False))


def message_attributes(input_text: str | None, output_text: str | None) -> dict[str, str]:
    """The texts as the messages of the GenAI conventions, in JSON."""
    attributes = {}
    if input_text is not None:
        attributes[names.INPUT_MESSAGES] = _messages("user", input_text)
    if output_text is not None:
        attributes[names.OUTPUT_MESSAGES] = _messages("assistant", output_text)
    return attributes


def span_attributes(input_text: str | None, output_text: str | None) -> dict[str, str]:
    """What the root span gets: the messages, and the plain texts some tools show instead."""
    attributes = message_attributes(input_text, output_text)
    if input_text is not None:
        attributes[names.INPUT_VALUE] = input_text
    if output_text is not None:
        attributes[names.OUTPUT_VALUE] = output_text
    return attributes


def emit_event(context: Context, attributes: dict[str, str]) -> None:
    """Emit the content as an OpenTelemetry event (a log record), through the global provider."""
    # The logs interface still has an underscore; it is touched by those who ask for it only.
    from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

    now = time.time_ns()
    get_logger(names.SCOPE, package_version()).emit(
        LogRecord(
            timestamp=now,
            observed_timestamp=now,
            context=context,
            severity_number=SeverityNumber.INFO,
            event_name=names.CONTENT_EVENT,
            attributes=attributes,
        )
    )


def _messages(role: str, text: str) -> str:
    message: dict[str, object] = {"role": role, "parts": [{"type": "text", "content": text}]}
    if role == "assistant":
        message["finish_reason"] = "stop"
    return json.dumps([message], ensure_ascii=False)
