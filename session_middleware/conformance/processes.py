"""Other processes on the same storage: writing at once, killed, with clocks set wrong."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import TurnTests, acquire, end, refused
from session_middleware.errors import SessionBusy
from session_middleware.stores.protocol import TURNS

_WRITERS, _TURNS = 2, 8

_PRELUDE = """
import asyncio, datetime, sys, time
from session_middleware.errors import SessionBusy
from session_middleware.stores.records import AcquireRequest, TurnEnd

def now():
    return datetime.datetime.now(datetime.UTC)

async def acquire(session_id):
    while True:
        try:
            return await memory.acquire(AcquireRequest(session_id, now()))
        except SessionBusy:
            await asyncio.sleep(0.01)
"""

_CLOCKS = """
import datetime, time
seconds = 0
_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime
time.time = lambda: _time() + seconds
time.time_ns = lambda: _time_ns() + int(seconds * 1e9)
class Shifted(_datetime):
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetime.timedelta(seconds=seconds)
    @classmethod
    def utcnow(cls):
        return _datetime.utcnow() + datetime.timedelta(seconds=seconds)
datetime.datetime = Shifted
"""

_WRITES = """
async def main():
    for number in range({turns}):
        acquired = await acquire("s")
        for position in range(3):
            item = {{"role": "user", "content": f"{name}.{{number}}.{{position}}"}}
            await memory.append_items(acquired.lease, 1, position, [item])
        await memory.end_turn(acquired.lease, TurnEnd("completed", now(), runs={{1: "completed"}}))
    await memory.cleanup()
"""

_HOLDS = """
async def main():
    acquired = await acquire("s")
    await memory.append_items(acquired.lease, 1, 0, [{"role": "user", "content": "acknowledged"}])
    print("held", flush=True)
    await asyncio.Event().wait()
"""

_ASKS = """
async def main():
    global seconds
    for seconds in (0, 3600, -3600):
        try:
            await memory.acquire(AcquireRequest("s", now()))
        except SessionBusy as busy:
            print(f"{seconds} s: busy with turn {busy.turn}", flush=True)
        else:
            print(f"{seconds} s: acquired", flush=True)
    await memory.cleanup()
"""


class ProcessTests(TurnTests):
    """Tests that need ``peer_program``."""

    @asynccontextmanager
    async def _process(self, memory: Any, body: str, first: str = "") -> AsyncIterator[Process]:
        """A process that runs ``main()`` of the body with a memory on the same storage."""
        program = self.peer_program(memory)
        whole = "\n".join([first, _PRELUDE, program, body, "asyncio.run(main())"])
        process = await self._start(whole)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def _start(self, program: str) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=PIPE, stderr=PIPE
        )

    async def _said(self, process: Process) -> str:
        """The output of a process, which must have ended without an error."""
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    @given_a_memory
    @needs(TURNS)
    async def test_processes_write_whole_turns(self, memory: Any) -> None:
        """Several processes in one session: every turn is there once, whole and in order."""
        await memory.session_exists("s")  # whatever has to be made first is made

        async def write(name: str) -> None:
            body = _WRITES.format(name=name, turns=_TURNS)
            async with self._process(memory, body) as process:
                await self._said(process)

        names = [f"w{number}" for number in range(_WRITERS)]
        await asyncio.gather(*(write(name) for name in names))
        texts = [item["content"] for item in await memory.load_session("s")]
        runs = [texts[at : at + 3] for at in range(0, len(texts), 3)]
        expected = [
            [f"{name}.{number}.{position}" for position in range(3)]
            for name in names
            for number in range(_TURNS)
        ]
        assert sorted(runs) == sorted(expected)
        for name in names:
            mine = [run for run in runs if run[0].startswith(f"{name}.")]
            assert mine == [run for run in expected if run[0].startswith(f"{name}.")]
        assert {record.state for record in await memory.turns("s")} == {"completed"}

    @given_a_memory
    @needs(TURNS)
    async def test_a_killed_process_loses_nothing_it_acknowledged(self, memory: Any) -> None:
        """Its items are there, its session is busy until its lease ends, then it is abandoned."""
        async with self._process(memory, _HOLDS) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"held\n"
            await refused(SessionBusy, acquire(memory))
            process.kill()
            await process.wait()
        await self.expire(memory, "s")
        acquired = await acquire(memory)
        assert await memory.load_session("s") == [user("acknowledged")]
        assert (await memory.turns("s"))[1].state == "abandoned"
        await end(memory, acquired)

    @given_a_memory
    @needs(TURNS)
    async def test_a_wrong_clock_takes_no_session_away(self, memory: Any) -> None:
        """A process whose clock is an hour ahead or behind finds a held session busy."""
        acquired = await acquire(memory)
        async with self._process(memory, _ASKS, _CLOCKS) as process:
            said = await self._said(process)
        busy = f"busy with turn {acquired.lease.turn}"
        assert said.splitlines() == [f"{seconds} s: {busy}" for seconds in (0, 3600, -3600)]
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await end(memory, acquired)
