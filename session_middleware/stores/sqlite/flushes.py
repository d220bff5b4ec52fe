"""When commits that were not flushed are flushed, and how quick the disk is at that.

Bookkeeping of one connection, in its thread. Nothing here commits.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from session_middleware.stores.sqlite.group import Durability, Member

WITH_THE_NEXT = math.inf
"""A deadline: with the next commit that is flushed anyway."""

_DELAY = 0.05  # seconds
_COUNTED = 16  # the quickest of them tells how quick the disk is: others waited for the interpreter
_SLOW = 0.0005  # seconds


class Flushes:
    """The flush that a connection owes, and the newest that it made.

    Attributes:
        due: deadline for flushing commits that were not flushed; None: nothing is unflushed.
        newest: how long the newest flushes took, in seconds.
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self.newest: deque[float] = deque(maxlen=_COUNTED)

    @property
    def owed(self) -> float | None:
        """Deadline for a flush that is made even if nothing is written; None: there is none."""
        return None if self.due == WITH_THE_NEXT else self.due

    @property
    def slow(self) -> bool:
        """Whether the disk is so slow that a flush is better shared by many."""
        return min(self.newest, default=0) >= _SLOW

    def needed(self, group: Iterable[Member[Any]]) -> bool:
        """Whether the commit of this group must be flushed."""
        overdue = self.due is not None and self.due <= time.monotonic()
        return overdue or any(member.durability is Durability.FLUSHED for member in group)

    def made(self, seconds: float) -> None:
        """Note that the commit of a group was flushed, in so many seconds."""
        self.newest.append(seconds)
        self.due = None

    def spared(self, group: Iterable[Member[Any]]) -> None:
        """Note that the commit of this group was not flushed."""
        if self.due is None and any(member.flushed_later for member in group):
            self.due = time.monotonic() + _DELAY

    def failed(self) -> None:
        """Note that the flush that is owed failed: the next one that is made does for it."""
        self.due = WITH_THE_NEXT
