"""What a turn's record and its trace have in common, and how a digest leads to a history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Runner
from opentelemetry.trace import format_trace_id

from session_middleware import last_turns, session_scope
from session_middleware.history import size_and_digest
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.sessions import METHODS, carried_out, tool

DIGEST = "session_middleware.history.digest"

both_ways = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def telemetry(otel: Any) -> Telemetry:
    """The option that leads to ``otel``."""
    return Telemetry(otel.tracer_provider, otel.meter_provider)


def roots(otel: Any) -> list[Any]:
    """The roots of turns, in the order in which they began."""
    found = [span for span in otel.spans if span.name.startswith("session_turn")]
    return sorted(found, key=lambda span: span.start_time)


async def test_what_a_window_of_the_users_leaves_out_is_told(
    each_memory: Any, otel: Any, telemetry: Telemetry
) -> None:
    """How many of the items that were read the model did not get."""
    decoration = {"telemetry": telemetry, "window": lambda turns: turns[-1:]}
    for text in "ABC":
        await carried_out("run", local_agent(), text, each_memory, decoration=decoration)
    name = "session_middleware.history.trimmed_count"
    assert [root.attributes.get(name) for root in roots(otel)] == [None, None, 2]


async def test_a_history_that_came_with_the_session_is_no_operation_of_its_own(
    memory: Any, otel: Any, telemetry: Telemetry
) -> None:
    """It has a span, as every load, and no duration that anybody would want to know."""
    await carried_out("run", local_agent(), "Hi", memory, decoration={"telemetry": telemetry})
    measured = otel.metrics["session_middleware.memory.operation.duration"]
    names = {point.attributes["gen_ai.operation.name"] for point in measured}
    assert names == {"acquire_session", "end_turn"}
    assert "search_memory" in {span.name for span in otel.spans}


async def test_calls_whose_end_nobody_saw_are_counted(
    each_memory: Any, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]]
) -> None:
    """By the turn that makes the request again."""
    began = asyncio.Event()

    async def pay() -> str:
        began.set()
        return str(await asyncio.Event().wait())

    async def request(step: Any) -> Any:
        agent = scripted_agent(step, tools=[tool("pay", pay)])
        given: dict[str, Any] = {"idempotency_key": "k", "decoration": {"telemetry": telemetry}}
        return await carried_out("run", agent, "Pay", each_memory, **given)

    first = asyncio.create_task(request(call("pay")))
    await began.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await request(assistant("done"))
    (point,) = otel.metrics["session_middleware.calls.unknown"]
    assert point.value == 1
    assert [told["event"] for told in events].count("calls_unknown") == 1


@both_ways
async def test_a_record_leads_to_its_trace_and_back(
    each_memory: Any, method: str, otel: Any, telemetry: Telemetry, sdk_traces: Any
) -> None:
    """Turn number, OpenTelemetry trace, SDK trace, digest and usage are the same in both."""
    decoration = {"telemetry": telemetry}
    for text in ("Hi, I'm Alice.", "What's my name?"):
        await carried_out(method, local_agent(), text, each_memory, decoration=decoration)
    records = list(reversed(await each_memory.turns("s")))
    assert len(records) == 2
    for record, root, started in zip(records, roots(otel), sdk_traces.started, strict=True):
        assert root.attributes["session_middleware.turn"] == record.turn
        assert root.attributes["session_middleware.outcome"] == record.state
        assert root.attributes["session_middleware.new_item.count"] == record.item_count
        assert root.attributes[DIGEST] == record.history_digest
        assert format_trace_id(root.context.trace_id) == record.otel_trace_id
        assert root.attributes["session_middleware.sdk_trace_id"] == started["id"]
        assert record.sdk_trace_ids == (started["id"],)
        assert started["metadata"]["otel_trace_id"] == record.otel_trace_id
        for name, count in (record.usage or {}).items():
            assert root.attributes[f"session_middleware.usage.{name}"] == count


async def test_a_digest_is_that_of_the_turns_before(
    each_memory: Any, otel: Any, telemetry: Telemetry
) -> None:
    """From what the memory has, the history that a turn's model saw can be told again."""
    texts = ("Hi, I'm Älice 🙂.", "What's my name?", "What's my name?")
    for text in texts:
        decoration = {"telemetry": telemetry}
        await carried_out("run", local_agent(), text, each_memory, decoration=decoration)
    stored = await each_memory.load_session("s")
    for record, root in zip(reversed(await each_memory.turns("s")), roots(otel), strict=True):
        seen = stored[: 2 * (record.turn - 1)]
        size, digest = size_and_digest(seen)
        assert record.history_digest == digest
        assert root.attributes["session_middleware.history.item_count"] == len(seen)
        assert root.attributes["session_middleware.history.size_bytes"] == size
    assert len({record.history_digest for record in await each_memory.turns("s")}) == 3


async def test_a_digest_is_of_what_a_window_left(
    each_memory: Any, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]]
) -> None:
    """What the model did not see is not in it; that something was left out is told."""
    decoration = {"telemetry": telemetry, "window": last_turns(1)}
    for text in ("Hi, I'm Alice.", "How are you?", "What's my name?"):
        await carried_out("run", local_agent(), text, each_memory, decoration=decoration)
    stored = await each_memory.load_session("s")
    newest, *_ = await each_memory.turns("s")
    assert newest.history_digest == size_and_digest(stored[2:4])[1]
    assert roots(otel)[-1].attributes[DIGEST] == newest.history_digest
    assert [event["turn"] for event in events if event["event"] == "history_trimmed"] == [3]


async def test_a_digest_is_of_what_a_repair_left(
    each_memory: Any, otel: Any, telemetry: Telemetry, events: list[dict[str, Any]]
) -> None:
    """An item that the model is not given is not in it; what is stored stays as it is."""
    orphan = {"type": "function_call_output", "call_id": "call_0", "output": "orphan"}
    await each_memory.append_to_session("s", [{"role": "user", "content": "Hi"}, orphan])
    decoration = {"telemetry": telemetry}
    await carried_out("run", local_agent(), "Hi", each_memory, decoration=decoration)
    newest, *_ = await each_memory.turns("s")
    stored = await each_memory.load_session("s")
    assert orphan in stored
    assert newest.history_digest == size_and_digest(stored[:1])[1]
    (root,) = roots(otel)
    assert root.attributes["session_middleware.history.item_count"] == 1
    assert "history_repaired" in [event["event"] for event in events]


async def test_without_a_trace_there_is_no_digest(each_memory: Any) -> None:
    """Nobody pays for a digest that nothing shows."""
    await carried_out("run", local_agent(), "Hi", each_memory)
    (record,) = await each_memory.turns("s")
    assert (record.history_digest, record.otel_trace_id) == (None, None)


async def test_several_runs_of_a_turn(each_memory: Any, otel: Any, telemetry: Telemetry) -> None:
    """The digest is of the last history that the turn loaded, in the record as in the trace."""
    async with session_scope("s", memory=each_memory, telemetry=telemetry):
        for text in ("Hi, I'm Alice.", "What's my name?"):
            await Runner.run(local_agent(), text)
    (record,) = await each_memory.turns("s")
    stored = await each_memory.load_session("s")
    assert record.history_digest == size_and_digest(stored[:2])[1]
    assert roots(otel)[0].attributes[DIGEST] == record.history_digest
