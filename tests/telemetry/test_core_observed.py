"""Runs with a session of another kind, watched: seen like ours, and otherwise untouched."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from agents import RunConfig, Runner, SQLiteSession, trace
from agents.memory import SessionABC, SessionSettings
from opentelemetry.trace import StatusCode, format_trace_id

from session_middleware import installed, with_session_memory
from session_middleware._turns import observe as _observe
from session_middleware.history import size_and_digest
from session_middleware.telemetry import Telemetry, TurnTelemetry
from session_middleware.telemetry.gauges import FIGURES
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.approvals import approved, live, paying
from tests.support.sessions import METHODS, run_by, tool

both_ways = pytest.mark.parametrize("method", METHODS)


class Remembering(SessionABC):
    """A session of a user's own, which asks for the run's context and compacts itself."""

    def __init__(self, session_id: str = "theirs") -> None:
        self.session_id = session_id
        self.session_settings = SessionSettings()
        self.items: list[Any] = []
        self.wrappers: list[Any] = []
        self.compacted: list[Any] = []

    async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Any]:
        self.wrappers.append(wrapper)
        return self.items if limit is None else self.items[-limit:]

    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        self.wrappers.append(wrapper)
        self.items.extend(items)

    async def pop_item(self, *, wrapper: Any = None) -> Any:
        return self.items.pop() if self.items else None

    async def clear_session(self, *, wrapper: Any = None) -> None:
        self.items.clear()

    async def run_compaction(self, args: Any = None) -> None:
        self.compacted.append(args)


class Plain:
    """A session whose methods are plain functions, which the SDK takes as well."""

    session_id = "plain"
    session_settings = None

    def __init__(self) -> None:
        self.items: list[Any] = []

    def get_items(self, limit: int | None = None) -> list[Any]:
        return list(self.items)

    def add_items(self, items: list[Any]) -> None:
        self.items.extend(items)

    def pop_item(self) -> Any:
        return self.items.pop()

    def clear_session(self) -> None:
        self.items.clear()


@pytest.fixture
def watching(otel: Any) -> Callable[[], AbstractContextManager[None]]:
    """``with watching():`` runs with sessions of any kind are traced to ``otel``."""
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    return lambda: installed(memory=None, observe=True, telemetry=telemetry)


@pytest.fixture
def theirs() -> Iterator[SQLiteSession]:
    """The SDK's own session, in memory."""
    session = SQLiteSession("theirs")
    yield session
    session.close()


def looking_agent() -> Any:
    """An agent that calls a tool, then answers."""
    return scripted_agent(call("look"), assistant("done"), tools=[tool("look", lambda: "seen")])


def facts(otel: Any, backend: str) -> tuple[list[str], set[str], set[str]]:
    """The names of all spans, the keys of the root, and the metrics of the turns on this kind."""
    spans = sorted(otel.spans, key=lambda span: span.start_time)
    metrics = {
        name
        for name, points in otel.metrics.items()
        if name.removeprefix("session_middleware.") not in FIGURES
        and any(point.attributes["session_middleware.backend"] == backend for point in points)
    }
    return [span.name for span in spans], set(spans[0].attributes), metrics


def without_ids(items: list[Any]) -> list[Any]:
    """Items without the ids that differ from run to run."""
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]


# --- seen like ours ------------------------------------------------------------------------


