"""Memories on servers that are given little time, where every operation is to reach its limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def little_time(memory: Any, seconds: float = 0.3) -> Iterator[None]:
    """Operations of this memory that begin in the block end after so many seconds.

    What has to succeed before and after the block has as long as the memory gives it, on a busy
    machine, too.
    """
    connections = getattr(memory, "_connections", None) or memory._server
    usual, connections._timeout = connections._timeout, seconds
    try:
        yield
    finally:
        connections._timeout = usual
