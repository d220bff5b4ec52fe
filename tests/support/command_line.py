"""The command line as processes of their own, without the seconds that each needs to import.

``python -m tests.support.command_line SOCKET`` imports everything once, and forks a process for
each command: with the descriptors, the environment and the folder of whoever asks. Such a process
is one in every respect but the imports; ``tests/cli/test_cli.py`` starts some the long way, too.
"""

from __future__ import annotations

import fcntl
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import ROOT

_LONGEST = 2**16


@dataclass
class Ended:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str

    def json(self) -> list[Any]:
        """The lines of the output as JSON."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class Running:
    """A command that runs.

    Attributes:
        pid: of its process.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers = connection.makefile("rb")
        self.pid = int(self._answers.readline())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; that of a signal is negative."""
        status = int(self._answers.readline())
        self._answers.close()
        self._connection.close()
        return os.waitstatus_to_exitcode(status)


class CommandLine:
    """Starts commands.

    Args:
        path: the socket on which the process listens that forks.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def start(
        self,
        *arguments: str,
        cwd: Path,
        descriptors: tuple[int, int, int],
        limits: Mapping[str, int] | None = None,
        user: int | None = None,
        **environment: str,
    ) -> Running:
        """Start a command with these as its input, output and error.

        Args:
            limits: resource limits of the process, by their names.
            user: the number of another user, who runs it.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SESSION_MIDDLEWARE", "OPENAI"))
        }
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": {**inherited, **environment},
            "limits": dict(limits or {}),
            "user": user,
        }
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        socket.send_fds(connection, [json.dumps(order).encode()], list(descriptors))
        return Running(connection)

    def run(
        self,
        *arguments: str,
        cwd: Path,
        stdin: str | bytes = "",
        stdout: int | None = None,
        **options: Any,
    ) -> Ended:
        """Run a command to its end.

        Args:
            stdout: a descriptor in place of a file that is read afterwards.
            options: what ``start`` takes.
        """
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin.encode() if isinstance(stdin, str) else stdin)
            given.seek(0)
            descriptors = (given.fileno(), out.fileno() if stdout is None else stdout, err.fileno())
            code = self.start(*arguments, cwd=cwd, descriptors=descriptors, **options).wait()
            out.seek(0)
            err.seek(0)
            return Ended(code, out.read().decode(), err.read().decode())


@contextmanager
def command_line() -> Iterator[CommandLine]:
    """A process that forks commands, for the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        server = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.command_line", path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
        )
        try:
            while not os.path.exists(f"{path}.ready"):
                if server.poll() is not None:
                    raise RuntimeError("the process that forks commands did not start")
                time.sleep(0.02)
            yield CommandLine(path)
        finally:
            server.kill()
            server.communicate()


# --- the process that forks ------------------------------------------------------------------


def _serve(path: str) -> None:
    import session_middleware.cli.commands as commands

    for module, _ in commands._COMMANDS.values():
        __import__(f"session_middleware.cli.{module}")
    # Also what is imported late: another user may not read the folder that it is in.
    late = ("ctypes", "rich.console", "rich.progress", "rich.table")
    for name in (*late, "sqlite3", "aiosqlite", "structlog", "session_middleware.stores.sqlite"):
        __import__(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    Path(f"{path}.ready").touch()
    gc.freeze()  # no command takes apart what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork the command, and tell its process and its status to whoever asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST, 3)
    order = json.loads(message)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(order, descriptors)
        from session_middleware.cli import main

        sys.exit(main(order["arguments"]))
    for descriptor in descriptors:
        os.close(descriptor)
    with suppress(OSError):  # whoever asked may have left
        connection.sendall(b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.sendall(b"%d\n" % status)
    os._exit(0)


def _become(order: Mapping[str, Any], descriptors: list[int]) -> None:
    """Make this process one that was started with these."""
    import resource

    os.setsid()
    if os.isatty(descriptors[0]):
        fcntl.ioctl(descriptors[0], termios.TIOCSCTTY, 0)  # whose keys send signals
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    if "TESTS_WITHOUT_RICH" in os.environ:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            del sys.modules[name]
        sys.modules["rich"] = None  # type: ignore[assignment] # as if it were not installed
    if order["user"] is not None:
        os.setgid(order["user"])
        os.setuid(order["user"])
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))  # noqa: SIM115 - for its life
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False))  # noqa: SIM115
    error = open(2, "wb", closefd=False)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(error, line_buffering=True, errors="backslashreplace")


if __name__ == "__main__":
    _serve(sys.argv[1])
