"""How much N sessions at once take of a process: ``python -m tests.benchmarks.many N``.

A process of its own, so that the peak of its memory is that of these sessions. Prints JSON:
threads and open files while all are in use, the peak above what was there before in MB, and that
of as many tasks which do nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

from session_middleware import SQLiteSessionMemory

from .subjects import one_turn


def peak() -> float:
    """The most memory that this process ever had, in MB."""
    # Not of getrusage: that one begins with what the parent had when it started this process.
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def main(sessions: int) -> dict[str, float]:
    highest = {"threads": 0, "files": 0}
    items = one_turn(1)  # the same for all: what is counted is what the memory needs

    async def use(memory: SQLiteSessionMemory, session_id: str) -> None:
        await memory.load_session(session_id)
        highest["threads"] = max(highest["threads"], threading.active_count())
        highest["files"] = max(highest["files"], len(os.listdir("/proc/self/fd")))
        await memory.append_to_session(session_id, items)

    with tempfile.TemporaryDirectory() as folder:
        async with SQLiteSessionMemory(Path(folder) / "many.db") as memory:
            await use(memory, "first")
            begun = peak()
            await asyncio.gather(*(asyncio.sleep(0.2) for _ in range(sessions)))
            idle = peak() - begun
            await asyncio.gather(*(use(memory, f"user-{at}") for at in range(sessions)))
            return {**highest, "memory": peak() - begun, "tasks": idle}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1])))))
