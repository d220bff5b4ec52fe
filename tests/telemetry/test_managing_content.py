"""Managing conversations: no words of them in anything that is emitted, raised or shown."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from agents import Runner, SQLiteSession

from session_middleware import (
    MemoryUnavailable,
    SessionMemoryError,
    import_sdk_sessions,
    with_session_memory,
)
from session_middleware.stores.records import KeptState, RunItems, TurnEnd
from session_middleware.telemetry import Telemetry
from tests.support.approvals import paying

CANARY = "canary-4711"


def lines_with(change: Callable[[dict[str, Any]], None]) -> Callable[[list[str]], list[str]]:
    """An export in which every line is changed."""

    def changed(lines: list[str]) -> list[str]:
        read = [json.loads(line) for line in lines]
        for line in read:
            change(line)
        return [json.dumps(line) + "\n" for line in read]

    return changed


FAULTY_EXPORTS: dict[str, Callable[[list[str]], list[str]]] = {
    "cut": lambda lines: [line[: len(line) // 2] for line in lines],
    "not json": lambda lines: [*lines[:2], CANARY, *lines[2:]],
    "without an end": lambda lines: lines[:-1],
    "other words": lambda lines: [line.replace(CANARY, CANARY + "!") for line in lines],
    "another kind": lines_with(lambda line: line.update(kind=CANARY)),
    "unknown fields": lines_with(lambda line: line.update({CANARY: CANARY})),
    "texts for numbers": lines_with(
        lambda line: line.update(
            {key: CANARY for key, value in line.items() if isinstance(value, int)}
        )
    ),
    "texts for lists": lines_with(
        lambda line: line.update(
            {key: CANARY for key, value in line.items() if isinstance(value, list)}
        )
    ),
}


@pytest.fixture
async def talked(each_memory: Any, otel: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """A memory of a conversation full of the word, in all its parts, with a run that waits."""
    caplog.set_level(logging.DEBUG)
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    run = with_session_memory(Runner.run, memory=each_memory, telemetry=telemetry)
    await each_memory.append_to_session("s", [{"role": "user", "content": CANARY}])
    await each_memory.set_title("s", CANARY)
    await each_memory.set_metadata("s", {CANARY: CANARY})
    await run(paying([]), f"Pay {CANARY}", session_id="s")
    return each_memory


def silent(otel: Any, caplog: pytest.LogCaptureFixture, *others: object) -> None:
    """The word is in no span, metric, record of a log, error or repr."""
    spans = [span.to_json() for span in otel.spans]
    records = [
        f"{record.getMessage()} {vars(record)}"
        for record in caplog.records
        if record.name.startswith("session_middleware")
    ]
    shown = [f"{other!r} {other}" for other in others]
    assert [text for text in [*spans, *records, *shown, str(otel.metrics)] if CANARY in text] == []


async def refusals(*calls: Awaitable[Any]) -> list[BaseException]:
    """The errors of calls that must be refused, with what caused them."""
    errors: list[BaseException] = []
    for called in calls:
        with pytest.raises(SessionMemoryError) as raised:
            await called
        error: BaseException | None = raised.value
        while error is not None:
            errors.append(error)
            error = error.__cause__
    return errors


async def test_no_method_shows_a_word(talked: Any, otel: Any, caplog: Any) -> None:
    """What they return says nothing by its repr, nor do the errors of those that refuse."""
    (waiting,) = await talked.pending()
    call_id = waiting.calls[0].id
    told: list[object] = [waiting, *await talked.sessions(), await talked.session_info("s")]
    await talked.decide("s", waiting.turn, call_id, False, f"No, {CANARY}")
    told += await talked.pending()
    told += await refusals(
        talked.decide("s", waiting.turn, call_id, False, CANARY),
        talked.decide("s", waiting.turn, "other", True),
        talked.set_metadata("s", {"a": {CANARY}}),
        talked.set_title("s", CANARY * 1000),
        talked.set_title("s", CANARY + "\0"),
        talked.fork("s", "s"),
        talked.history_at("s", 1, 7),
        talked.append_to_session("s", [{"role": "user", "content": {CANARY}}]),
    )
    told.append(await talked.fork("s", "copy"))
    told += [copy async for copy in talked.copies("s")]
    told += await talked.undo("s", 2)
    await talked.delete("s", "copy")
    silent(otel, caplog, *told)


async def test_a_state_that_is_kept_shows_no_word(talked: Any, otel: Any, caplog: Any) -> None:
    """Neither the end of a turn that brings it, nor the run that waits, nor a resume of it."""
    (waiting,) = await talked.pending()
    assert CANARY in waiting.state
    end = TurnEnd(
        "awaiting_approval",
        datetime.now(UTC),
        park=("p",),
        states=(KeptState("p", text=waiting.state),),
    )
    agent = paying([])
    state = await waiting.restore(agent)
    broken = replace(waiting, state=waiting.state[:-50])
    told: list[object] = [waiting, end, broken]
    with pytest.raises(MemoryUnavailable, match="cannot be read") as raised:
        await broken.restore(agent)
    told.append(raised.value)
    assert state.get_interruptions()
    silent(otel, caplog, *told, RunItems(1, 0, [CANARY], None))


@pytest.mark.parametrize("fault", FAULTY_EXPORTS)
async def test_no_faulty_export_shows_a_word(
    talked: Any, otel: Any, caplog: Any, fault: str
) -> None:
    """A line that cannot be read is named by its number."""
    lines = FAULTY_EXPORTS[fault]([line async for line in talked.export("s")])
    await talked.delete("s")
    errors = await refusals(talked.import_(lines))
    silent(otel, caplog, *errors)


async def test_a_conflict_of_imports_shows_no_word(talked: Any, otel: Any, caplog: Any) -> None:
    """A session with other turns is named by its id."""
    lines = [line async for line in talked.export("s")]
    await talked.append_to_session("s", [{"role": "user", "content": CANARY}])
    silent(otel, caplog, *await refusals(talked.import_(lines)))


async def test_sessions_of_the_sdk_that_cannot_be_read(
    each_memory: Any, otel: Any, caplog: Any, tmp_path: Any
) -> None:
    """Rows that are no items, dates that are none, and a file that is none at all."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "theirs.db"
    session = SQLiteSession("s", path)
    await session.add_items([{"role": "user", "content": CANARY}])
    session.close()
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE agent_messages SET created_at = ?", (CANARY,))
        file.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES ('s', ?)", (CANARY,)
        )
    text = tmp_path / "text.db"
    text.write_text(CANARY * 100)
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    with_session_memory(Runner.run, memory=each_memory, telemetry=telemetry)
    told: list[object] = [await import_sdk_sessions(str(path), each_memory)]
    told += await refusals(import_sdk_sessions(str(text), each_memory))
    assert await each_memory.load_session("s") == [{"role": "user", "content": CANARY}]
    silent(otel, caplog, *told)
