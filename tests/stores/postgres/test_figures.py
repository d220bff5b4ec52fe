"""What a dashboard shows of a PostgreSQL memory, from its tables to a metric reader."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agents import Runner

from session_middleware import with_session_memory
from session_middleware.conformance.steps import acquire
from session_middleware.stores.records import TurnEnd
from session_middleware.telemetry import Telemetry
from tests.support.approvals import approved, live, paying
from tests.support.conditions import until

PARKED = "session_middleware.turn.parked"
AGE = "session_middleware.turn.parked.age"


def observed(otel: Any) -> dict[str, float]:
    """The newest observations, all of this backend."""
    points = [(name, point) for name, found in otel.metrics.items() for point in found]
    return {
        name: point.value
        for name, point in points
        if name in (PARKED, AGE) and point.attributes["session_middleware.backend"] == "postgresql"
    }


async def test_parked_turns_are_observed_until_they_are_resumed(memory: Any, otel: Any) -> None:
    """The database is asked, so that turns parked by other machines, or long ago, count."""
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    other = await acquire(memory, "other")
    await memory.end_turn(other.lease, TurnEnd("awaiting_approval", long_ago, park=("p",)))
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    run = with_session_memory(Runner.run, memory=memory, telemetry=telemetry)
    agent = paying([])
    parked = await run(agent, "Pay", session_id="s")
    await until(lambda: observed(otel).get(PARKED) == 2)
    age = observed(otel)[AGE]
    assert 7200 <= age < 7800
    await memory.delete("other")
    await until(lambda: observed(otel).get(PARKED) == 1)
    assert observed(otel)[AGE] < 600
    await run(agent, await approved(parked, live, agent), session_id="s")
    await until(lambda: observed(otel) == {PARKED: 0})


async def test_a_memory_that_was_closed_is_observed_no_more(memory: Any, otel: Any) -> None:
    """Its figures end, and nobody asks the server any more."""
    telemetry = Telemetry(otel.tracer_provider, otel.meter_provider)
    await with_session_memory(Runner.run, memory=memory, telemetry=telemetry)(
        paying([]), "Pay", session_id="s"
    )
    await until(lambda: observed(otel).get(PARKED) == 1)
    await memory.cleanup()
    await until(lambda: observed(otel) == {})
