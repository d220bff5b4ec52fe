"""A process that holds a session, and does to it what it is told on its standard input.

    python -m tests.support.lease_holder URL

Each line is a command: ``acquire``, ``append TEXT``, ``end``, or ``run TEXT``, which says "in tool"
and goes on with the next line. Each is answered by the name of its outcome and the seconds it took.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from agents import Runner, set_tracing_disabled

from session_middleware import SessionMemoryError, open_memory, with_session_memory
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from tests.support.interruptions import noting_agent


class Holder:
    """What the process has: a memory, and maybe a lease."""

    def __init__(self, url: str) -> None:
        self.memory: Any = open_memory(url)
        self._position = 0

    async def acquire(self) -> None:
        self._acquired = await acquire(self.memory)

    async def append(self, text: str) -> None:
        position, self._position = self._position, self._position + 1
        await self.memory.append_items(self._acquired.lease, 1, position, [user(text)])

    async def end(self) -> None:
        await end(self.memory, self._acquired, runs={1: "completed"})

    async def run(self, text: str) -> None:
        async def wait() -> None:
            print("in tool", flush=True)
            await next_line()

        agent = noting_agent([], tool_waits=wait)
        await with_session_memory(Runner.run, memory=self.memory)(agent, text, session_id="s")


async def next_line() -> str:
    return (await asyncio.to_thread(sys.stdin.readline)).strip()


async def main(url: str) -> None:
    holder = Holder(url)
    while line := await next_line():
        name, _, text = line.partition(" ")
        began = time.monotonic()
        outcome = "done"
        try:
            await getattr(holder, name)(*([text] if text else []))
        except SessionMemoryError as error:
            outcome = type(error).__name__
        print(outcome, time.monotonic() - began, flush=True)
    os._exit(0)  # no goodbye: its turns just stop, as if it had died


if __name__ == "__main__":
    set_tracing_disabled(True)
    asyncio.run(main(sys.argv[1]))