@both_ways
async def test_a_watched_run_shows_what_one_of_ours_shows(
    method: str,
    memory: Any,
    otel: Any,
    watching: Any,
    theirs: SQLiteSession,
    sdk_traces: Any,
    events: list[dict[str, Any]],
) -> None:
    """The same spans, keys, metrics, log events and group id, but for what a turn of ours has."""
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    ours = with_session_memory(getattr(Runner, method), memory=memory, telemetry=telemetry)
    made = ours(looking_agent(), "Look", session_id="theirs")
    if method == "run":
        await made
    else:
        async for _ in made.stream_events():
            pass
    names, keys, metrics = facts(otel, "sqlite")
    logged = [event["event"] for event in events]
    otel.exporter.clear()
    events.clear()

    with watching():
        await run_by(method, looking_agent(), "Look", session=theirs)
    watched_names, watched_keys, watched_metrics = facts(otel, "SQLiteSession")
    assert [name for name in watched_names if name != "create_memory"] == [
        name for name in names if name not in ("acquire_session", "create_memory", "end_turn")
    ]
    assert watched_names.count("create_memory") == 3
    # A session of theirs has no turns, and nobody waits for one.
    assert keys - watched_keys == {
        "session_middleware.turn",
        "session_middleware.lock.wait_seconds",
    }
    assert watched_keys <= keys
    assert metrics - watched_metrics == {"session_middleware.lock.wait.duration"}
    assert watched_metrics <= metrics
    assert [event["event"] for event in events] == logged
    assert sdk_traces.group_ids == ["theirs", "theirs"]
    (root,) = [span for span in otel.spans if span.parent is None]
    assert sdk_traces.started[1]["metadata"] == {
        "session_id": "theirs",
        "otel_trace_id": format_trace_id(root.context.trace_id),
    }
    assert root.attributes["session_middleware.sdk_trace_id"] == sdk_traces.started[1]["id"]
    assert root.attributes["session_middleware.new_item.count"] == 4


@both_ways
async def test_the_digest_leads_to_the_history(
    method: str, otel: Any, watching: Any, theirs: SQLiteSession
) -> None:
    """It is that of the items the session gave."""
    await run_by(method, local_agent(), "Hi, I'm Älice.", session=theirs)
    before = await theirs.get_items()
    with watching():
        await run_by(method, local_agent(), "What's my name?", session=theirs)
    attributes = otel.span("session_turn Agent workflow").attributes
    assert attributes["session_middleware.history.item_count"] == 2
    size, digest = size_and_digest(before)
    assert attributes["session_middleware.history.digest"] == digest
    assert attributes["session_middleware.history.size_bytes"] == size


@both_ways
async def test_a_group_of_the_users_stays(
    method: str, watching: Any, theirs: SQLiteSession, sdk_traces: Any, events: Any
) -> None:
    """A group id in the run's config, and a trace around the run, are what they were."""
    with watching():
        config = RunConfig(group_id="thread-1")
        await run_by(method, local_agent(), "Hi", session=theirs, run_config=config)
        with trace("Conversation", group_id="thread-2"):
            await run_by(method, local_agent(), "Hi", session=theirs)
    assert sdk_traces.group_ids == ["thread-1", "thread-2"]
    assert [told["event"] for told in events].count("outer_trace_group_mismatch") == 1
    assert sdk_traces.started[1]["metadata"] is None


@both_ways
async def test_a_run_that_waits_for_approval(
    method: str, otel: Any, watching: Any, theirs: SQLiteSession
) -> None:
    """Its outcome says so, and the run that goes on completes."""
    agent = paying([])
    with watching():
        parked = await run_by(method, agent, "Pay", session=theirs)
        await run_by(method, agent, await approved(parked, live, agent), session=theirs)
    roots = [span for span in otel.spans if span.parent is None]
    assert [root.attributes["session_middleware.outcome"] for root in roots] == [
        "awaiting_approval",
        "completed",
    ]


@both_ways
async def test_a_session_of_theirs_that_fails(
    method: str, otel: Any, watching: Any, events: list[dict[str, Any]]
) -> None:
    """Its error reaches the caller as it was; it is recorded once, and logged without its text."""

    class Failing(Remembering):
        async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
            raise OSError("canary-17")

    with watching(), pytest.raises(OSError, match="canary-17"):
        await run_by(method, local_agent(), "Hi", session=Failing())
    (root,) = [span for span in otel.spans if span.parent is None]
    assert root.status.status_code is StatusCode.ERROR
    recorded = [span.name for span in otel.spans for e in span.events if e.name == "exception"]
    assert recorded == ["create_memory"]
    assert [e["error_type"] for e in events if e["event"] == "save_failed"] == ["OSError"]
    assert "canary-17" not in str(events) + "".join(span.to_json() for span in otel.spans)


