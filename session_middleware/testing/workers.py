"""Functions of a test in processes of their own, which may die.

The process is a new interpreter, not a fork: it holds no lock, thread or connection of the test.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Outcome", "Worker", "WorkerProcesses"]

_PATIENCE = 60.0
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import make_call; make_call()"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a process ended.

    Attributes:
        exit_code: 0 when the function returned; negative: the signal that ended it.
        output: what it printed.
        errors: what it wrote to standard error, a traceback for instance.
    """

    exit_code: int
    output: str
    errors: str

    @property
    def killed(self) -> bool:
        """Whether it died as by ``kill -9``."""
        return self.exit_code == -getattr(signal, "SIGKILL", -signal.SIGTERM)

    def check(self) -> Self:
        """Assert that the function returned, and return the outcome.

        Raises:
            AssertionError: it raised, or the process died; the message has its standard error.
        """
        __tracebackhide__ = True
        if self.exit_code != 0:
            raise AssertionError(f"the process ended with {self.exit_code}:\n{self.errors}")
        return self


class Worker:
    """A function that runs in a process of its own.

    Attributes:
        process: the process.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        call = _Call.of(function, args)
        self.process = subprocess.Popen(  # noqa: S603 - a function of the test itself
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=__name__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        self.process.stdin.write(pickle.dumps(call))
        self.process.stdin.close()
        self._said: list[str] = []
        self._errors: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self._said), (self.process.stderr, self._errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.decode(errors="replace"))
                self._changed.notify_all()
        stream.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, text: str, timeout: float = _PATIENCE) -> None:
        """Wait until the function has printed a line with this text; it must flush the line.

        Raises:
            AssertionError: it ended, or ``timeout`` seconds passed, without that line.
        """
        __tracebackhide__ = True

        def settled() -> bool:
            return self._ended or text in "".join(self._said)

        with self._changed:
            self._changed.wait_for(settled, timeout)
            said = "".join(self._said)
        if text not in said:
            raise AssertionError(
                f"the process did not print {text!r}; it printed {said!r}, and to standard error:\n"
                f"{''.join(self._errors)}"
            )

    def kill(self) -> Outcome:
        """Kill the process as by ``kill -9``, wherever it is, and return how it ended."""
        self.process.kill()
        return self.wait()

    def wait(self, timeout: float = _PATIENCE) -> Outcome:
        """Wait until the process has ended.

        Raises:
            AssertionError: it runs longer than ``timeout`` seconds. It was killed then.
        """
        __tracebackhide__ = True
        late = False
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        outcome = Outcome(self.process.returncode, "".join(self._said), "".join(self._errors))
        if late:
            raise AssertionError(f"the process ran longer than {timeout} s:\n{outcome.errors}")
        return outcome


class WorkerProcesses:
    """Starts functions in processes of their own, and leaves none behind.

    The function must be at the top level of its module; its arguments must be such that
    ``pickle`` takes them, as a memory on a file is. A coroutine function is run in an event loop.

    Example:
        with WorkerProcesses() as run_in_process:
            assert run_in_process(serve_once, "chat.db").killed
    """

    def __init__(self) -> None:
        self._started: list[Worker] = []

    def __call__(
        self, function: Callable[..., Any], *args: Any, timeout: float = _PATIENCE
    ) -> Outcome:
        """Run the function to its end, for at most ``timeout`` seconds.

        Raises:
            AssertionError: it runs longer.
        """
        __tracebackhide__ = True
        return self.start(function, *args).wait(timeout)

    def start(self, function: Callable[..., Any], *args: Any) -> Worker:
        """Start the function and return at once."""
        worker = Worker(function, args)
        self._started.append(worker)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self._started:
            worker.kill()


@dataclass(frozen=True, slots=True)
class _Call:
    """A call to make in another process, which finds the module by its file if not by its name."""

    module: str
    file: str | None
    name: str
    args: bytes

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple[Any, ...]) -> _Call:
        name = getattr(function, "__qualname__", "")
        if not name.isidentifier() or name == "<lambda>":
            raise TypeError(
                "a function that runs in another process must be at the top level of its module, "
                f"got {name or function!r}"
            )
        module = function.__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        return cls(module, file, name, pickle.dumps(args))

    def make(self) -> None:
        made = getattr(self._loaded(), self.name)(*pickle.loads(self.args))  # noqa: S301
        if asyncio.iscoroutine(made):
            asyncio.run(made)

    def _loaded(self) -> Any:
        if self.file is None:
            return importlib.import_module(self.module)
        spec = importlib.util.spec_from_file_location(self.module, self.file)
        assert spec is not None  # noqa: S101 - it is a Python file
        assert spec.loader is not None  # noqa: S101 - likewise
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.module] = module
        spec.loader.exec_module(module)
        return module


def make_call() -> None:
    """Make the call that the parent wrote to standard input: what a worker's process does."""
    call: _Call = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from our parent
    call.make()
