"""Processes that run a function of ``processes.py``, forked from one that imported everything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import ROOT
from tests.support.programs import PIPE, Program, Programs


@contextmanager
def fork_server(programs: Programs) -> Iterator[Program]:
    """The process that scripts are forked from; their warnings are errors."""
    module = ("-W", "error", "-m", "tests.support.processes")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with programs.start(*module, env=environment, stdin=PIPE, stdout=PIPE) as process:
        yield process
    assert process.returncode == 0


class Script:
    """A function of processes.py, running in a process of its own."""

    def __init__(self, server: Program, pipe: Path, *what: object) -> None:
        os.mkfifo(pipe)
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{(str(pipe), *map(str, what))!r}\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())
        self._said = pipe.open()

    @property
    def ended(self) -> bool:
        """Whether it was read to its end."""
        return self._said.closed

    def wait_for(self, line: str) -> None:
        """Wait until it says this, and nothing else."""
        said = self._said.readline()
        assert said == f"{line}\n", said + self._said.read()

    def finish(self) -> list[str]:
        """What it said until it had nothing more to do; it ended well, and silently."""
        with self._said:
            *lines, last = self._said.read().split("\n")[:-1]  # up to the end of the process
        assert last == "finished", "\n".join([*lines, last])
        return lines

    def said(self) -> list[str]:
        """What it said until it ended, in whatever way."""
        with self._said:
            return self._said.read().splitlines()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        with self._said:
            self._said.read()
