"""The span of a model call, with its tokens; only where nobody else traces model calls.

A tool adds up the tokens of all spans of a trace. Where another library traces each model call,
a span of ours would have them counted twice.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from opentelemetry.util.types import AttributeValue

from session_middleware.telemetry import names

_TRACE_MODEL_CALLS: Final = (
    "openinference.instrumentation.openai",
    "openinference.instrumentation.openai_agents",
    "opentelemetry.instrumentation.genai.openai",
    "opentelemetry.instrumentation.openai",
    "opentelemetry.instrumentation.openai_agents",
    "opentelemetry.instrumentation.openai_agents_v2",
    "opentelemetry.instrumentation.openai_v2",
    "logfire",
)
"""Libraries that put a model call's tokens on its span; a program that uses one imports it.

``opentelemetry.instrumentation.genai.openai_agents`` is none: it leaves model calls to that of
``openai``.
"""


def wants_spans() -> bool:
    """Whether no library that traces model calls is in use, as far as imports tell."""
    return not any(name in sys.modules for name in _TRACE_MODEL_CALLS)


def span_of(model: str | None, spent: Mapping[str, int]) -> tuple[str, dict[str, AttributeValue]]:
    """Name and attributes of the span, by the GenAI conventions and by OpenInference."""
    attributes: dict[str, AttributeValue] = {
        names.OPERATION_NAME: names.CHAT,
        names.OPENINFERENCE_SPAN_KIND: names.OPENINFERENCE_LLM,
    }
    for name, keys in names.USAGE_KEYS.items():
        if name in spent:
            attributes.update(dict.fromkeys(keys, spent[name]))
    if model is None:
        return names.CHAT, attributes
    attributes.update(dict.fromkeys((names.REQUEST_MODEL, names.OPENINFERENCE_MODEL), model))
    return f"{names.CHAT} {model}", attributes
