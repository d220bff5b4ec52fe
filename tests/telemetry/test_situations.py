"""What a turn looks like to an operator, situation by situation: trees, metrics and log lines.

Each expectation is a text: the spans as trees, with what matters of a turn's root in brackets; then
the points of the metrics that count turns, waits and conflicts; then the log lines at info and
above. ``->`` is a link to an earlier root, ``!`` a span with status ERROR.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from agents import RunConfig, Runner, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from session_middleware import (
    DuplicateTurn,
    SessionBusy,
    TurnInProgress,
    session_scope,
    with_session_memory,
)
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.approvals import approved, paying, serialised
from tests.support.conditions import until
from tests.support.interruptions import WatchedSQLite
from tests.support.sessions import tool

ATTRIBUTES = {
    "session_middleware.turn": "turn {}",
    "session_middleware.outcome": "{}",
    "session_middleware.other_turn": "see turn {}",
    "error.type": "{}",
}
COUNTED = {
    "session_middleware.turn.duration": "session_middleware.outcome",
    "session_middleware.lock.conflicts": "",
}


class Situation:
    """One memory, and everything that its turns emit.

    Attributes:
        at_once: runs go on at once: their spans are sorted by name, and writes left out, as it
            depends on who comes first in how many writes their items are stored.
    """

    def __init__(self, otel: Any, events: list[dict[str, Any]], memory: Any) -> None:
        self.otel, self.events, self.memory = otel, events, memory
        self.telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
        self.at_once = False

    def remember(self, function: Any = None, **options: Any) -> Any:
        """The decorator over the memory."""
        given = {"memory": self.memory, "telemetry": self.telemetry, **options}
        return (
            with_session_memory(**given)
            if function is None
            else with_session_memory(function, **given)
        )

    async def told(self) -> str:
        """All of it as text."""
        return "\n".join([*self._trees(), *self._metrics(), *self._log()])

    def _trees(self) -> list[str]:
        spans = sorted(self.otel.spans, key=lambda span: span.start_time)
        if self.at_once:
            spans = sorted(spans, key=lambda span: (bool(span.parent), span.name))
            spans = [span for span in spans if span.name != "create_memory"]
        roots = {span.context.trace_id: n for n, span in enumerate(spans, 1) if not span.parent}
        order = {trace_id: n for n, trace_id in enumerate(roots, 1)}
        known = {span.context.span_id for span in spans}
        lines: list[str] = []

        def show(span: Any, depth: int) -> None:
            lines.append("  " * depth + self._line(span, order))
            for child in spans:
                if child.parent and child.parent.span_id == span.context.span_id:
                    show(child, depth + 1)

        for span in spans:
            if span.parent is None or span.parent.span_id not in known:
                show(span, 0)
        return lines

    def _line(self, span: Any, order: dict[int, int]) -> str:
        facts = [
            how.format(span.attributes[key])
            for key, how in ATTRIBUTES.items()
            if key in span.attributes
        ]
        links = [f" -> trace {order[link.context.trace_id]}" for link in span.links]
        failed = " !" if span.status.status_code is StatusCode.ERROR else ""
        session = span.attributes.get("session.id", "")
        if span.name.startswith("session_turn"):
            facts.insert(0, session)
        name = span.name.replace("<locals>.", "").rpartition(".")[2]
        if span.name.startswith("session_turn") and "." in span.name:
            name = f"session_turn {name}"
        return name + (f" [{', '.join(facts)}]" if facts else "") + "".join(links) + failed

    def _metrics(self) -> list[str]:
        lines = []
        for metric, key in COUNTED.items():
            counts: dict[str, int] = {}
            for point in self.otel.metrics.get(metric, ()):
                label = point.attributes.get(key, "")
                value = point.count if hasattr(point, "count") else point.value
                counts[label] = counts.get(label, 0) + value
            for label, count in sorted(counts.items()):
                lines.append(f"{metric.removeprefix('session_middleware.')} {label} {count}")
        return [" ".join(line.split()) for line in lines]

    def _log(self) -> list[str]:
        return [
            f"{event['log_level']} {event['event']} {event.get('outcome', '')}".strip()
            for event in self.events
            if event["log_level"] != "debug"
        ]


Story = Callable[[Situation], Awaitable[None]]
SITUATIONS: list[tuple[Story, str]] = []


def tells(expected: str) -> Callable[[Story], Story]:
    """Enter a situation into the table, with what it looks like."""

    def entered(story: Story) -> Story:
        SITUATIONS.append((story, textwrap.dedent(expected).strip()))
        return story

    return entered


ONE_RUN = """
    session_turn Agent workflow [s, turn 1, completed]
      acquire_session
      search_memory
      chat
      end_turn
    turn.duration completed 1
    info turn_completed completed
    """
"""A run that says one thing and ends, however it is made and whoever else traces."""


# --- ways to make a run ----------------------------------------------------------------------


@tells(ONE_RUN)
async def run(s: Situation) -> None:
    await s.remember(Runner.run)(local_agent(), "Hi", session_id="s")


@tells(ONE_RUN)
async def run_sync(s: Situation) -> None:
    def in_a_thread() -> None:
        loop = asyncio.new_event_loop()  # run_sync uses the thread's, and leaves it open
        asyncio.set_event_loop(loop)
        s.remember(Runner.run_sync)(local_agent(), "Hi", session_id="s")
        loop.close()

    await asyncio.to_thread(in_a_thread)


@tells(ONE_RUN)
async def streamed(s: Situation) -> None:
    result = s.remember(Runner.run_streamed)(local_agent(), "Hi", session_id="s")
    async for _ in result.stream_events():
        pass
    await result.run_loop_task


@tells(
    """
    session_turn chat [s, turn 1, completed]
      acquire_session
      search_memory
      create_memory
      chat
      create_memory
      search_memory
      create_memory
      chat
      create_memory
      end_turn
    turn.duration completed 1
    info turn_completed completed
    """
)
async def decorated_with_two_runs(s: Situation) -> None:
    @s.remember
    async def chat() -> None:
        for text in ("Hi", "Hi again"):
            await Runner.run(local_agent(), text)

    await chat(session_id="s")


@tells(
    """
    session_turn chat [s, turn 1, completed]
      acquire_session
      chat
      chat
      end_turn
      search_memory
      search_memory
    turn.duration completed 1
    info turn_completed completed
    """
)
async def gathered(s: Situation) -> None:
    s.at_once = True

    @s.remember
    async def chat() -> None:
        await asyncio.gather(*(Runner.run(local_agent(), text) for text in ("one", "two")))

    await chat(session_id="s")


@tells(
    """
    session_turn outer [s, turn 1, completed]
      acquire_session
      search_memory
      create_memory
      chat
      create_memory
      end_turn
    turn.duration completed 1
    info turn_completed completed
    """
)
async def nested_in_the_same_session(s: Situation) -> None:
    await _nested(s, "s")


async def _nested(s: Situation, session_id: str) -> None:
    """A function of session "s" calls one of that session, which makes a run."""

    @s.remember
    async def inner() -> None:
        await Runner.run(local_agent(), "Hi")

    @s.remember
    async def outer() -> None:
        await inner(session_id=session_id)

    await outer(session_id="s")


@tells(
    """
    session_turn outer [s, turn 1, completed]
      acquire_session
      session_turn inner [other, turn 1, completed]
        acquire_session
        search_memory
        create_memory
        chat
        create_memory
        end_turn
      end_turn
    turn.duration completed 2
    info turn_completed completed
    warning no_run_intercepted
    info turn_completed completed
    """
)
async def nested_in_another_session(s: Situation) -> None:
    await _nested(s, "other")


@tells(
    """
    session_turn Agent workflow [s, turn 1, completed]
      acquire_session
      search_memory
      chat
      create_memory
      chat
      end_turn
    turn.duration completed 1
    info turn_completed completed
    """
)
async def an_agent_as_a_tool(s: Situation) -> None:
    expert = scripted_agent(assistant("yes")).as_tool("ask", "Ask an expert.")
    agent = scripted_agent(call("ask", {"input": "?"}), assistant("done"), tools=[expert])
    await s.remember(Runner.run)(agent, "Hi", session_id="s")


# --- traces of the application's own ---------------------------------------------------------


@tells(
    """
    request
      session_turn Agent workflow [s, turn 1, completed]
        acquire_session
        search_memory
        chat
        end_turn
    turn.duration completed 1
    info turn_completed completed
    """
)
async def inside_a_span_and_a_trace(s: Situation) -> None:
    tracer = s.otel.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("request"), trace("Conversation", group_id="g"):
        await s.remember(Runner.run)(local_agent(), "Hi", session_id="s")


@tells(ONE_RUN)
async def with_a_group_of_the_users(s: Situation) -> None:
    config = RunConfig(group_id="thread-7")
    await s.remember(Runner.run)(local_agent(), "Hi", session_id="s", run_config=config)


@tells(ONE_RUN)
async def with_the_sdks_tracing_off(s: Situation) -> None:
    config = RunConfig(tracing_disabled=True)
    await s.remember(Runner.run)(local_agent(), "Hi", session_id="s", run_config=config)


@tells(
    """
    turn.duration completed 1
    info turn_completed completed
    """
)
async def sampled_off(s: Situation) -> None:
    s.telemetry = Telemetry(
        TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False), s.otel.meter_provider
    )
    await s.remember(Runner.run)(local_agent(), "Hi", session_id="s")


@tells(
    """
    info turn_completed completed
    """
)
async def without_any_provider(s: Situation) -> None:
    s.telemetry = Telemetry()
    await s.remember(Runner.run)(local_agent(), "Hi", session_id="s")


# --- content, and memories that fail ---------------------------------------------------------


@tells(
    """
    session_turn Agent workflow [s, turn 1, completed]
      acquire_session
      search_memory
      create_memory
      chat
      end_turn
    turn.duration completed 1
    info turn_completed completed
    """
)
async def redacted(s: Situation) -> None:
    run = s.remember(Runner.run, redact=lambda item: {**item, "content": "[redacted]"})
    await run(local_agent(), "Hi", session_id="s")


@tells(
    """
    session_turn Agent workflow [s, forgotten]
      acquire_session [MemoryUnavailable] !
      chat
    turn.duration forgotten 1
    error load_failed
    warning turn_completed forgotten
    """
)
async def forgotten_from_the_acquiring_on(s: Situation) -> None:
    s.memory.will_fail(1, after_effect=False)
    await s.remember(Runner.run, on_unavailable="forget")(local_agent(), "Hi", session_id="s")


@tells(
    """
    session_turn Agent workflow [s, turn 1, forgotten]
      acquire_session
      search_memory
      chat
      end_turn [MemoryUnavailable] !
      end_turn
    turn.duration forgotten 1
    error save_failed
    warning turn_completed forgotten
    """
)
async def forgotten_in_the_middle(s: Situation) -> None:
    s.memory.will_fail(2, after_effect=False)
    await s.remember(Runner.run, on_unavailable="forget")(local_agent(), "Hi", session_id="s")


# --- turns that come first -------------------------------------------------------------------


@tells(
    """
    session_turn Agent workflow [s, busy, see turn 1]
    turn.duration busy 1
    lock.conflicts 1
    info turn_completed busy
    warning no_run_intercepted
    info turn_completed completed
    """
)
async def busy(s: Situation) -> None:
    run = s.remember(Runner.run, on_busy="reject")
    async with session_scope("s", memory=s.memory):
        with pytest.raises(SessionBusy):
            await _outside(run(local_agent(), "Hi", session_id="s"))


@tells(
    """
    session_turn Agent workflow [s, turn 2, completed]
      wait_for_session [acquired, see turn 1]
      acquire_session
      search_memory
      chat
      end_turn
    turn.duration completed 1
    lock.conflicts 1
    warning no_run_intercepted
    info turn_completed completed
    info turn_completed completed
    """
)
async def waiting(s: Situation) -> None:
    run = s.remember(Runner.run)
    async with session_scope("s", memory=s.memory):
        waits = _outside(run(local_agent(), "Hi", session_id="s"))
        await until(lambda: any(event["event"] == "lock_contended" for event in s.events))
    await waits


@tells(
    """
    session_turn Agent workflow [s, turn 1, completed]
      acquire_session
      search_memory
      chat
      end_turn
    session_turn Agent workflow [s, duplicate, see turn 1]
      acquire_session [duplicate, see turn 1]
    turn.duration completed 1
    turn.duration duplicate 1
    info turn_completed completed
    info turn_completed duplicate
    """
)
async def duplicate(s: Situation) -> None:
    run = s.remember(Runner.run)
    await run(local_agent(), "Hi", session_id="s", idempotency_key="k")
    with pytest.raises(DuplicateTurn):
        await run(local_agent(), "Hi", session_id="s", idempotency_key="k")


@tells(
    """
    session_turn Agent workflow [s, in_progress, see turn 1]
    turn.duration in_progress 1
    info turn_completed in_progress
    warning no_run_intercepted
    info turn_completed completed
    """
)
async def in_progress(s: Situation) -> None:
    run = s.remember(Runner.run)
    async with session_scope("s", memory=s.memory, idempotency_key="k"):
        with pytest.raises(TurnInProgress):
            await _outside(run(local_agent(), "Hi", session_id="s", idempotency_key="k"))


def _outside(work: Any) -> asyncio.Task[Any]:
    """Do the work in a context that is part of no turn."""
    return asyncio.create_task(work, context=contextvars.Context())


# --- turns that end otherwise ----------------------------------------------------------------


@tells(
    """
    session_turn Agent workflow [s, turn 1, abandoned, TurnLost] !
      acquire_session
      search_memory
      chat
      create_memory [TurnLost] !
      end_turn [TurnLost] !
    turn.duration abandoned 1
    warning turn_completed abandoned
    """
)
async def lost(s: Situation) -> None:
    async def lose() -> str:
        await s.memory.release("s")
        return "lost"

    agent = scripted_agent(call("lose"), assistant("done"), tools=[tool("lose", lose)])
    with contextlib.suppress(Exception):
        await s.remember(Runner.run)(agent, "Lose", session_id="s")


@tells(
    """
    session_turn Agent workflow [s, turn 1, awaiting_approval]
      acquire_session
      search_memory
      chat
      create_memory
      end_turn
    session_turn Agent workflow [s, turn 1, completed] -> trace 1
      acquire_session
      search_memory
      upsert_memory
      upsert_memory
      search_memory
      create_memory
      chat
      end_turn
    turn.duration awaiting_approval 1
    turn.duration completed 1
    info turn_completed awaiting_approval
    info turn_completed completed
    """
)
async def parked_and_resumed(s: Situation) -> None:
    agent, run = paying([]), s.remember(Runner.run)
    parked = await run(agent, "Pay", session_id="s")
    await run(agent, await approved(parked, serialised, agent), session_id="s")


@tells(
    """
    session_turn Agent workflow [s, turn 1, cancelled]
      acquire_session
      search_memory
      chat
      end_turn
    turn.duration cancelled 1
    info turn_completed cancelled
    """
)
async def cancelled(s: Situation) -> None:
    reached = asyncio.Event()

    async def hang() -> str:
        reached.set()
        await asyncio.Event().wait()
        return "never"

    agent = scripted_agent(call("hang"), tools=[tool("hang", hang)])
    task = asyncio.create_task(s.remember(Runner.run)(agent, "Hang", session_id="s"))
    await reached.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@tells(
    """
    session_turn talk [s, turn 1, cancelled]
      acquire_session
      search_memory
      create_memory
      chat
      create_memory
      end_turn
    turn.duration cancelled 1
    info turn_completed cancelled
    """
)
async def a_stream_that_is_dropped(s: Situation) -> None:
    @s.remember
    async def talk() -> AsyncIterator[str]:
        yield str((await Runner.run(local_agent(), "Hi")).final_output)
        yield "never"

    steps = talk(session_id="s")
    await anext(steps)
    await steps.aclose()


# --- the table -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "expected"), SITUATIONS, ids=[story.__name__ for story, _ in SITUATIONS]
)
async def test_an_operator_sees(
    story: Story, expected: str, otel: Any, events: list[dict[str, Any]], tmp_path: Any
) -> None:
    """The spans, the counts and the log lines of each situation are these."""
    memory = WatchedSQLite(tmp_path / "watched.db")
    situation = Situation(otel, events, memory)
    try:
        await story(situation)
    finally:
        memory.recovers()
        await memory.cleanup()
    assert await situation.told() == expected
