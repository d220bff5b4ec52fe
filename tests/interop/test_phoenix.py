"""Phoenix, a tool that groups traces by session, has ours as sessions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from environments import CHECKOUT, output_of, python_with

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]  # most of it goes into installing


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with Phoenix."""
    return python_with("phoenix", "arize-phoenix")


def test_turns_are_the_traces_of_their_session(python: Path) -> None:
    """Three turns of one session and two of another are that in Phoenix's own interface."""
    printed = output_of(python, Path(__file__).with_name("phoenix_sessions.py"))
    assert json.loads(printed)["sessions"] == {"user_alice": 3, "user_bob": 2}


def test_the_example_says_what_to_start(
    python: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where nothing listens it ends at once, and makes no turn."""
    monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(subprocess.CalledProcessError):
        output_of(python, CHECKOUT / "examples" / "tracing_phoenix.py")
    assert capfd.readouterr().err.splitlines() == [
        "Nothing answers at http://127.0.0.1:9: start Phoenix first, with `phoenix serve`."
    ]
