"""A conversation's content in telemetry: nothing, unless the environment asks for it.

``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is read when a turn ends. It says NO_CONTENT
(the default, and what anything unknown means), SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from opentelemetry.context import Context

from session_middleware.telemetry import names
from session_middleware.telemetry.messages import answer, as_json, messages_of, plain_text
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


@dataclass(frozen=True, eq=False, slots=True)
class Said:
    """What was said in a turn, as the memory was given it.

    Attributes:
        given: the new input, a text or a list of items; None where there is none to show.
        answer: the final output as text.
    """

    given: str | Sequence[Any] | None = None
    answer: str | None = None


def attributes_of(said: Said, *, plain: bool) -> dict[str, str]:
    """The messages of the GenAI conventions in JSON.

    Args:
        plain: add the plain texts that some tools show instead.
    """
    attributes: dict[str, str] = {}
    for messages, key, plain_key in (
        (
            None if said.given is None else messages_of(said.given),
            names.INPUT_MESSAGES,
            names.INPUT_VALUE,
        ),
        (
            None if said.answer is None else answer(said.answer),
            names.OUTPUT_MESSAGES,
            names.OUTPUT_VALUE,
        ),
    ):
        if not messages:
            continue
        attributes[key] = as_json(messages)
        text = plain_text(messages) if plain else None
        if text is not None:
            attributes[plain_key] = text
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
