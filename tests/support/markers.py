"""Words of conversations in tests, and the search for them in all that is emitted.

The words are those that the models and inputs of the suite use most. They may stand in the
attributes that content is asked for in, and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

MARKERS = (
    "I'm Alice",
    "Nice to meet you",
    "Your name is",
    "What's my name",
    "Golden Gate",
    "sunny in",
    "canary-4711",
    "transfer 100",
)

ASKED_FOR = frozenset(
    {
        "input.value",
        "output.value",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "exception.message",
    }
)


def said_in(emitted: object) -> list[str]:
    """The words of conversations in the text of an object."""
    text = str(emitted)
    return [marker for marker in MARKERS if marker in text]


def said_in_spans(spans: Iterable[Any]) -> list[str]:
    """Those in names, attributes and events of spans of this package, besides asked-for content."""
    found: list[str] = []
    for span in spans:
        if span.instrumentation_scope.name != "session_middleware":
            continue
        groups = [span.attributes or {}, *(event.attributes or {} for event in span.events)]
        shown = [{k: v for k, v in group.items() if k not in ASKED_FOR} for group in groups]
        found += said_in([span.name, span.status.description, *shown])
    return found


class Listener(logging.Handler):
    """Hears every record of this package, whatever its level, and keeps the words it finds."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found += said_in([record.getMessage(), vars(record)])
