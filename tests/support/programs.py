"""Python programs as processes of their own, without the second that each needs to import the SDK.

``python tests/support/programs.py SOCKET`` imports what other projects made, this package not, and
forks a process for each program: with the arguments, descriptors, environment and folder of whoever
asks. Such a process is one in every respect but those imports, its hash seed and the interpreter's
own options. A test whose subject is an import or the start of a process starts an interpreter.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn, Self

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL

_IMPORTED = (
    *("agents", "aiosqlite", "structlog", "wrapt", "opentelemetry.trace", "opentelemetry.metrics"),
    *("asyncpg", "redis.asyncio", "hiredis", "fastapi", "uvicorn"),
)

_PATIENCE = 30.0  # seconds; a busy machine takes its time
_NUMBER = struct.Struct("q")


@dataclass
class Ended:
    """A program that has ended."""

    returncode: int
    stdout: str
    stderr: str

    def json(self) -> list[Any]:
        """The lines of the output as JSON."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class Program:
    """A program that runs: what ``subprocess.Popen`` is for an interpreter.

    Attributes:
        pid: of its process.
        stdin, stdout, stderr: its pipes, where it has some.
    """

    def __init__(
        self,
        connection: socket.socket,
        pipes: tuple[IO[str] | None, IO[str] | None, IO[str] | None] = (None, None, None),
    ) -> None:
        self._connection = connection
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None
        self.pid = self._told()

    def _told(self) -> int:
        told = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        if not told:
            raise RuntimeError("the process that forks programs has ended")
        number: int = _NUMBER.unpack(told)[0]
        return number

    def poll(self) -> int | None:
        """Its exit code, that of a signal is negative; None: it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, for at most ``timeout`` seconds."""
        if self.returncode is None:
            if not _says_something(self._connection, timeout):
                raise subprocess.TimeoutExpired("a program", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(self._told())
            self._connection.close()
        return self.returncode

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it as by ``kill -9``."""
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close its input, and wait for its end; returns what it had still to say."""
        said = ["", ""]

        def read(stream: IO[str], to: int) -> None:
            said[to] = stream.read()
            stream.close()

        if self.stdin is not None:
            self.stdin.close()
        streams = ((self.stdout, 0), (self.stderr, 1))
        open_ones = [pair for pair in streams if pair[0] is not None and not pair[0].closed]
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in open_ones]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return said[0], said[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.communicate()


def _says_something(connection: socket.socket, timeout: float | None) -> bool:
    """Whether it does within these seconds; None: for ever."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    return bool(waiting.poll(None if timeout is None else timeout * 1000))


class Programs:
    """Starts programs.

    Args:
        path: the socket on which the process listens that forks.
        poll: whether that process has ended, where its parent asks.
    """

    def __init__(self, path: str, poll: Callable[[], int | None] = lambda: None) -> None:
        self.path = path
        self._poll = poll

    def order(self, descriptors: tuple[int, int, int], **order: Any) -> Program:
        """Start a program with these as its input, output and error."""
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + _PATIENCE
        while connection.connect_ex(self.path) != 0:  # the process still imports
            ended = self._poll() is not None or time.monotonic() > deadline
            assert not ended, "the process that forks programs did not start"
            time.sleep(0.02)
        _send(connection, descriptors, order)
        return Program(connection)

    def start(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Program:
        """Start a program, in a session of processes of its own.

        Args:
            arguments: as those of the interpreter: a file, ``-c`` or ``-m``, and ``-W`` before.
            stdin, stdout, stderr: as those of ``subprocess.Popen``, whose pipes are of text.
        """
        ours: list[IO[str] | None] = []
        theirs: list[int] = []
        given: list[int] = []  # to close again
        for number, asked in enumerate((stdin, stdout, stderr)):
            mine = None
            if asked == PIPE:
                reads, writes = os.pipe()
                mine = os.fdopen(writes, "w") if number == 0 else os.fdopen(reads)
                given.append(reads if number == 0 else writes)
            elif asked == DEVNULL:
                given.append(os.open(os.devnull, os.O_RDWR))
            ours.append(mine)
            if asked == STDOUT:
                theirs.append(theirs[1])
            else:
                theirs.append(given[-1] if asked in (PIPE, DEVNULL) else _number(asked, number))
        made = self.order(
            (theirs[0], theirs[1], theirs[2]),
            arguments=arguments,
            cwd=str(cwd or Path.cwd()),
            environment=dict(os.environ if env is None else env),
        )
        for descriptor in given:
            os.close(descriptor)
        made.stdin, made.stdout, made.stderr = ours
        return made

    def run(
        self,
        *arguments: str,
        given: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Ended:
        """Run a program to its end, ``given`` as its input; it is killed when that takes longer."""
        with outputs(given.encode()) as (descriptors, said):
            stdin, stdout, stderr = descriptors
            made = self.start(
                *arguments, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr
            )
            try:
                code = made.wait(timeout)
            except subprocess.TimeoutExpired:
                made.kill()
                made.wait()
                raise
            return Ended(code, *said())


def _number(asked: int | None, otherwise: int) -> int:
    return otherwise if asked is None else asked


@contextmanager
def outputs(given: bytes) -> Iterator[tuple[tuple[int, int, int], Callable[[], tuple[str, str]]]]:
    """Descriptors of an input, an output and an error, and what gives the words of the last two."""
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(given)
        stdin.seek(0)

        def said() -> tuple[str, str]:
            stdout.seek(0)
            stderr.seek(0)
            return stdout.read().decode(), stderr.read().decode()

        yield (stdin.fileno(), stdout.fileno(), stderr.fileno()), said


@contextmanager
def forking(start: Callable[[str], Any]) -> Iterator[tuple[str, Callable[[], int | None]]]:
    """The socket of a process that forks, which ``start`` starts, and whether that has ended.

    It ends with its input.
    """
    with tempfile.TemporaryDirectory() as folder, start(f"{folder}/socket") as server:
        try:
            yield f"{folder}/socket", server.poll
        finally:
            server.stdin.close()


@contextmanager
def forking_programs(environment: Mapping[str, str] = os.environ) -> Iterator[Programs]:
    """A process that forks programs, for the block."""
    command = [sys.executable, __file__]

    def start(path: str) -> Any:
        return subprocess.Popen([*command, path], env=environment, stdin=subprocess.PIPE)

    with forking(start) as (path, poll):
        yield Programs(path, poll)


# --- the process that forks ------------------------------------------------------------------


def serve(path: str, attend: Callable[[Any], NoReturn]) -> NoReturn:
    """Fork for each order, until the input ends; the child does what ``attend`` does."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    gc.freeze()  # no program looks through what was imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with whoever asked
    waiting = select.poll()
    waiting.register(listening, select.POLLIN)
    waiting.register(0, select.POLLIN)
    while all(descriptor != 0 for descriptor, _ in waiting.poll()):
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _attend(connection, attend)
        connection.close()
        _bury()
    deadline = time.monotonic() + _PATIENCE
    while _bury() and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(0)


def _bury() -> bool:
    """Wait for those that have ended, whom nobody else waits for; returns whether some have not."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True


def _attend(connection: socket.socket, attend: Callable[[Any], NoReturn]) -> NoReturn:
    """Fork the program, and tell its process and its status to whoever asked."""
    order, descriptors = _receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        become(order, descriptors)
        attend(order)
    for descriptor in descriptors:
        os.close(descriptor)
    with suppress(OSError):  # whoever asked may have left
        connection.sendall(_NUMBER.pack(child))
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.sendall(_NUMBER.pack(status))
    os._exit(0)


def _send(connection: socket.socket, descriptors: tuple[int, ...], order: Any) -> None:
    message = json.dumps(order).encode()
    socket.send_fds(connection, [_NUMBER.pack(len(message))], list(descriptors))
    connection.sendall(message)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    length, descriptors, _, _ = socket.recv_fds(connection, _NUMBER.size, 3)
    message = connection.recv(_NUMBER.unpack(length)[0], socket.MSG_WAITALL)
    return json.loads(message), descriptors


def become(order: Mapping[str, Any], descriptors: list[int]) -> None:
    """Make this process one that was started with these."""
    os.setsid()
    if os.isatty(descriptors[0]):
        fcntl.ioctl(descriptors[0], termios.TIOCSCTTY, 0)  # whose keys send signals
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in set(descriptors) - {0, 1, 2}:
        os.close(descriptor)
    os.chdir(order["cwd"])
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].ORIGINAL_DIR = order["cwd"]  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))  # noqa: SIM115 - for its life
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False))  # noqa: SIM115
    error = open(2, "wb", closefd=False)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(error, line_buffering=True, errors="backslashreplace")


def import_all_of_ours() -> None:
    """Import every module of this package, for a process that forks what uses it."""
    import session_middleware

    for module in pkgutil.walk_packages(session_middleware.__path__, "session_middleware."):
        if not module.name.endswith("__main__"):
            __import__(module.name)


def end_early(code: int) -> NoReturn:
    """End this process as the interpreter does up to where it takes its modules apart.

    That takes longer than most commands. Threads are waited for, and what nobody refers to is
    collected, so that whatever was left open is told.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)
    os._exit(code)


