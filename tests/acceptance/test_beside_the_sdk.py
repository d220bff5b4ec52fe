"""The table of README.md: the same program with the SDK's session and with one of ours.

Each test is a row. It runs one program twice, once for each column, and nothing but ``session=``
(and, where the row says so, the block around the run) differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Runner, RunState, SQLiteSession

from session_middleware import DuplicateTurn, SQLiteSessionMemory, session_scope
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support import ROOT
from tests.support.conditions import until
from tests.support.programs import Programs
from tests.support.sessions import counted, letters, tool

Keyed = Callable[[str], Any]
"""A block that names a request; of the SDK's session, a block that does nothing."""


class Column:
    """A session on a file: the SDK's, or one of ours."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.file = file
        self.memory = SQLiteSessionMemory(file, lease=0.5) if name == "ours" else None

    @property
    def ours(self) -> bool:
        return self.memory is not None

    @property
    def session(self) -> Any:
        """What is passed as ``session=``: a new object each time, as another worker has one."""
        if self.memory is None:
            return SQLiteSession("user_1", self.file)
        return self.memory.session("user_1")

    def request(self, key: str) -> Any:
        """The block around a run that names its request."""
        if self.memory is None:
            return contextlib.nullcontext()
        return session_scope("user_1", memory=self.memory, idempotency_key=key)

    async def stored(self) -> str:
        """The letters of the items that the session holds."""
        return letters(await self.session.get_items())


@pytest.fixture(params=["the SDK's", "ours"])
def column(request: pytest.FixtureRequest, tmp_path: Path) -> Column:
    return Column(request.param, tmp_path / "chat.db")


async def test_two_workers_at_once(column: Column) -> None:
    """The SDK's session tears the two runs apart; with ours the second follows the first."""
    in_tool: list[str] = []

    async def work() -> str:
        in_tool.append("here")
        waits = asyncio.wait_for(until(lambda: len(in_tool) == 2), 0.3 if column.ours else None)
        with contextlib.suppress(TimeoutError):  # of ours, the other one never comes
            await waits
        return "worked"

    def worker() -> Any:
        return scripted_agent(call("work"), assistant("done"), tools=[tool("work", work)])

    await asyncio.gather(
        Runner.run(worker(), "First.", session=column.session),
        Runner.run(worker(), "Second.", session=column.session),
    )
    stored = await column.stored()
    assert sorted(stored.split()) == sorted([*"UCOA", *"UCOA"])
    assert (stored == "U C O A U C O A") is column.ours
    assert stored.startswith("U U") is not column.ours


async def test_a_webhook_twice(column: Column) -> None:
    """The SDK's session has the message twice; with ours the second delivery is told apart."""

    async def deliver() -> str | None:
        async with column.request("event-17"):
            result = await Runner.run(local_agent(), "Hi, I'm Alice.", session=column.session)
        return str(result.final_output)

    assert await deliver() == "Nice to meet you, Alice."
    if column.ours:
        with pytest.raises(DuplicateTurn) as told:
            await deliver()
        assert told.value.record is not None
        assert told.value.record.output_text == "Nice to meet you, Alice."
    else:
        await deliver()
    assert await column.stored() == ("U A" if column.ours else "U A U A")


WORKER = """
import asyncio, os, signal, sys
from agents import Agent, Runner, SQLiteSession, set_tracing_disabled
from session_middleware import SQLiteSessionMemory, TurnInProgress, session_scope
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.conditions import until
from tests.support.sessions import tool

column, dies = sys.argv[1:]
set_tracing_disabled(True)
memory = SQLiteSessionMemory("chat.db", lease=0.5)

def charge():
    with open("charges", "a") as charges:
        charges.write("500\\n")
    if dies == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return "charged"

async def main():
    steps = (call("charge"), assistant("charged")) if dies == "dies" or column != "ours" else (
        assistant("I don't know whether you were charged."),)
    agent = scripted_agent(*steps, tools=[tool("charge", charge)])

    async def charged():
        try:
            async with session_scope("user_1", memory=memory, idempotency_key="event-17"):
                await Runner.run(agent, "Charge me.", session=memory.session("user_1"))
        except TurnInProgress:  # as long as the lease of the dead worker lasts
            return False
        return True

    if column == "ours":
        await until(charged)
    else:
        await Runner.run(agent, "Charge me.", session=SQLiteSession("user_1", "chat.db"))

asyncio.run(main())
"""


