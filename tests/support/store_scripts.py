"""Scripts that use a SQLite memory in processes of their own, without the agents package."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PRELUDE = """
import asyncio, importlib.util, os, signal, sys, threading, time, types

# The store alone: the package's own first lines import the SDK, which takes seconds.
package = types.ModuleType("session_middleware")
package.__path__ = importlib.util.find_spec("session_middleware").submodule_search_locations
sys.modules["session_middleware"] = package

from datetime import UTC, datetime
from session_middleware.errors import MemoryUnavailable, SessionBusy, SessionMemoryError
from session_middleware.stores.records import AcquireRequest, TurnEnd
from session_middleware.stores.sqlite.file import make_ready
from session_middleware.stores.sqlite import SQLiteSessionMemory

path = sys.argv[1]
memory = SQLiteSessionMemory(path, lease=2)

def acquire(session_id):
    return memory.acquire(AcquireRequest(session_id, datetime.now(UTC)))

def user(text):
    return {"role": "user", "content": text}

def completed():
    return TurnEnd("completed", datetime.now(UTC))

def say(what):
    print(what, flush=True)
"""


class Scripts:
    """Starts scripts on one file, and leaves no process behind.

    Args:
        path: the file.
        environment: of the processes, when not this one's.
    """

    def __init__(self, path: Path, environment: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.environment = environment
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def start(self, script: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        self.started.append(process)
        return process

    def run(self, script: str, *options: str, meanwhile: Callable[[], object] | None = None) -> str:
        """Run a script to its end, which must be a good one and a silent one.

        Args:
            meanwhile: called when the script has said its first line; then ``input()`` returns.
        """
        process = self.start(script, *options)
        said = ""
        if meanwhile is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            said = process.stdout.readline()
            meanwhile()
            process.stdin.write("\n")
            process.stdin.flush()
        out, err = process.communicate()
        assert err == ""
        assert self.started[-1].returncode == 0
        return said + out
