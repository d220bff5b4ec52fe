"""The command line as processes of their own, without the seconds that each needs to import.

``python -m tests.support.command_line SOCKET`` imports everything once, and forks a process for
each command: see ``tests/support/programs.py``. Such a process is one in every respect but the
imports, which it does not take apart either; ``tests/cli/test_demo.py`` starts some the long way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.support import ROOT
from tests.support.programs import (
    PIPE,
    Ended,
    Program,
    Programs,
    end_early,
    forking,
    import_all_of_ours,
    outputs,
    serve,
)


class CommandLine:
    """Starts commands.

    Args:
        path: the socket on which the process listens that forks.
        poll: whether that process has ended.
    """

    def __init__(self, path: str, poll: Callable[[], int | None]) -> None:
        self._programs = Programs(path, poll)

    def start(
        self,
        *arguments: str,
        cwd: Path,
        descriptors: tuple[int, int, int],
        limits: Mapping[str, int] | None = None,
        user: int | None = None,
        **environment: str,
    ) -> Program:
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
        return self._programs.order(
            descriptors,
            arguments=arguments,
            cwd=str(cwd),
            environment={**inherited, **environment},
            limits=dict(limits or {}),
            user=user,
        )

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
        given = stdin.encode() if isinstance(stdin, str) else stdin
        with outputs(given) as ((reads, out, err), said):
            descriptors = (reads, out if stdout is None else stdout, err)
            code = self.start(*arguments, cwd=cwd, descriptors=descriptors, **options).wait()
            return Ended(code, *said())


@contextmanager
def command_line(programs: Programs) -> Iterator[CommandLine]:
    """A process that forks commands, for the block."""

    def start(path: str) -> Program:
        module = ("-W", "error", "-m", "tests.support.command_line", path)
        return programs.start(*module, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=PIPE)

    with forking(start) as (path, poll):
        yield CommandLine(path, poll)


# --- the process that forks ------------------------------------------------------------------


def _import_everything() -> None:
    import_all_of_ours()
    # Also what is imported late: another user may not read the folder that it is in.
    for name in ("ctypes", "rich.console", "rich.progress", "rich.table", "sqlite3", "structlog"):
        __import__(name)


def _run(order: Mapping[str, Any]) -> NoReturn:
    """Run the command line in this process."""
    import resource

    if "TESTS_WITHOUT_RICH" in os.environ:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            del sys.modules[name]
        sys.modules["rich"] = None  # type: ignore[assignment] # as if it were not installed
    if order["user"] is not None:
        os.setgid(order["user"])
        os.setuid(order["user"])
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    from session_middleware.cli import main

    end_early(main(order["arguments"]))


if __name__ == "__main__":
    _import_everything()
    serve(sys.argv[1], _run)
