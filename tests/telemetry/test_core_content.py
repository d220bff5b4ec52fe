"""Content of real turns: in nothing that is emitted, unless the environment asks for it."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from agents import (
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    Runner,
    SQLiteSession,
    function_tool,
    input_guardrail,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from session_middleware import (
    IdempotencyConflict,
    InvalidItem,
    SessionBusy,
    installed,
    session_scope,
)
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.sessions import METHODS, carried_out, run_by

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CANARY = "canary-4711"

both_ways = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def telemetry(otel: Any) -> Telemetry:
    """The option that leads to ``otel``."""
    return Telemetry(otel.tracer_provider, otel.meter_provider)


@pytest.fixture
def content_events(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryLogRecordExporter]:
    """The OpenTelemetry events of this test."""
    kept = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(kept))
    monkeypatch.setattr("opentelemetry._logs.get_logger", provider.get_logger)
    yield kept
    provider.shutdown()


class Emitted:
    """Everything that this package emits, as text."""

    def __init__(self, otel: Any, logs: pytest.LogCaptureFixture, events: Any) -> None:
        self._otel, self._logs, self._events = otel, logs, events

    def __str__(self) -> str:
        spans = [span.to_json() for span in self._otel.spans]
        records = [
            f"{record.getMessage()} {vars(record)} {record.exc_text}"
            for record in self._logs.records
            if not record.name.startswith(("openai", "httpx", "httpcore"))
        ]
        told = [entry.to_json() for entry in self._events.get_finished_logs()]
        return "\n".join([*spans, *records, *told, str(self._otel.metrics)])


@pytest.fixture
def emitted(otel: Any, caplog: pytest.LogCaptureFixture, content_events: Any) -> Emitted:
    """Everything that is emitted in this test, logs at debug and below included."""
    caplog.set_level(logging.NOTSET)
    caplog.set_level(logging.DEBUG, "session_middleware")
    return Emitted(otel, caplog, content_events)


@function_tool
def look_up(name: str) -> str:
    """Look something up."""
    return f"{CANARY} was found"


def talking_agent(**options: Any) -> Any:
    """An agent that says the canary in a call, and as its answer; its tool says it too."""
    return scripted_agent(
        call("look_up", {"name": CANARY}), assistant(f"{CANARY}!"), tools=[look_up], **options
    )


# --- without the opt-in --------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("given", ["text", "items"])
async def test_a_run_emits_nothing_of_what_was_said(
    each_memory: Any, method: str, telemetry: Telemetry, emitted: Emitted, given: str
) -> None:
    """Neither input, arguments, outputs nor answers; the second turn has them in its history."""
    said: Any = f"Hi {CANARY}"
    if given == "items":
        said = [{"role": "user", "content": said}]
    for _ in range(2):
        options: dict[str, Any] = {"decoration": {"telemetry": telemetry}}
        await carried_out(method, talking_agent(), said, each_memory, **options)
    assert CANARY in str(await each_memory.load_session("s"))
    assert "session_turn" in str(emitted)
    assert "items_saved" in str(emitted)
    assert CANARY not in str(emitted)


@both_ways
async def test_errors_emit_nothing_of_what_was_said(
    each_memory: Any, method: str, telemetry: Telemetry, emitted: Emitted
) -> None:
    """Their class and where they came from is told; their text may quote anybody."""
    agent = scripted_agent(ValueError(f"cannot parse {CANARY}"))
    with pytest.raises(ValueError, match=CANARY):
        await carried_out(
            method, agent, f"Hi {CANARY}", each_memory, decoration={"telemetry": telemetry}
        )
    assert "ValueError" in str(emitted)
    assert CANARY not in str(emitted)


async def test_refusals_emit_nothing_of_what_was_said(
    each_memory: Any, telemetry: Telemetry, emitted: Emitted
) -> None:
    """Nor do our own errors, whose texts are told: they hold no content."""
    decoration: dict[str, Any] = {"telemetry": telemetry}

    async def say(text: Any, agent: Any = None, **options: Any) -> Any:
        made = agent or talking_agent()
        return await carried_out("run", made, text, each_memory, **options)

    failing = scripted_agent(RuntimeError("no"))
    with pytest.raises(RuntimeError):
        await say(f"one {CANARY}", failing, idempotency_key="k", decoration=decoration)
    with pytest.raises(IdempotencyConflict):
        await say(f"two {CANARY}", idempotency_key="k", decoration=decoration)

    def broken(item: Any) -> Any:
        return f"no item {CANARY}"

    with pytest.raises(InvalidItem):
        await say(f"three {CANARY}", decoration={**decoration, "redact": broken})
    async with session_scope("s", memory=each_memory):
        with pytest.raises(SessionBusy):
            await acquire_in_another_turn(each_memory, decoration)
    assert "IdempotencyConflict" in str(emitted)
    assert "InvalidItem" in str(emitted)
    assert CANARY not in str(emitted)


async def acquire_in_another_turn(memory: Any, decoration: dict[str, Any]) -> None:
    """Try to acquire the session from a context that is not part of its turn."""
    options = {"decoration": {**decoration, "on_busy": "reject"}}
    running = carried_out("run", talking_agent(), f"Hi {CANARY}", memory, **options)
    await asyncio.create_task(running, context=contextvars.Context())


async def test_a_guardrail_emits_nothing_of_what_was_said(
    each_memory: Any, telemetry: Telemetry, emitted: Emitted
) -> None:
    """A tripwire's own information stays where it is."""

    @input_guardrail
    async def refuse(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=CANARY, tripwire_triggered=True)

    agent = talking_agent(input_guardrails=[refuse])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await carried_out("run", agent, CANARY, each_memory, decoration={"telemetry": telemetry})
    assert "InputGuardrailTripwireTriggered" in str(emitted)
    assert CANARY not in str(emitted)


