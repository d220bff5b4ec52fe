"""Tools that receive traces have the sessions of a service as they were made."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.environments import LIBRARIES, output_of, python_with
from tests.interop.receivers import RECEIVERS, Receiver, SessionSeen

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]  # most of it goes into installing

SERVICE = Path(__file__).with_name("service.py")
SENT = {"alice": (3, 20), "bob": (2, 14), "carol": (2, 10), "dora": (1, 2)}
"""Traces and tokens of each session: a turn that waited has two traces, each attempt has one."""

WRITES_WITHIN = 60.0  # seconds; what was accepted is written in the background


@pytest.fixture(params=RECEIVERS)
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    """One tool after the other, running."""
    with RECEIVERS[request.param](tmp_path) as running:
        yield running


def environment(library: str) -> Path:
    """The interpreter of a service that is traced by us, and by this library."""
    name = "openinference" if library == "alone" else library
    return python_with(
        name,
        LIBRARIES[name],
        "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry-instrumentation-fastapi",
        "fastapi",
        "httpx",
    )


@pytest.mark.parametrize("library", ["alone", "openinference", "genai"])
def test_a_tool_has_the_sessions_of_a_service(
    receiver: Receiver, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their traces and their tokens, none of them twice; every span of ours has a kind."""
    monkeypatch.setitem(os.environ, "OTEL_EXPORTER_OTLP_HEADERS", receiver.headers)
    for part in ("first", "resume"):
        database = str(tmp_path / "service.db")
        printed = output_of(environment(library), SERVICE, library, receiver.url, database, part)
    assert json.loads(printed)["carol"] == [[1, "replaced"], [2, "completed"]]
    give_up = time.monotonic() + WRITES_WITHIN
    found: dict[str, SessionSeen] = {}
    while time.monotonic() < give_up:
        found = receiver.sessions()
        if {name: (seen.traces, seen.tokens) for name, seen in found.items()} == SENT:
            break
        time.sleep(0.5)
    assert {name: (seen.traces, seen.tokens) for name, seen in found.items()} == SENT
    told = {name: (seen.first_input, seen.last_output) for name, seen in found.items()}
    if any(told["alice"]):  # of MLflow the texts are not asked
        assert told["alice"] == ("What is the weather in Paris?", "The tool says: sunny in Rome")
        assert told["dora"] == (None, None)  # the root of that trace is the web framework's
    ours = ("session_turn", "acquire_session", "search_memory", "create_memory", "end_turn")
    kinds = {name: kind for name, kind in receiver.kinds().items() if name.startswith(ours)}
    assert not {name for name, kind in kinds.items() if "UNKNOWN" in kind}
