"""What a connection has committed without a flush, and how quick the disk is at one.

Bookkeeping of one connection, in its thread. Nothing here commits.
"""

from __future__ import annotations

from collections import deque

_COUNTED = 16  # the quickest of them tells how quick the disk is: others waited for the interpreter
_SLOW = 0.0005  # seconds


class Flushes:
    """The commits that wait for a flush, and the newest flushes.

    Attributes:
        owed: something was committed since the newest flush.
        newest: how long the newest flushes took, in seconds.
    """

    def __init__(self) -> None:
        self.owed = False
        self.newest: deque[float] = deque(maxlen=_COUNTED)

    @property
    def slow(self) -> bool:
        """Whether the disk is so slow that a flush is better shared by many."""
        return min(self.newest, default=0) >= _SLOW

    def made(self, seconds: float) -> None:
        """Note that a commit was flushed, and all that were made before it, in so many seconds."""
        self.newest.append(seconds)
        self.owed = False
