"""The example of a memory of one's own passes the conformance suite, and says what it skips."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from session_middleware.conformance import MemoryConformance, check
from session_middleware.memory import SessionMemory
from tests.support import ROOT


@pytest.fixture
def folder_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class in examples/custom_memory.py."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from custom_memory import FolderMemory  # type: ignore[import-not-found]  # a script

    return FolderMemory


def test_the_example_passes_the_suite(folder_memory: Any, tmp_path: Path) -> None:
    """Nothing fails; what is skipped needs turns, or a hook that the suite does not have."""

    class Suite(MemoryConformance):
        def make_memory(self) -> SessionMemory:
            self.folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            memory: SessionMemory = folder_memory(self.folder)
            return memory

        def make_peer(self, memory: Any) -> SessionMemory:
            peer: SessionMemory = folder_memory(self.folder)
            return peer

        async def raw_items(self, memory: Any, session_id: str) -> list[Any]:
            files = [json.loads(file.read_text()) for file in self.folder.glob("*.json")]
            return [item for file in files if file["id"] == session_id for item in file["items"]]

        async def raw_bytes(self, memory: Any) -> bytes:
            return b"".join(file.read_bytes() for file in self.folder.iterdir())

    report = check(Suite)
    assert report.failed == {}, report
    assert len(report.passed) > 15
    hooks = {reason for reason in report.skipped.values() if "capability" not in reason}
    assert hooks == {"the suite does not override the hook unavailable()"}
    lacks_turns = "the memory does not declare the capability 'turns'"
    assert report.skipped["test_a_lost_turn_writes_nothing"] == lacks_turns
    assert "skipped 1: the suite does not override the hook unavailable()" in str(report)


def test_every_test_is_a_plain_method() -> None:
    """A test that lacks its decorator would be a coroutine that nobody awaits."""
    tests = [name for name in dir(MemoryConformance) if name.startswith("test_")]
    assert len(tests) > 100
    for name in tests:
        assert not inspect.iscoroutinefunction(getattr(MemoryConformance, name)), name
