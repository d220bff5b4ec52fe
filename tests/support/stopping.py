"""Stopping a process that uses a SQLite memory, at a moment when it does not hold the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path


def stop(process: int, path: Path) -> None:
    """Stop it; where it has the write lock of the file at ``path``, let it go on and try again."""
    while True:
        os.kill(process, signal.SIGSTOP)
        while _state_of(process) != "T":
            time.sleep(0.005)
        if _is_free(path):
            return
        os.kill(process, signal.SIGCONT)
        time.sleep(0.005)


def _state_of(process: int) -> str:
    """The state of a process as the kernel tells it: T where it is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def _is_free(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
