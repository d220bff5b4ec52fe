"""What a turn has stored early, and what it has still to store.

Two kinds of items are not stored at the moment when the SDK hands them over. The input of the
first run may be stored early, with the acquiring of the session. What a model says in the end is
deferred, to be stored with the end of the turn. All of their state is here; the turn says when
nothing may be deferred any longer. Safe for threads and event loops.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from session_middleware._turns.exclusion import Exclusion
from session_middleware.errors import TurnLost
from session_middleware.stores.records import RunItems


class WriteBuffer:
    """The early input and the deferred items of one turn.

    Attributes:
        unflushed: the newest items of the turn were stored early and not flushed since, so a
            power failure may take them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: RunItems | None = None
        self._deferred: list[RunItems] = []
        self._writing = Exclusion()
        self.unflushed = False

    # --- the input that is stored early ----------------------------------------------------

    def store_early(self, items: RunItems) -> None:
        """These items were stored, and the SDK has still to hand them over."""
        self._early = items

    def early(self, run: int | None) -> RunItems | None:
        """The early input of that run; None once it was handed over, replaced or withdrawn."""
        early = self._early
        return early if early is not None and early.run == run else None

    def is_early(self, items: RunItems | None) -> bool:
        """Whether these very items are the early input."""
        return items is not None and self._early is items

    def hand_over(self) -> None:
        """The SDK has handed over the early input as it was stored."""
        self._early = None
        self.unflushed = True

    def replace_early(self) -> None:
        """Something else is stored in place of the early input."""
        self._early = None

    def withdraw(self) -> None:
        """Take the early input back, at the next flush, if the SDK has not handed it over."""
        early, self._early = self._early, None
        if early is not None:
            self.defer(early.withdrawn())

    # --- the items that are deferred -------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether items are still to be stored."""
        return bool(self._deferred) or self._writing.held

    def defer(self, items: RunItems) -> None:
        """Store these items at the next flush."""
        with self._lock:
            self._deferred.append(items)

    async def flush(self, write: Callable[[list[RunItems]], Awaitable[None]]) -> None:
        """Await ``write`` for all deferred items, in their order, and whoever is storing some.

        Items whose storing failed, or whose outcome is unknown, stay deferred: the same items at
        the same place once more change nothing.
        """
        if not self:
            return
        async with self._writing:
            items = self._take_deferred()
            if not items:
                return
            try:
                await write(items)
            except TurnLost:
                raise  # nobody can store them any more
            except BaseException:  # whoever hears of it need not be the run they are of
                with self._lock:
                    self._deferred = items + self._deferred
                raise

    async def drain(self) -> list[RunItems]:
        """Take out all deferred items, once nobody is storing any."""
        async with self._writing:
            return self._take_deferred()

    def _take_deferred(self) -> list[RunItems]:
        with self._lock:
            items, self._deferred = self._deferred, []
            return items
