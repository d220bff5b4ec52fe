"""Examples as their readers have them: one file, alone in an empty folder, in a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support import ROOT
from tests.support.ports import free_port
from tests.support.programs import PIPE, STDOUT, Ended, Program, Programs

EXAMPLES = ROOT / "examples"
PATIENCE = 90.0


def alone(name: str, folder: Path) -> Path:
    """A folder with nothing in it but this example."""
    made = folder / name
    made.mkdir()
    shutil.copy(EXAMPLES / f"{name}.py", made)
    return made


def run(programs: Programs, folder: Path, *arguments: str, given: str = "") -> Ended:
    """Run the example in its folder, ``given`` as its input."""
    file = f"{folder.name}.py"
    return programs.run(file, *arguments, given=given, cwd=folder, timeout=PATIENCE)


def run_by_itself(folder: Path) -> Any:
    """Run the example by an interpreter, as its reader does."""
    return subprocess.run(
        [sys.executable, f"{folder.name}.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        timeout=PATIENCE,
    )


def start(programs: Programs, folder: Path, *command: str, **given: Any) -> Program:
    """Start a command of Python's in the folder."""
    return programs.start(*command, cwd=folder, stdout=PIPE, stderr=STDOUT, **given)


@contextmanager
def served(programs: Programs, folder: Path, **environment: str) -> Iterator[httpx.Client]:
    """A client of the example's service, which runs in two processes at one port."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        port: int = listening.getsockname()[1]
        command = ("-m", "uvicorn", f"{folder.name}:app", "--fd", "0")
        given = {"stdin": listening.fileno(), "env": os.environ | environment}
        processes = [start(programs, folder, *command, **given) for _ in range(2)]
        for process in processes:
            stack.callback(lambda ended=process: print(ended.communicate()[0]))
            stack.callback(process.kill)
        listening.close()
        yield stack.enter_context(_client(port, processes))


@contextmanager
def served_by_workers(folder: Path, **environment: str) -> Iterator[httpx.Client]:
    """The same where uvicorn starts the two, as the reader of the example has it do."""
    port = free_port()
    # A worker that takes long to start on a busy machine is not dead.
    patient = f"--timeout-worker-healthcheck {PATIENCE:.0f}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", f"{folder.name}:app"),
            *f"--workers 2 --port {port} {patient}".split(),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        start_new_session=True,
    )
    try:
        with _client(port, [process]) as client:
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        print(process.communicate()[0])


@contextmanager
def _client(port: int, processes: Sequence[Any]) -> Iterator[httpx.Client]:
    # A connection for each request, so that either worker may get it.
    limits = httpx.Limits(max_keepalive_connections=0)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=PATIENCE, limits=limits) as client:
        _wait_until_it_answers(client, processes)
        yield client


def _wait_until_it_answers(client: httpx.Client, processes: Sequence[Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.get("/openapi.json")
            return
        except httpx.TransportError:
            assert all(process.poll() is None for process in processes), "the service ended"
            assert time.monotonic() < deadline, "the service does not answer"
            time.sleep(0.05)