async def test_a_row_that_cannot_be_read_is_not_shown(
    make_memory: Any, telemetry: Telemetry, emitted: Emitted, tmp_path: Any
) -> None:
    """What is left out of a history as corrupt is counted, and not quoted."""
    memory = make_memory("torn.db")
    options: dict[str, Any] = {"decoration": {"telemetry": telemetry}}
    await carried_out("run", talking_agent(), f"Hi {CANARY}", memory, **options)
    with sqlite3.connect(tmp_path / "torn.db") as database:
        (table,) = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%item TEXT%'"
        ).fetchone()
        database.execute(f"UPDATE {table} SET item = '{{' || '{CANARY}' WHERE position = 0")
    database.close()
    await carried_out("run", talking_agent(), f"Hi {CANARY}", memory, **options)
    assert "corrupt_entry" in str(emitted)
    assert CANARY not in str(emitted)


@both_ways
async def test_a_watched_run_emits_nothing_of_what_was_said(
    method: str, telemetry: Telemetry, emitted: Emitted
) -> None:
    """Nor does a run with a session of another kind."""
    session = SQLiteSession("theirs")
    with installed(memory=None, observe=True, telemetry=telemetry):
        for _ in range(2):
            await run_by(method, talking_agent(), f"Hi {CANARY}", session=session)
    assert CANARY in str(await session.get_items())
    session.close()
    assert "session_turn" in str(emitted)
    assert CANARY not in str(emitted)


