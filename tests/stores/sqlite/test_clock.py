"""Processes whose wall clocks are set, or were never the same, on one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults import Faults, needs_compiler
from tests.support.store_scripts import Scripts

pytestmark = needs_compiler

HOLD = """
async def main():
    lease = (await acquire("a")).lease
    say(f"{time.time():.0f}")
    await asyncio.to_thread(input)
    await memory.append_items(lease, 1, 0, [user("still mine")])
    await memory.end_turn(lease, completed())
asyncio.run(main())
"""
ASK = """
async def main():
    try:
        await acquire("a")
        say("acquired")
    except SessionBusy as busy:
        say("busy" if 0 < busy.retry_after <= 2 else "odd")
asyncio.run(main())
"""


@pytest.mark.parametrize("seconds", [-3600, -60, -2, 2, 60, 3600])
def test_clocks_that_differ_take_no_session_away(tmp_path: Path, seconds: float) -> None:
    """A process whose clock is before or behind finds the session held, and its turn goes on."""
    faults = Faults(tmp_path / "chat.db", tmp_path)
    faults.set_clock(seconds)
    with (
        Scripts(tmp_path / "chat.db") as here,
        Scripts(tmp_path / "chat.db", faults.environment) as elsewhere,
    ):
        answers: list[str] = []
        here.run(HOLD, meanwhile=lambda: answers.append(elsewhere.run(ASK)))
        assert answers == ["busy\n"]


@pytest.mark.parametrize("seconds", [-3600, -2, 60, 3600])
def test_a_clock_that_is_set_takes_no_session_away(tmp_path: Path, seconds: float) -> None:
    """Nor does it when the clock of all processes is set while the session is held."""
    faults = Faults(tmp_path / "chat.db", tmp_path)
    with Scripts(tmp_path / "chat.db", faults.environment) as scripts:
        answers: list[str] = []

        def set_and_ask() -> None:
            faults.set_clock(seconds)
            answers.append(scripts.run(ASK))

        scripts.run(HOLD, meanwhile=set_and_ask)
        assert answers == ["busy\n"]
