"""``session-middleware inspect`` as a process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from session_middleware import SQLiteSessionMemory
from session_middleware.conformance.samples import user
from tests.support.programs import PIPE, Program, Programs

Command = Callable[..., Program]


@pytest.fixture
def command(programs: Programs, tmp_path: Path) -> Command:
    """Start it with these arguments in an empty folder."""
    inspect = ("-m", "session_middleware.cli", "inspect")
    return partial(programs.start, *inspect, cwd=tmp_path, stdout=PIPE, stderr=PIPE)


async def test_the_page_is_served_until_ctrl_c(command: Command, tmp_path: Path) -> None:
    """At the address that is printed, in the scope that is named; then it ends in peace."""
    memory = SQLiteSessionMemory(tmp_path / "chat.db")
    await memory.scoped("a").append_to_session("mine", [user("hello from a")])
    await memory.scoped("b").append_to_session("theirs", [user("hello from b")])
    await memory.cleanup()
    with command("--memory", "chat.db", "--scope", "a", "--json") as process:
        try:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            assert address.startswith("http://127.0.0.1:")
            lower = os.getpriority(os.PRIO_PROCESS, process.pid)
            assert lower == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
            async with httpx.AsyncClient(follow_redirects=True, timeout=60) as client:
                assert (await client.get(address.split("?")[0])).status_code == 401
                text = (await client.get(address)).text
            assert "hello from a" in text
            assert "hello from b" not in text
            assert "read only" in text
        finally:
            process.signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_a_file_that_is_not_there_is_not_made(command: Command, tmp_path: Path) -> None:
    """One line says so."""
    with command("--memory", "none.db") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("session-middleware: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_trace_url_without_a_trace_is_refused(command: Command) -> None:
    with command("--memory", ":memory:", "--trace-url", "http://t.example/") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "{trace_id}" in said
    assert "Traceback" not in said
