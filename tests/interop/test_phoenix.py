"""The example for Phoenix, a tool that groups traces by session."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.interop.environments import CHECKOUT, output_of, python_with
from tests.interop.receivers import phoenix

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]  # most of it goes into installing

EXAMPLE = CHECKOUT / "examples" / "tracing_phoenix.py"


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with Phoenix."""
    return python_with("phoenix", "arize-phoenix")


def test_turns_are_the_traces_of_their_session(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three turns of one session and two of another are that in Phoenix's own interface."""
    with phoenix(tmp_path) as receiver:
        monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", receiver.url)
        output_of(python, EXAMPLE)
        give_up = time.monotonic() + 60
        found: dict[str, int] = {}
        while found != {"user_alice": 3, "user_bob": 2} and time.monotonic() < give_up:
            time.sleep(0.5)
            found = {name: seen.traces for name, seen in receiver.sessions().items()}
    assert found == {"user_alice": 3, "user_bob": 2}


def test_the_example_says_what_to_start(
    python: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where nothing listens it ends at once, and makes no turn."""
    monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(subprocess.CalledProcessError):
        output_of(python, EXAMPLE)
    assert capfd.readouterr().err.splitlines() == [
        "Nothing answers at http://127.0.0.1:9: start Phoenix first, with `phoenix serve`."
    ]
