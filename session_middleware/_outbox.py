"""Items that wait for the end of their turn, to be stored in the same transaction.

Safe for threads and event loops. That they are stored in their order, by one at a time, is all
that is known here; the turn says when it is not to be put off any longer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from session_middleware.errors import TurnLost
from session_middleware.memory import RunItems


class Outbox:
    """What one turn has still to store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[RunItems] = []
        self._storing: Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._items) or self._storing is not None

    def put(self, items: RunItems) -> None:
        """Let these wait."""
        with self._lock:
            self._items.append(items)

    async def send(self, store: Callable[[list[RunItems]], Awaitable[None]]) -> None:
        """Await ``store`` for all that is in here, and whoever is at it already.

        What it could not store, or did not say whether it stored, stays: to store the same at the
        same place once more changes nothing.
        """
        while self:
            mine: Future[None] = Future()
            items: list[RunItems] = []
            with self._lock:
                others = self._storing
                if others is None:
                    self._storing = mine
                    items, self._items = self._items, []
            if others is not None:
                await asyncio.shield(asyncio.wrap_future(others))
                continue
            try:
                if items:
                    await store(items)
            except TurnLost:
                raise  # nobody can store them any more
            except BaseException:  # whoever hears of it need not be the run they are of
                with self._lock:
                    self._items = items + self._items
                raise
            finally:
                with self._lock:
                    self._storing = None
                mine.set_result(None)

    async def empty(self) -> list[RunItems]:
        """Take out all that is in here, once nobody is at it any more."""
        while (storing := self._storing) is not None:
            await asyncio.shield(asyncio.wrap_future(storing))
        with self._lock:
            items, self._items = self._items, []
        return items
