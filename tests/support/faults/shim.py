"""A shared library that makes system calls fail, compiled once with the machine's C compiler.

It must not know what the process does, nor judge what it did.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import pytest

Call = Literal["write", "fsync", "open", "truncate", "unlink", "read", "thread"]
Outcome = Literal["fail", "short", "kill"]

_CALLS: tuple[Call, ...] = ("write", "fsync", "open", "truncate", "unlink", "read", "thread")
_OUTCOMES: tuple[Outcome, ...] = ("fail", "short", "kill")
_USUAL_ERROR: dict[Call, int] = {
    "write": errno.ENOSPC,
    "open": errno.EMFILE,
    "thread": errno.EAGAIN,
}
# struct control of shim.c: the clock's shift, what fails, and how many calls there were.
_SHIFT = struct.Struct("q")
_FAULT = struct.Struct("5q")
_COUNTS = struct.Struct(f"{len(_CALLS)}q")
_FAULT_AT = _SHIFT.size
_COUNTS_AT = _FAULT_AT + _FAULT.size
_SIZE = _COUNTS_AT + _COUNTS.size

_COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

needs_compiler = pytest.mark.skipif(
    _COMPILER is None or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD"
)
"""Marks what needs the library."""


def _library() -> Path:
    """The compiled library, in a folder of this user's that outlives the tests."""
    assert _COMPILER is not None, "mark the test with needs_compiler"
    source = Path(__file__).with_name("shim.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"session-faults-{os.getuid()}-{digest}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder) / made.name
            options = ["-shared", "-fPIC", "-O1", "-o", str(new), str(source), "-ldl", "-pthread"]
            subprocess.run([_COMPILER, *options], check=True)
            shutil.move(new, made)  # another process may have been quicker, with the same
    return made


class Faults:
    """The faults of the processes that are started with ``environment``.

    Args:
        path: the file that is watched; so is every other whose path begins like it.
        folder: where the controls and the log are kept.
        log: keep a log for ``Disk``; the processes then flush nothing to the real disk.

    Example:
        faults = Faults(tmp_path / "chat.db", tmp_path)
        faults.arm("fsync", 3)
        subprocess.run([sys.executable, "-c", SCRIPT], env=faults.environment)
        assert faults.counts["fsync"] >= 3
    """

    def __init__(self, path: Path, folder: Path, *, log: bool = False) -> None:
        self.log = folder / "faults.log" if log else None
        controls = folder / "faults.control"
        controls.write_bytes(bytes(_SIZE))
        with controls.open("r+b") as file:
            self._controls = mmap.mmap(file.fileno(), _SIZE)
        self.environment = {
            **os.environ,
            "LD_PRELOAD": str(_library()),
            "FAULTS_PATH": str(path),
            "FAULTS_CONTROL": str(controls),
            **({} if self.log is None else {"FAULTS_LOG": str(self.log)}),
        }

    def arm(
        self,
        call: Call,
        nth: int,
        *,
        times: int = 1,
        outcome: Outcome = "fail",
        error: int | None = None,
    ) -> None:
        """Let the nth of these calls from now fail, and ``times`` in a row; -1: all from then.

        ``short`` writes half of the bytes; ``kill`` is SIGKILL in the call.
        """
        self.disarm()
        self.forget_counts()
        error = _USUAL_ERROR.get(call, errno.EIO) if error is None else error
        what = (_CALLS.index(call), nth, times, _OUTCOMES.index(outcome), error)
        # The count goes in last: with 0 in its place nothing fails.
        _FAULT.pack_into(self._controls, _FAULT_AT, what[0], 0, *what[2:])
        _FAULT.pack_into(self._controls, _FAULT_AT, *what)

    def disarm(self) -> None:
        """Let nothing fail any more."""
        _FAULT.pack_into(self._controls, _FAULT_AT, 0, 0, 0, 0, 0)

    @property
    def counts(self) -> dict[Call, int]:
        """How many calls of each kind there were since they were counted from 0."""
        return dict(zip(_CALLS, _COUNTS.unpack_from(self._controls, _COUNTS_AT), strict=True))

    def forget_counts(self) -> None:
        """Count from 0."""
        _COUNTS.pack_into(self._controls, _COUNTS_AT, *[0] * len(_CALLS))

    def set_clock(self, seconds: float) -> None:
        """Let the processes' wall clock go before the machine's by this much."""
        _SHIFT.pack_into(self._controls, 0, round(seconds * 1e9))
