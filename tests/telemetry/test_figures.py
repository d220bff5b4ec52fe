"""What a dashboard shows of a memory, from the memory through its turns to a metric reader."""

from __future__ import annotations

import gc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents import Runner

from session_middleware import InMemorySessionMemory, SQLiteSessionMemory, with_session_memory
from session_middleware._turns.figures import figures_of
from session_middleware.stores.records import AcquireRequest, TurnEnd
from session_middleware.telemetry import Telemetry
from session_middleware.testing.models import local_agent
from tests.support.approvals import paying
from tests.support.conditions import until

NAMES = {
    "session_middleware.memory.file.size",
    "session_middleware.memory.queue.length",
    "session_middleware.memory.write.groups",
    "session_middleware.memory.write.members",
    "session_middleware.turn.parked",
}
AGE = "session_middleware.turn.parked.age"


def figures(otel: Any) -> dict[str, float]:
    """The newest observation of each figure; all are of one backend."""
    return {name: points[0].value for name, points in otel.metrics.items() if name in NAMES | {AGE}}


@pytest.fixture
def telemetry(otel: Any) -> Telemetry:
    """The option that leads to ``otel``."""
    return Telemetry(otel.tracer_provider, otel.meter_provider)


async def test_a_memory_in_use_is_observed(tmp_path: Any, otel: Any, telemetry: Telemetry) -> None:
    """Size, queue and write groups of a file whose turns are measured; none parked, no age."""
    async with SQLiteSessionMemory(tmp_path / "figures.db") as memory:
        run = with_session_memory(Runner.run, memory=memory, telemetry=telemetry)
        await run(local_agent(), "Hi", session_id="s")
        await until(lambda: figures(otel))
        told = figures(otel)
        assert set(told) == NAMES
        assert told["session_middleware.memory.file.size"] >= 4096
        assert told["session_middleware.memory.queue.length"] == 0
        groups = told["session_middleware.memory.write.groups"]
        assert 0 < groups <= told["session_middleware.memory.write.members"]
        assert told["session_middleware.turn.parked"] == 0


async def test_parked_turns_are_counted_whoever_parked_them(
    tmp_path: Any, otel: Any, telemetry: Telemetry
) -> None:
    """The storage is asked, so that turns parked by other processes, or long ago, count."""
    async with SQLiteSessionMemory(tmp_path / "figures.db") as memory:
        parked = datetime.now(UTC) - timedelta(hours=2)
        acquired = await memory.acquire(AcquireRequest("other", parked))
        end = TurnEnd("awaiting_approval", parked, park=("p",))
        await memory.end_turn(acquired.lease, end)
        run = with_session_memory(Runner.run, memory=memory, telemetry=telemetry)
        await run(paying([]), "Pay", session_id="s")
        await until(lambda: figures(otel))
        told = figures(otel)
        assert told["session_middleware.turn.parked"] == 2
        assert 7200 <= told[AGE] < 7800


async def test_a_memory_that_is_gone_is_observed_no_more(
    tmp_path: Any, otel: Any, telemetry: Telemetry
) -> None:
    """Neither one that was closed, nor one that nobody refers to; none is kept alive."""
    memory = SQLiteSessionMemory(tmp_path / "figures.db")
    run = with_session_memory(Runner.run, memory=memory, telemetry=telemetry)
    await run(local_agent(), "Hi", session_id="s")
    await until(lambda: figures(otel))
    await memory.cleanup()
    await until(lambda: not figures(otel))
    del run, memory
    gc.collect()
    assert figures(otel) == {}


def test_a_memory_without_figures_has_none() -> None:
    """It does not say that it can; and for one that can there is one source, made once."""
    assert figures_of(InMemorySessionMemory()) is None
    memory = SQLiteSessionMemory(":memory:")
    assert figures_of(memory) is figures_of(memory) is not None
