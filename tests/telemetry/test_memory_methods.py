"""Methods of a memory that people call themselves: a span and a duration each."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import pytest
from agents import Runner
from agents.memory import SessionABC
from opentelemetry.context import attach, detach, set_value
from opentelemetry.trace import StatusCode

from session_middleware import (
    DuplicateTurn,
    InMemorySessionMemory,
    InvalidItem,
    InvalidSessionId,
    SessionBusy,
    installed,
    session_scope,
    with_session_memory,
)
from session_middleware.stores import reported
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.approvals import paying
from tests.support.sessions import tool

DURATION = "session_middleware.memory.operation.duration"
METHOD = "session_middleware.method"
SAID = [{"role": "user", "content": "Hi, I'm Alice"}]


def hashed(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()[:8]


@pytest.fixture
def heard(each_memory: Any, otel: Any) -> Any:
    """A memory whose methods are told to ``otel``, because a decorator names it with that."""
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    each_memory.decorated = with_session_memory(Runner.run, memory=each_memory, telemetry=telemetry)
    return each_memory


def points(otel: Any) -> dict[tuple[str, str], Any]:
    """The durations by operation and method, those of turns left out."""
    return {
        (
            point.attributes["gen_ai.operation.name"],
            point.attributes[METHOD],
        ): point
        for point in otel.metrics[DURATION]
        if METHOD in point.attributes
    }


METHODS: list[tuple[str, str, str | None, int | None, Callable[[Any], Awaitable[Any]]]] = [
    ("search_memory", "load_session", "s", 1, lambda m: m.load_session("s")),
    ("update_memory", "save_session", "s", 1, lambda m: m.save_session("s", SAID)),
    ("create_memory", "append_to_session", "s", 1, lambda m: m.append_to_session("s", SAID)),
    ("create_memory", "append_to_session", "s", 1, lambda m: m.session("s").add_items(SAID)),
    ("delete_memory", "clear_session", "s", None, lambda m: m.clear_session(session_id="s")),
    ("delete_memory", "delete", "s", 1, lambda m: m.delete("s")),
    ("delete_memory", "delete", None, 1, lambda m: m.delete("s", "other")),
    ("delete_memory", "delete_prefix", None, 1, lambda m: m.delete_prefix("s")),
    ("delete_memory", "prune", None, 1, lambda m: m.prune(0)),
    ("delete_memory", "undo", "s", 1, lambda m: m.undo("s")),
    ("create_memory", "fork", "s", None, lambda m: m.fork("s", "copy")),
    ("update_memory", "set_title", "s", None, lambda m: m.set_title("s", "I'm Alice")),
    ("update_memory", "set_metadata", "s", None, lambda m: m.set_metadata("s", {"a": "I'm Alice"})),
]


@pytest.mark.parametrize(
    ("operation", "method", "session_id", "count", "called"),
    METHODS,
    ids=lambda value: str(value)[:20],
)
async def test_each_is_an_operation(
    heard: Any,
    otel: Any,
    operation: str,
    method: str,
    session_id: str | None,
    count: int | None,
    called: Callable[[Any], Awaitable[Any]],
) -> None:
    """One span with the session, one duration with the method; both without its words."""
    await InMemorySessionMemory.append_to_session.__wrapped__(heard, "s", SAID)  # type: ignore[attr-defined]
    assert otel.spans == []
    await called(heard)
    (span,) = otel.spans
    assert span.name == span.attributes["gen_ai.operation.name"] == operation
    assert span.attributes[METHOD] == method
    assert span.attributes.get("session.id") == session_id
    assert span.attributes.get("gen_ai.conversation.id") == session_id
    assert span.attributes.get("gen_ai.memory.record.count") == count
    assert span.attributes["session_middleware.backend"] == heard.backend
    assert span.status.status_code is StatusCode.UNSET
    (point,) = [point for key, point in points(otel).items() if key == (operation, method)]
    assert (point.count, set(points(otel))) == (1, {(operation, method)})


async def test_decisions_and_imports(heard: Any, otel: Any) -> None:
    """A decision that comes too late is an answer, and no failure."""
    await heard.decorated(paying([]), "Pay", session_id="s")
    (waiting,) = await heard.pending()
    otel.exporter.clear()
    await heard.decide("s", waiting.turn, waiting.calls[0].id)
    with pytest.raises(DuplicateTurn):
        await heard.decide("s", waiting.turn, waiting.calls[0].id)
    lines = [line async for line in heard.export("s")]
    await heard.import_(lines)
    first, second, imported = otel.spans
    assert [span.attributes[METHOD] for span in otel.spans] == [
        "decide",
        "decide",
        "import_",
    ]
    assert "session_middleware.outcome" not in first.attributes
    assert second.attributes["session_middleware.outcome"] == "duplicate"
    assert second.status.status_code is StatusCode.UNSET
    assert imported.attributes["gen_ai.memory.record.count"] == 0
    assert "session.id" not in imported.attributes
    assert not any("error.type" in point.attributes for point in points(otel).values())


async def test_failures(heard: Any, otel: Any) -> None:
    """A method that raises fails its span, and its duration has the error's class."""
    with pytest.raises(InvalidItem):
        await heard.append_to_session("s", [{"role": "user", "content": {1}}])
    with pytest.raises(InvalidSessionId):
        await heard.clear_session("\n")
    unstorable, unnamed = otel.spans
    assert unstorable.attributes["error.type"] == "InvalidItem"
    assert unstorable.status.status_code is StatusCode.ERROR
    assert [event.name for event in unstorable.events] == ["exception"]
    assert unnamed.attributes["error.type"] == "InvalidSessionId"
    assert "session.id" not in unnamed.attributes
    failed = {key: point.attributes["error.type"] for key, point in points(otel).items()}
    assert failed[("create_memory", "append_to_session")] == "InvalidItem"


