"""The service of docs/guides/fastapi.md as two processes on one file, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import ROOT
from tests.support.programs import DEVNULL, Programs

MODEL = """
import asyncio, pathlib
from agents import set_tracing_disabled
from session_middleware.testing import LocalModel

set_tracing_disabled(True)

class Waiting(LocalModel):
    async def stream_response(self, *given, **options):
        pathlib.Path("asked").touch()
        while not pathlib.Path("may answer").exists():
            await asyncio.sleep(0.01)
        async for event in super().stream_response(*given, **options):
            yield event
"""
SERVICE = re.search(
    r"^```python\n(.*?)^```",
    (ROOT / "docs/guides/fastapi.md").read_text(),
    re.MULTILINE | re.DOTALL,
)


class Worker:
    """One process of the service."""

    def __init__(self, programs: Programs) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ("-m", "uvicorn", "service:app", "--port", str(port))
        self.process = programs.start(*command, stderr=DEVNULL, stdout=DEVNULL)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def is_up(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def say(self, text: str, key: str) -> httpx.Response:
        return self.client.post("/threads/7", json={"text": text}, headers={"Idempotency-Key": key})

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def workers(programs: Programs, tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    assert SERVICE is not None
    text = SERVICE[1].replace('Agent(name="Assistant")', 'Agent(name="Assistant", model=Waiting())')
    text = text.replace("sqlite:///chat.db", "sqlite:///chat.db?lease=1")
    assert text.count("Waiting()") == text.count("lease=1") == 1
    (tmp_path / "service.py").write_text(MODEL + text)
    both = Worker(programs), Worker(programs)
    wait_until(lambda: all(worker.is_up() for worker in both))
    yield both
    for worker in both:
        worker.end()


def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.02)


def test_a_worker_is_killed_and_the_request_made_again(workers: tuple[Worker, Worker]) -> None:
    """Busy and in progress are 409; the other worker takes the request up, and knows it then."""
    first, second = workers
    lost: list[Any] = []

    def ask() -> None:
        try:
            lost.append(first.say("Hi, I'm Alice.", "a1").text)
        except httpx.TransportError:
            lost.append(None)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(Path("asked").exists)
    same, other = second.say("Hi, I'm Alice.", "a1"), second.say("Hello?", "b1")
    assert [same.status_code, other.status_code] == [409, 409]
    assert all(int(each.headers["Retry-After"]) >= 1 for each in (same, other))

    os.kill(first.process.pid, signal.SIGKILL)
    asking.join()
    assert lost == [None]
    Path("may answer").touch()
    wait_until(lambda: second.say("Hi, I'm Alice.", "a1").status_code == 200)
    again = second.say("Hi, I'm Alice.", "a1")
    assert again.text == 'data: "Nice to meet you, Alice."\n\n'
    assert second.say("Something else", "a1").status_code == 422
    name = second.say("What's my name?", "c1")
    assert "".join(re.findall(r'data: "(.*)"', name.text)) == "Your name is Alice."
