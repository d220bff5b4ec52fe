"""The tokens of a turn: each counted once, wherever the turn was parked, resumed or failed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from agents.testing import ModelStep, assistant_message, function_call
from agents.usage import Usage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import scripted_agent
from tests.support.approvals import approved, live, serialised
from tests.support.sessions import METHODS, carried_out, counted

PREFIX = "session_middleware.usage."


def step(output: Any, scale: int) -> ModelStep:
    """A response that cost tokens of every kind."""
    details = InputTokensDetails(cached_tokens=4 * scale, cache_write_tokens=0)
    reasoning = OutputTokensDetails(reasoning_tokens=2 * scale)
    usage = Usage(1, 10 * scale, details, 5 * scale, reasoning, 15 * scale)
    return ModelStep(output=[output], usage=usage)


def tokens(scale: int, requests: int = 1) -> dict[str, int]:
    """What responses that cost so much in all are told to have cost."""
    return {
        "requests": requests,
        "input_tokens": 10 * scale,
        "cached_input_tokens": 4 * scale,
        "output_tokens": 5 * scale,
        "reasoning_output_tokens": 2 * scale,
        "total_tokens": 15 * scale,
    }


def told(span: Any) -> dict[str, int]:
    return {
        key.removeprefix(PREFIX): value
        for key, value in span.attributes.items()
        if key.startswith(PREFIX)
    }


def roots(otel: Any) -> list[Any]:
    found = [span for span in otel.spans if span.name.startswith("session_turn")]
    return sorted(found, key=lambda span: span.start_time)


@pytest.fixture
def decoration(otel: Any) -> dict[str, Any]:
    return {"telemetry": Telemetry(otel.tracer_provider, otel.meter_provider)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [live, serialised])
async def test_a_resumed_turn_counts_each_half_once(
    each_memory: Any, method: str, kept: Any, otel: Any, decoration: dict[str, Any]
) -> None:
    """A root has what its part spent; the record has the whole."""
    agent = scripted_agent(
        step(function_call("pay", {}, call_id="c"), 1),
        step(assistant_message("paid"), 10),
        tools=[counted("pay", [], needs_approval=True)],
    )
    parked = await carried_out(method, agent, "Pay", each_memory, decoration=decoration)
    (record,) = await each_memory.turns("s")
    assert record.usage == tokens(1)
    state = await approved(parked, kept, agent)
    await carried_out(method, agent, state, each_memory, decoration=decoration)
    (record,) = await each_memory.turns("s")
    assert record.usage == tokens(11, requests=2)
    assert [told(root) for root in roots(otel)] == [tokens(1), tokens(10)]
    chats = [span for span in otel.spans if span.name.startswith("chat")]
    cached = [span.attributes["gen_ai.usage.cache_read.input_tokens"] for span in chats]
    reasoning = [span.attributes["gen_ai.usage.reasoning.output_tokens"] for span in chats]
    assert (cached, reasoning) == ([4, 40], [2, 20])


@pytest.mark.parametrize("method", METHODS)
async def test_a_failed_turn_has_spent_what_it_spent(
    each_memory: Any, method: str, otel: Any, decoration: dict[str, Any]
) -> None:
    """The provider fails at the second call: the first was paid for."""
    agent = scripted_agent(
        step(function_call("look", {}, call_id="c"), 1),
        ValueError("the model is down"),
        tools=[counted("look", [])],
    )
    with pytest.raises(Exception, match="the model is down"):
        await carried_out(method, agent, "Look", each_memory, decoration=decoration)
    (record,) = await each_memory.turns("s")
    assert (record.state, record.usage) == ("failed", tokens(1))
    assert [told(root) for root in roots(otel)] == [tokens(1)]


@pytest.mark.parametrize(
    ("library", "wanted"),
    [
        ("opentelemetry.instrumentation.genai.openai_agents", True),
        ("opentelemetry.instrumentation.genai.openai", False),
        ("openinference.instrumentation.openai_agents", False),
    ],
)
async def test_a_model_call_has_one_span_with_its_tokens(
    each_memory: Any,
    otel: Any,
    decoration: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    wanted: bool,
) -> None:
    """Ours, unless a library is in use that traces model calls; not every library does."""
    monkeypatch.setitem(sys.modules, library, ModuleType(library))
    agent = scripted_agent(step(assistant_message("hello"), 1))
    await carried_out("run", agent, "Hi", each_memory, decoration=decoration)
    chats = [span for span in otel.spans if span.name.startswith("chat")]
    assert len(chats) == (1 if wanted else 0)
