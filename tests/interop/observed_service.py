"""Services under load, each with one fault, whose metrics a Prometheus server scrapes.

    python tests/interop/observed_service.py FOLDER FAULT=PORT ...

It runs in an environment with opentelemetry-exporter-prometheus. Each service is a process, answers
on 127.0.0.1:PORT/metrics, keeps its sessions in a folder of its own, and goes on until it is
ended. FAULT is a name of ``FAULTS``; each is made with means that real life has: locks on the
file, a killed process, a released session.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from agents import Runner
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from session_middleware import (
    MemoryUnavailable,
    SQLiteSessionMemory,
    TurnInProgress,
    last_turns,
    with_session_memory,
)
from session_middleware.stores.records import AcquireRequest, TurnEnd
from tests.support.conditions import until
from tests.support.interruptions import noting_agent

SESSIONS = 4
LEASE = 1.0
WAITS_FOR = 12.0  # seconds: longer than the rule on waiting allows


class Service:
    """What every fault needs: a file, its memory, and turns on it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.path = folder / "service.db"
        timeout = options.pop("operation_timeout", 10.0)
        self.memory = SQLiteSessionMemory(self.path, lease=LEASE, operation_timeout=timeout)
        self.options = {"memory": self.memory, "wait_timeout": 60, **options}
        self.agent = noting_agent([])

    async def turn(self, session_id: str, agent: Any = None, **call: Any) -> None:
        """One turn; a fault may fail it."""
        run = with_session_memory(Runner.run, **self.options)
        with contextlib.suppress(Exception):
            await run(agent or self.agent, "Hi", session_id=session_id, **call)

    async def load(self) -> None:
        """Turns on several sessions at once, without end, nobody waiting for anybody."""

        async def one(session_id: str) -> None:
            while True:
                await self.turn(session_id)
                with contextlib.suppress(MemoryUnavailable):
                    await self.memory.clear_session(session_id)
                await asyncio.sleep(0.5)  # the rate of the load

        await asyncio.gather(*(one(f"s{number}") for number in range(SESSIONS)))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Another program writes to the file meanwhile."""
        other = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        other.execute("PRAGMA busy_timeout = 60000")
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()

    def locks(self, seconds: float, pause: float) -> None:
        """Lock the file for so long, again and again, from a thread of its own."""

        def again() -> None:
            while True:
                with self.locked():
                    time.sleep(seconds)
                time.sleep(pause)

        threading.Thread(target=again, daemon=True).start()


async def _first(turn: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait until the turn is where it sets the event, or has failed before."""
    reached = asyncio.ensure_future(event.wait())
    await asyncio.wait((turn, reached), return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()


async def _is_over(memory: SQLiteSessionMemory, request: AcquireRequest) -> bool:
    """Whether the turn with the key of this request is at work no more."""
    try:
        await memory.look_up(request)
    except TurnInProgress:
        return False
    return True


# --- faults ----------------------------------------------------------------------------------


async def none(folder: Path) -> None:
    """Load alone; one history has a fault of its own, and is cut by a window."""
    service = Service(folder, window=last_turns(1))
    orphan = {"type": "function_call_output", "call_id": "call_0", "output": "orphan"}

    async def odd() -> None:
        while True:
            item = {"role": "user", "content": "Hi"}
            await service.memory.append_to_session("odd", [item])
            await service.memory.append_to_session("odd", [item, orphan])
            await service.turn("odd")
            await asyncio.sleep(1)

    await asyncio.gather(service.load(), odd())


async def lost(folder: Path) -> None:
    """Sessions are released while turns hold them."""
    service = Service(folder)
    in_tool, released = asyncio.Event(), asyncio.Event()

    async def until_released() -> None:
        in_tool.set()
        await released.wait()

    agent = noting_agent([], tool_waits=until_released)

    async def one() -> None:
        while True:
            in_tool.clear()
            released.clear()
            turn = asyncio.create_task(service.turn("lost", agent))
            await _first(turn, in_tool)
            await service.memory.release("lost")
            released.set()
            await turn
            await asyncio.sleep(0.3)  # to be no busier than the other services

    await asyncio.gather(service.load(), one())


async def died(folder: Path) -> None:
    """Processes die while they hold a session, and others take it over."""
    service = Service(folder)

    async def one() -> None:
        for number in itertools.count():
            await child(service.path, f"died-{number}", None)
            await service.turn(f"died-{number}")

    await asyncio.gather(service.load(), one())


async def unknown(folder: Path) -> None:
    """A process dies inside a tool of a request that is made again."""
    service = Service(folder)

    async def one() -> None:
        for number in itertools.count():
            session_id, key = f"unknown-{number}", f"key-{number}"
            await child(service.path, session_id, key)
            request = AcquireRequest(session_id, datetime.now(UTC), idempotency_key=key)
            await until(partial(_is_over, service.memory, request))
            await service.turn(session_id, idempotency_key=key)

    await asyncio.gather(service.load(), one())


async def slow(folder: Path) -> None:
    """Another program locks the file for some seconds, again and again."""
    service = Service(folder, operation_timeout=60)
    await service.memory.append_to_session("first", [{"role": "user", "content": "Hi"}])
    service.locks(8, 1)
    await service.load()


async def gone(folder: Path) -> None:
    """The file stays locked for longer than turns wait."""
    service = Service(folder, operation_timeout=0.2)
    await service.memory.append_to_session("first", [{"role": "user", "content": "Hi"}])
    service.locks(3, 2)
    await service.load()


async def forgotten(folder: Path) -> None:
    """The same, and turns go on without memory."""
    service = Service(folder, operation_timeout=0.2, on_unavailable="forget")
    await service.memory.append_to_session("first", [{"role": "user", "content": "Hi"}])
    service.locks(3, 2)
    await service.load()


async def waiting(folder: Path) -> None:
    """Turns of one session wait for one that takes its time."""
    service = Service(folder)
    in_tool = asyncio.Event()

    async def takes_its_time() -> None:
        in_tool.set()
        await asyncio.sleep(WAITS_FOR)

    slow = noting_agent([], tool_waits=takes_its_time)

    async def one() -> None:
        while True:
            in_tool.clear()
            holder = asyncio.create_task(service.turn("waiting", slow))
            await _first(holder, in_tool)
            await asyncio.gather(holder, *(service.turn("waiting") for _ in range(40)))

    # Without other load: one turn in twenty is to wait.
    await one()


async def parked(folder: Path) -> None:
    """A turn waits for its approval since two days."""
    service = Service(folder)
    since = datetime.now(UTC) - timedelta(days=2)
    acquired = await service.memory.acquire(AcquireRequest("parked", since))
    await service.memory.end_turn(
        acquired.lease, TurnEnd("awaiting_approval", since, park=("parked",))
    )
    await service.load()


FAULTS: dict[str, Callable[[Path], Awaitable[None]]] = {
    fault.__name__: fault
    for fault in (none, lost, died, unknown, slow, gone, forgotten, waiting, parked)
}


# --- processes -------------------------------------------------------------------------------


async def child(path: Path, session_id: str, key: str | None) -> None:
    """A process that is killed while its turn is in a tool."""
    program = [sys.executable, __file__, "child", str(path), session_id, key or ""]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    await process.wait()


class _Announced(list[str]):
    """Effects that say so as soon as there is one."""

    def append(self, what: str) -> None:
        print("in tool", flush=True)


def be_killed(path: str, session_id: str, key: str) -> None:
    """Run a turn whose tool does not end."""
    memory = SQLiteSessionMemory(path, lease=LEASE)
    run = with_session_memory(Runner.run, memory=memory)
    agent = noting_agent(_Announced(), tool_waits=lambda: asyncio.sleep(600))
    asyncio.run(run(agent, "Hi", session_id=session_id, idempotency_key=key or None))


def end_with(parent: int) -> None:
    """End this process once its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(fault: str, port: int, folder: Path) -> None:
    """Serve metrics, and make turns under the fault."""
    folder.mkdir()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    start_http_server(port, "127.0.0.1")
    asyncio.run(FAULTS[fault](folder))


def main(folder: str, *services: str) -> None:
    """Fork a process for each service, quicker than to start it; they end with this one."""
    os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
    children = []
    for service in services:
        fault, _, port = service.partition("=")
        child = os.fork()
        if child == 0:
            serve(fault, int(port), Path(folder) / fault)
            os._exit(1)  # a service that ends is none
        children.append(child)

    def end(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    os.wait()
    end()


if __name__ == "__main__":
    if sys.argv[1] == "child":
        be_killed(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
