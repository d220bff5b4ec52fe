"""Who is part of a turn, whether it is over, and the error that it ends with. Safe for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Members:
    """The participants of one turn, counted.

    Attributes:
        over: the turn stores nothing more: it ends, or its time is over.
        error: what the turn ends with; None: it goes well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._owned = False
        self.over = False
        self.error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether the turn is over, and nobody is part of it any more."""
        return self.over and self._count <= 0

    @property
    def are_several(self) -> bool:
        """Whether the turn goes on when the next one leaves."""
        return self._count > 1

    def enter(self, *, owner: bool) -> bool:
        """Somebody becomes part of the turn; False if it is over.

        Whoever the turn was made for enters first, as its owner.
        """
        with self._lock:
            if self.over:
                return False
            self._count += 1
            self._owned = self._owned or owner
            return True

    def leave(self, error: BaseException | None, *, owner: bool) -> bool:
        """Somebody leaves; returns whether the turn must be ended now.

        What goes wrong in a run concerns the owner, a function that may well catch it, as long
        as there is one: only a run that outlives the owner, such as a stream, speaks for itself.
        """
        with self._lock:
            if self.error is None and (owner or not self._owned):
                self.error = error
            if owner:
                self._owned = False
            self._count -= 1
            if self._count > 0 or self.over:
                return False
            self.over = True
            return True

    def close(self, error: BaseException, at_once: Callable[[], None]) -> bool:
        """Close the turn for all of them, and call ``at_once`` at that very moment.

        Returns False if it is over already.
        """
        with self._lock:
            if self.over:
                return False
            self.over = True
            self.error = error
            at_once()
            return True
