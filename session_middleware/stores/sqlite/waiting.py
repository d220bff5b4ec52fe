"""The members that wait for a connection, and which of them make up its next group.

Any thread adds, the connection's thread takes. Nothing here runs a member or gives it a result.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from session_middleware.errors import MemoryClosed
from session_middleware.stores.sqlite.group import Member


class Waiting:
    """What waits for one connection.

    Args:
        path: the database file, for messages.
        timeout: seconds for which a throttled member waits for a locked database once admitted.

    Attributes:
        draining: the connection's thread takes, or is about to begin with it.
        idle: it waits for a first member.
        closed: nothing is added any more.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self.closed = False
        self.forget()

    def forget(self) -> None:
        """Begin with nothing: as new, or in a forked child."""
        self._arrival = threading.Condition()
        self._members: deque[Member[Any]] = deque()
        self._throttled: deque[Member[Any]] = deque()
        self.draining = False
        self.idle = False
        self._interrupted = False

    def __len__(self) -> int:
        return len(self._members) + len(self._throttled)

    def add(self, member: Member[Any], drain: Callable[[], object], *, throttled: bool) -> None:
        """Let the member wait; ``drain`` is called where nobody takes yet.

        Raises:
            MemoryClosed: nothing may be added any more.
            MemoryUnavailable: ``drain`` raised it; the member does not wait.
        """
        with self._arrival:
            if self.closed:
                raise MemoryClosed(
                    f"the memory in {self._path} was closed by cleanup(): make a new one"
                )
            if not self.draining:
                drain()
                self.draining = True
            (self._throttled if throttled else self._members).append(member)
            self.idle = False
            self._arrival.notify()

    def wait(self, seconds: float | None) -> bool:
        """Wait for a first member; returns whether none came in that time.

        A queue that is closed with nothing left in it is drained by nobody from here on.

        Args:
            seconds: for how long; None: for ever.
        """
        with self._arrival:
            came = True
            if not (self._members or self._throttled or self.closed or self._interrupted):
                self.idle = True
                came = self._arrival.wait(seconds)
                self.idle = False
            self._interrupted = False
            return not came

    def end_if_closed(self) -> bool:
        """Whether nothing is left and nothing can come, so that nobody takes from here on."""
        with self._arrival:
            if self.closed and not (self._members or self._throttled):
                self.draining = False
            return not self.draining

    def interrupt(self) -> None:
        """End the wait for a first member, or the next one, although none has come."""
        with self._arrival:
            self._interrupted = True
            self._arrival.notify()

    def take(self, *, admit: int | None) -> list[Member[Any]]:
        """Take the next group: with ``admit``, at most so many throttled members."""
        with self._arrival:
            group = list(self._members)
            self._members.clear()
            throttled = len(self._throttled)
            for _ in range(throttled if admit is None else min(throttled, admit)):
                member = self._throttled.popleft()
                # Waiting here was no waiting for a locked file.
                member.deadline = max(member.deadline, time.monotonic() + self._timeout)
                group.append(member)
            return group

    def give_up(self) -> list[Member[Any]]:
        """Take everything; nobody takes from here on."""
        with self._arrival:
            group = [*self._members, *self._throttled]
            self._members.clear()
            self._throttled.clear()
            self.draining = False
            return group

    def close(self) -> None:
        """Let nothing be added any more."""
        with self._arrival:
            self.closed = True
            self._arrival.notify()
