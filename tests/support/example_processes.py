"""Examples as their readers have them: one file, alone in an empty folder, in a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support import ROOT
from tests.support.ports import free_port

EXAMPLES = ROOT / "examples"
PATIENCE = 90.0


def alone(name: str, folder: Path) -> Path:
    """A folder with nothing in it but this example."""
    made = folder / name
    made.mkdir()
    shutil.copy(EXAMPLES / f"{name}.py", made)
    return made


def run(folder: Path, *arguments: str, given: str = "", **environment: str) -> Any:
    """Run the example in its folder, ``given`` as its input; returns the finished process."""
    return subprocess.run(
        [sys.executable, f"{folder.name}.py", *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        check=False,
        timeout=PATIENCE,
    )


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command of Python's in the folder, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> str:
    """Kill the process with all that it started; returns what it printed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


@contextmanager
def served(folder: Path, **environment: str) -> Iterator[httpx.Client]:
    """A client of the example's service, which runs with two workers."""
    port = free_port()
    command = f"-m uvicorn {folder.name}:app --workers 2 --port {port}"
    # A worker that takes long to start on a busy machine is not dead.
    patient = f"--timeout-worker-healthcheck {PATIENCE:.0f}"
    process = start(folder, *f"{command} {patient}".split(), **environment)
    url = f"http://127.0.0.1:{port}"
    # A connection for each request, so that either worker may get it.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=PATIENCE, limits=limits) as client:
        try:
            _wait_until_it_answers(client, process)
            yield client
        finally:
            print(kill(process))


def _wait_until_it_answers(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.get("/openapi.json")
            return
        except httpx.TransportError:
            assert process.poll() is None, "the service ended"
            assert time.monotonic() < deadline, "the service does not answer"
            time.sleep(0.05)