def test_a_worker_killed_inside_a_tool(
    column: Column, programs: Programs, tmp_path: Path, do: Any
) -> None:
    """The SDK's session knows nothing of the tool; with ours the model is told of it."""
    for how in ("dies", "lives"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = programs.run("-c", WORKER, column.name, how, cwd=tmp_path, env=environment)
        assert done.returncode == (-signal.SIGKILL if how == "dies" else 0), done.stderr
    charges = (tmp_path / "charges").read_text().split()
    assert charges == (["500"] if column.ours else ["500", "500"])
    assert do(column.stored()) == ("U C O A" if column.ours else "U U C O A")


async def test_an_approval_answered_elsewhere(column: Column) -> None:
    """Other turns came between, and two people approve the same call."""
    charges: list[str] = []
    pay = counted("pay", charges, needs_approval=True)
    parked = await Runner.run(
        scripted_agent(call("pay"), tools=[pay]), "Pay the bill.", session=column.session
    )
    kept = parked.to_state().to_json()
    await Runner.run(scripted_agent(assistant("hello")), "Hello?", session=column.session)

    async def answer() -> None:
        agent = scripted_agent(assistant("paid"), tools=[pay])
        state = await RunState.from_json(agent, kept)
        for waiting in state.get_interruptions():
            state.approve(waiting)
        await Runner.run(agent, state, session=column.session)

    await answer()
    if column.ours:
        with pytest.raises(DuplicateTurn):
            await answer()
    else:
        await answer()
    assert len(charges) == (1 if column.ours else 2)
    assert await column.stored() == ("U C O A U A" if column.ours else "U C U A O A O A")


async def test_a_tab_closed_in_mid_stream(column: Column) -> None:
    """The server cancels the task that reads the stream, as Starlette does."""
    in_tool, may_go = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        in_tool.set()
        await may_go.wait()
        return "worked"

    agent = scripted_agent(call("work"), assistant("done"), tools=[tool("work", work)])
    result = Runner.run_streamed(agent, "Work.", session=column.session)

    async def read() -> None:
        async for _ in result.stream_events():
            pass

    reader = asyncio.create_task(read())
    await in_tool.wait()
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    may_go.set()
    assert result.run_loop_task is not None
    with contextlib.suppress(asyncio.CancelledError):
        await result.run_loop_task
    assert await column.stored() == ("U C O A" if column.ours else "U")


async def test_the_session_in_every_trace(
    column: Column, sdk_traces: Any, otel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's session is in no trace; ours is in the SDK's, and on every OpenTelemetry span."""
    from opentelemetry import trace

    monkeypatch.setattr(trace, "get_tracer_provider", lambda: otel.tracer_provider)
    await Runner.run(local_agent(), "Hi, I'm Alice.", session=column.session)
    assert ("user_1" in str(sdk_traces.started)) is column.ours
    assert sdk_traces.group_ids == (["user_1"] if column.ours else [None])
    assert bool(otel.spans) is column.ours
    assert {span.attributes["session.id"] for span in otel.spans} == (
        {"user_1"} if column.ours else set()
    )


def test_every_row_has_its_test() -> None:
    """Every row of the table in README.md links a test of this file, and no test is left out."""
    rows = re.findall(r"^\|.*\(tests/acceptance/test_beside_the_sdk\.py\) \|$", _readme(), re.M)
    linked = {re.findall(r"`(test_\w+)`", row)[-1] for row in rows}
    written = set(re.findall(r"def (test_\w+)", Path(__file__).read_text()))
    assert linked == written - {"test_every_row_has_its_test"}


def _readme() -> str:
    return (ROOT / "README.md").read_text()