async def test_an_id_that_is_not_to_be_shown(each_memory: Any, otel: Any) -> None:
    """Whoever decorates with a mapper has it in force for the memory's own methods as well.

    Settings without one, of another decorator, do not end that.
    """
    shown = Telemetry(otel.tracer_provider, otel.meter_provider)
    mapped = Telemetry(otel.tracer_provider, otel.meter_provider, session_id=hashed)
    with_session_memory(Runner.run, memory=each_memory, telemetry=mapped)
    with_session_memory(Runner.run, memory=each_memory, telemetry=shown)
    with_session_memory(Runner.run, memory=each_memory)
    await each_memory.append_to_session("alice", SAID)
    with pytest.raises(InvalidSessionId):
        await each_memory.fork("alice", "alice")
    with pytest.raises(InvalidSessionId):
        await each_memory.fork("nobody", "bob")
    await each_memory.delete("alice", "bob")
    assert otel.spans[0].attributes["session.id"] == hashed("alice")
    told = str([(span.attributes, [e.attributes for e in span.events]) for span in otel.spans])
    assert not any(name in told for name in ("alice", "nobody", "bob"))


async def test_within_a_turn_they_hang_under_it(heard: Any, otel: Any) -> None:
    """A tool that looks at another session; what the run does with its own is told once."""

    async def look() -> str:
        await heard.load_session("other")
        await heard.append_to_session("s", SAID)
        return "seen"

    agent = scripted_agent(call("look"), assistant("done"), tools=[tool("look", look)])
    await heard.decorated(agent, "Hi", session_id="s")
    (root,) = [span for span in otel.spans if span.name.startswith("session_turn")]
    told = [span for span in otel.spans if METHOD in span.attributes]
    assert [span.attributes["session.id"] for span in told] == ["other", "s"]
    assert {span.context.trace_id for span in told} == {root.context.trace_id}
    assert {span.parent.span_id for span in told} == {root.context.span_id}


async def test_a_wait_for_a_turn_is_no_slow_storage(
    heard: Any, otel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time behind the turn that holds the session is on the span, and not in the duration."""
    async with session_scope("s", memory=heard):
        await heard.append_to_session("s", SAID)
        refused = asyncio.Event()
        acquire = heard.acquire

        async def acquiring(request: Any) -> Any:
            try:
                return await acquire(request)
            except SessionBusy:
                refused.set()
                raise

        monkeypatch.setattr(heard, "acquire", acquiring)
        undoing = asyncio.get_running_loop().create_task(heard.undo("s"), context=Context())
        await refused.wait()
        await asyncio.sleep(0.5)  # the wait that is measured, at least
        assert not undoing.done()
    await undoing
    (span,) = [s for s in otel.spans if s.attributes.get(METHOD) == "undo"]
    waited = span.attributes["session_middleware.lock.wait_seconds"]
    whole = (span.end_time - span.start_time) / 1e9
    assert waited > 0.3
    assert points(otel)[("delete_memory", "undo")].sum + waited < whole + 0.2


class Forgetful(SessionABC):
    """A session around a view that clears it before it stores anything."""

    def __init__(self, view: Any) -> None:
        self.underlying_session = view
        self.session_id = view.session_id
        self.session_settings = None

    async def get_items(self, limit: int | None = None) -> Any:
        return await self.underlying_session.get_items(limit)

    async def add_items(self, items: Any) -> None:
        await self.underlying_session.clear_session()
        await self.underlying_session.add_items(items)

    async def pop_item(self) -> Any:
        return await self.underlying_session.pop_item()

    async def clear_session(self) -> None:
        await self.underlying_session.clear_session()


async def test_what_a_run_clears_is_told_once(heard: Any, otel: Any) -> None:
    """The turn tells it already."""
    session = Forgetful(heard.session("s"))
    with installed(memory=heard, telemetry=Telemetry(otel.tracer_provider, otel.meter_provider)):
        await Runner.run(local_agent(), "Hi", session=session)
    deleted = [span for span in otel.spans if span.name == "delete_memory"]
    assert deleted
    assert not any(METHOD in span.attributes for span in otel.spans)


async def test_a_scope_is_told_as_its_memory(heard: Any, otel: Any) -> None:
    """Under the full id, and as the kind of memory that has the sessions, in turns too."""
    scope = heard.scoped("tenant")
    await scope.append_to_session("s", SAID)
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    await with_session_memory(Runner.run, memory=scope, telemetry=telemetry)(
        local_agent(), "Hi", session_id="s"
    )
    assert {span.attributes["session.id"] for span in otel.spans} == {"tenant:s"}
    kinds = {s.attributes.get("session_middleware.backend", heard.backend) for s in otel.spans}
    assert kinds == {heard.backend}


async def test_nothing_without_a_provider(each_memory: Any, monkeypatch: Any) -> None:
    """Nobody is told then, and a call does what it would do without the decoration."""
    told: list[Any] = []
    ask = reported._reporter
    assert ask is not None

    def asked(*call: Any) -> Any:
        told.append(ask(*call))
        return told[-1]

    monkeypatch.setattr(reported, "_reporter", asked)
    await each_memory.append_to_session("s", SAID)
    assert await each_memory.load_session("s") == SAID
    assert told == [None, None]


async def test_nothing_where_instrumentation_is_suppressed(heard: Any, otel: Any) -> None:
    """As of turns."""
    token = attach(set_value("suppress_instrumentation", True))
    try:
        await heard.load_session("s")
    finally:
        detach(token)
    assert otel.spans == []
    assert DURATION not in otel.metrics
