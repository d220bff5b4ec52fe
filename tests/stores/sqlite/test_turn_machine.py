"""Turns in any order, as several memory objects on one file make them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from session_middleware import SQLiteSessionMemory
from session_middleware.stores.sqlite import clock
from tests.support.turn_machine import FEW, run_machine


class File:
    """A file, and what the memories on it take for the time."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.seconds = 1_000_000.0
        self.patched = mock.patch.object(clock, "now", self.now)
        self.patched.start()

    def now(self) -> clock.Now:
        return clock.Now(self.seconds, self.seconds, clock.boot_id())

    def open(self, lease: float) -> Any:
        return SQLiteSessionMemory(self.folder / "memory.db", lease=lease, synchronous="NORMAL")

    async def pass_time(self, seconds: float) -> None:
        self.seconds += seconds

    def close(self) -> None:
        self.patched.stop()
        shutil.rmtree(self.folder)


def test_turns_of_several_memories_on_one_file() -> None:
    """A few stories of turns, the same in every run."""
    run_machine(File, examples=FEW, steps=25)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_stories_of_turns() -> None:
    """Many and longer stories of turns."""
    run_machine(File, examples=200, steps=50)
