"""A conversation on a disk whose calls fail, checked by another process after each fault.

The conversation is ``conversation`` in ``tests/support/processes.py``. A call on its file fails, is
cut short or kills the process. What a power failure leaves is in ``tests/stores/sqlite``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from agents import Runner

from session_middleware import SQLiteSessionMemory, with_session_memory
from tests.support.faults import Faults, needs_compiler
from tests.support.faults.shim import Call, Outcome
from tests.support.forks import Script, fork_server
from tests.support.interruptions import noting_agent, shape, violations
from tests.support.processes import PATIENCE
from tests.support.programs import Program, forking_programs

pytestmark = needs_compiler

PARTS = {
    "whole": "UCOA",
    "streamed": "UCOA",
    "retried": "UCOA",
    "approved": "UCOA",
    "discarded": "",
}
"""The parts of the conversation, each in a session of its name, and what it leaves there."""

FAULTS: list[tuple[Call, Outcome]] = [
    ("write", "fail"),
    ("write", "short"),
    ("write", "kill"),
    ("fsync", "fail"),
    ("fsync", "kill"),
    ("open", "fail"),
    ("truncate", "fail"),
]


@dataclass
class Stage:
    """Where conversations are held: each on a file of its own, with faults as they are armed."""

    folder: Path
    faults: Faults
    server: Program
    held: int = 0

    def hold(self) -> tuple[Path, list[str]]:
        """Hold a conversation; returns its file and what it said."""
        self.held += 1
        path = self.folder / f"chat-{self.held}.db"
        script = Script(self.server, self.folder / f"pipe-{self.held}", "conversation", path)
        return path, script.said()

    @cached_property
    def counts(self) -> dict[Call, int]:
        """How many calls of each kind a conversation without a fault makes."""
        self.faults.disarm()
        self.faults.forget_counts()
        path, said = self.hold()
        assert said == [*(f"{part}: acknowledged" for part in PARTS), "finished"]
        check(path, said)
        return dict(self.faults.counts)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One server for all conversations of this module, under the shim."""
    folder = tmp_path_factory.mktemp("faulty")
    faults = Faults(folder / "chat", folder)
    with (
        forking_programs(faults.environment) as programs,
        fork_server(programs) as server,
    ):
        yield Stage(folder, faults, server)


def check(path: Path, said: list[str]) -> None:
    """Whatever failed: the file is sound, what was acknowledged is whole, no effect came twice."""
    acknowledged = {line.partition(":")[0] for line in said if line.endswith(": acknowledged")}
    for line in said:
        part, _, outcome = line.partition(": ")
        known = outcome in ("acknowledged", "MemoryUnavailable", "TurnLost", "OutcomeUnknown")
        assert line == "finished" or (part in PARTS and known), "\n".join(said)
    asyncio.run(_check_sessions(path, acknowledged))
    effects = path.with_name(f"effects of {path.name}")
    done = effects.read_text().split() if effects.exists() else []
    assert len(done) == len(set(done)), done
    assert acknowledged <= set(done), (acknowledged, done)


async def _check_sessions(path: Path, acknowledged: set[str]) -> None:
    async with SQLiteSessionMemory(path, lease=0.5) as memory:
        sound = await memory._read(lambda c: c.execute("PRAGMA integrity_check").fetchone()[0])
        assert sound == "ok"
        for part, whole in PARTS.items():
            items = await memory.load_session(part)
            if part in acknowledged:
                assert shape(items) == whole, part
            assert violations(items, pending=True) == [], part
        run: Any = with_session_memory(Runner.run, memory=memory, wait_timeout=PATIENCE)
        for part in PARTS:  # and the conversation can go on
            await run(noting_agent([]), "the next", session_id=part)
            assert shape(await memory.load_session(part)).endswith("UCOA")


def hold_with(stage: Stage, call: Call, outcome: Outcome, nth: int) -> None:
    stage.faults.arm(call, nth, outcome=outcome)
    path, said = stage.hold()
    stage.faults.disarm()
    try:
        check(path, said)
    except AssertionError as error:
        raise AssertionError(f"{call} {nth}: {outcome}: {said}") from error


@pytest.mark.parametrize(("call", "outcome"), FAULTS)
def test_a_call_that_fails_loses_and_doubles_nothing(
    stage: Stage, call: Call, outcome: Outcome
) -> None:
    """Two of the calls of each kind: in the middle, and near the end."""
    count = stage.counts[call]
    for nth in sorted({count // 2 + 1, max(1, count - 1)}):
        hold_with(stage, call, outcome, nth)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("call", "outcome"), FAULTS)
def test_every_call_that_fails(stage: Stage, call: Call, outcome: Outcome) -> None:
    """Each of the calls of each kind."""
    for nth in range(1, stage.counts[call] + 1):
        hold_with(stage, call, outcome, nth)