# --- otherwise untouched -------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("kind", [SQLiteSession, Remembering, Plain])
async def test_what_is_stored_is_the_same(method: str, otel: Any, watching: Any, kind: Any) -> None:
    """A session of any kind holds after a watched run what it holds after another."""

    async def after_a_run() -> list[Any]:
        session = kind() if kind is Plain else kind("theirs")
        await run_by(method, looking_agent(), "Look", session=session)
        items = session.get_items()
        held = await items if inspect.isawaitable(items) else items
        if kind is SQLiteSession:
            session.close()
        return without_ids(held)

    unwatched = await after_a_run()
    assert otel.spans == []
    with watching():
        assert await after_a_run() == unwatched
    assert len(unwatched) == 4
    names = {span.name for span in otel.spans}
    assert {"search_memory", "create_memory"} <= names


@both_ways
async def test_a_session_that_asks_for_the_context_gets_it(
    method: str, watching: Any, otel: Any
) -> None:
    """Every call names the run's context, as the session's methods ask for."""
    session = Remembering()
    with watching():
        await run_by(method, local_agent(), "Hi", session=session)
    assert len(session.wrappers) == 3
    assert None not in session.wrappers


@both_ways
async def test_a_session_that_compacts_itself_does_so(
    method: str, watching: Any, otel: Any
) -> None:
    """The SDK asks it to, as without us, and that is an operation like the others."""
    session = Remembering()
    with watching():
        await run_by(method, scripted_agent(assistant("done")), "Hi", session=session)
    assert len(session.compacted) == 1
    assert otel.span("update_memory").attributes["session.id"] == "theirs"


def observed(session: Any) -> Any:
    """What the SDK is handed in the place of a session."""
    return _observe.ObservedSession(session, TurnTelemetry(Telemetry(), "run", "theirs", "x"))


def test_it_passes_for_the_session() -> None:
    """Its class, signatures, attributes and equality are the session's own."""
    session = Remembering()
    proxy = observed(session)
    assert isinstance(proxy, Remembering)
    assert isinstance(proxy, SessionABC)
    for name in ("get_items", "add_items", "pop_item", "clear_session", "run_compaction"):
        assert inspect.signature(getattr(proxy, name)) == inspect.signature(getattr(session, name))
        assert inspect.iscoroutinefunction(getattr(proxy, name))
    assert not hasattr(proxy, "nothing_of_the_kind")
    proxy.session_settings = SessionSettings(limit=3)
    assert session.session_settings.limit == 3


def test_a_copy_is_watched_and_has_a_session_of_its_own() -> None:
    """copy and deepcopy copy the session as they would have, and stay watched."""
    session = Remembering()
    session.items.append({"role": "user", "content": "Hi"})
    for copied, same_items in (
        (copy.copy(observed(session)), True),
        (copy.deepcopy(observed(session)), False),
    ):
        assert _observe.is_observed(copied)
        assert copied.__wrapped__ is not session
        assert (copied.items is session.items) is same_items
        assert copied.items == session.items


async def test_an_empty_list_is_no_new_item() -> None:
    """What was stored is counted item by item."""
    proxy = observed(Remembering())
    await proxy.add_items([])
    assert proxy._self_stored == 0
    await proxy.add_items([{"role": "user", "content": "Hi"}])
    assert proxy._self_stored == 1


@both_ways
@pytest.mark.parametrize("missing", [None, "", "raises"])
async def test_without_an_id_there_is_nothing_to_group_by(
    method: str, otel: Any, watching: Any, missing: Any, sdk_traces: Any
) -> None:
    """A session that has no id (yet) runs unwatched, and none is made up."""

    class Nameless(Remembering):
        @property
        def session_id(self) -> Any:  # type: ignore[override]
            if missing == "raises":
                raise ValueError("not created yet")
            return missing

        @session_id.setter
        def session_id(self, value: Any) -> None:
            """Fixed."""

    session = Nameless()
    with watching():
        await run_by(method, local_agent(), "Hi", session=session)
    assert len(session.items) == 2
    assert otel.spans == []
    assert sdk_traces.group_ids == [None]