def _run(order: Mapping[str, Any], path: list[str]) -> NoReturn:
    """Run a program as the interpreter does."""
    what, *arguments = order["arguments"]
    while what == "-W":
        sys.warnoptions.append(arguments[0])
        warnings.filterwarnings(arguments[0])  # type: ignore[arg-type] # an action and no more
        what, *arguments = arguments[1:]
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    given = [os.path.abspath(each) for each in _named("PYTHONPATH")]
    own = str(Path(what).resolve().parent) if what not in ("-c", "-m") else ""
    sys.path[:] = [os.getcwd() if what == "-m" else own, *given, *path]
    if what == "-m":
        sys.argv[:] = arguments
        runpy._run_module_as_main(arguments[0])  # type: ignore[attr-defined]
    elif what == "-c":
        sys.argv[:] = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = [what, *arguments]
        main.__file__ = os.path.abspath(what)
        exec(compile(Path(what).read_bytes(), main.__file__, "exec"), main.__dict__)
    sys.exit()


def _named(variable: str) -> list[str]:
    return [each for each in os.environ.get(variable, "").split(os.pathsep) if each]


def _main(path: str) -> NoReturn:
    with suppress(ValueError):
        sys.path.remove(str(Path(__file__).parent))
    for name in _IMPORTED:
        with suppress(ImportError):
            __import__(name)
    from agents.models.openai_provider import shared_http_client

    shared_http_client()  # each run has it, and it imports what it needs when it is made
    before = list(sys.path)
    serve(path, lambda order: _run(order, before))


if __name__ == "__main__":
    _main(sys.argv[1])