# --- with it -------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("mode", ["SPAN_ONLY", "SPAN_AND_EVENT", "EVENT_ONLY"])
async def test_the_turns_texts_go_where_they_were_asked_for(
    each_memory: Any,
    method: str,
    otel: Any,
    telemetry: Telemetry,
    content_events: Any,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    """The new input and the final output, on the root span, in an event, or in both."""
    monkeypatch.setenv(VARIABLE, mode)
    options: dict[str, Any] = {"decoration": {"telemetry": telemetry}}
    await carried_out(method, talking_agent(), "Who is it?", each_memory, **options)
    (root,) = [span for span in otel.spans if span.parent is None]
    on_span = {key: root.attributes.get(key) for key in ("input.value", "output.value")}
    spoken = {"input.value": "Who is it?", "output.value": f"{CANARY}!"}
    assert on_span == (spoken if "SPAN" in mode else dict.fromkeys(spoken))
    carriers = [root.attributes] if "SPAN" in mode else []
    if "EVENT" in mode:
        (event,) = content_events.get_finished_logs()
        assert event.log_record.trace_id == root.context.trace_id
        carriers.append(event.log_record.attributes)
    for attributes in carriers:
        for key, text in (
            ("gen_ai.input.messages", "Who is it?"),
            ("gen_ai.output.messages", f"{CANARY}!"),
        ):
            (message,) = json.loads(attributes[key])
            assert message["parts"] == [{"type": "text", "content": text}]
    others = "".join(span.to_json() for span in otel.spans if span is not root)
    assert CANARY not in others


async def test_a_watched_runs_texts_go_there_too(
    otel: Any, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a session of another kind has them on its root as well."""
    monkeypatch.setenv(VARIABLE, "SPAN_ONLY")
    session = SQLiteSession("theirs")
    with installed(memory=None, observe=True, telemetry=telemetry):
        await Runner.run(talking_agent(), "Who is it?", session=session)
    session.close()
    attributes = otel.span("session_turn Agent workflow").attributes
    assert attributes["input.value"] == "Who is it?"
    assert attributes["output.value"] == f"{CANARY}!"


async def test_a_turn_that_failed_has_its_input_and_the_errors_text(
    each_memory: Any, otel: Any, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is is told: no output, and what the exception says."""
    monkeypatch.setenv(VARIABLE, "SPAN_ONLY")
    agent = scripted_agent(ValueError("no such thing"))
    with pytest.raises(ValueError, match="no such thing"):
        await carried_out("run", agent, "Hi", each_memory, decoration={"telemetry": telemetry})
    (root,) = [span for span in otel.spans if span.parent is None]
    assert root.attributes["input.value"] == "Hi"
    assert "output.value" not in root.attributes
    (exception,) = [event for event in root.events if event.name == "exception"]
    assert exception.attributes["exception.message"] == "no such thing"


CARD = "4111 1111 1111 1111"


def without_cards(item: dict[str, Any]) -> dict[str, Any]:
    """What may be stored of an item."""
    return json.loads(json.dumps(item).replace(CARD, "[card]"))  # type: ignore[no-any-return]


@both_ways
@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_redacted_is_redacted_there_too(
    each_memory: Any,
    method: str,
    fails: bool,
    otel: Any,
    telemetry: Telemetry,
    emitted: Emitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input, output and the texts of foreign errors: only what may be stored goes out."""
    monkeypatch.setenv(VARIABLE, "SPAN_AND_EVENT")
    last = ValueError(f"refused {CARD}") if fails else assistant(f"Charged {CARD}")
    decoration = {"telemetry": telemetry, "redact": without_cards}
    agent = scripted_agent(last)
    try:
        await carried_out(method, agent, f"Charge {CARD}", each_memory, decoration=decoration)
    except ValueError:
        assert fails
    root = otel.span("session_turn Agent workflow")
    assert root.attributes["input.value"] == "Charge [card]"
    assert root.attributes.get("output.value") == (None if fails else "Charged [card]")
    assert CARD not in str(emitted)


SMALL = "data:image/png;base64," + "QUJD" * 100_000  # three bytes each
INPUT = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this? " + "x" * 10_000},
            {"type": "input_image", "image_url": SMALL, "detail": "auto"},
            {"type": "input_image", "image_url": "https://example.test/a.png", "detail": "auto"},
            {"type": "input_file", "file_data": "data:application/pdf;base64,QUJDRA=="},
            {"type": "input_file", "file_id": "file-1"},
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        ],
    }
]


async def test_lists_and_images_are_cut_and_told_by_type_and_size(
    each_memory: Any, otel: Any, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts up to 4,000 characters, the newest 20 messages, and no byte of an image."""
    monkeypatch.setenv(VARIABLE, "SPAN_ONLY")
    decoration = {"telemetry": telemetry}
    given = [*({"role": "user", "content": f"earlier {n}"} for n in range(30)), *INPUT]
    await carried_out("run", talking_agent(), given, each_memory, decoration=decoration)
    attributes = otel.span("session_turn Agent workflow").attributes
    messages = json.loads(attributes["gen_ai.input.messages"])
    assert len(messages) == 20
    text, image, linked, file, uploaded, sound = messages[-1]["parts"]
    whole = "What is this? " + "x" * 10_000
    assert text == {"type": "text", "content": whole[:4_000] + "... (6014 characters more)"}
    assert image == {
        "type": "blob",
        "modality": "image",
        "mime_type": "image/png",
        "size": 300_000,
    }
    assert linked == {"type": "uri", "modality": "image", "uri": "https://example.test/a.png"}
    assert (file["mime_type"], file["size"]) == ("application/pdf", 4)
    assert uploaded == {"type": "file", "modality": "document", "file_id": "file-1"}
    assert (sound["mime_type"], sound["size"]) == ("wav", 3)
    assert attributes["input.value"] == text["content"]
    assert "QUJDQUJD" not in "".join(span.to_json() for span in otel.spans)
