"""Figures of the memories in use, for telemetry to observe.

Whoever collects metrics must not wait for a memory: each look gives what the last one asked for.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from weakref import WeakKeyDictionary

from session_middleware import _background
from session_middleware.stores.protocol import FIGURES, TurnStore


class StoreFigures:
    """The figures of one store, which it does not keep alive."""

    def __init__(self, store: TurnStore) -> None:
        self._store = weakref.ref(store)
        self._newest: Mapping[str, float] = {}
        self._asked: Future[None] | None = None

    def __call__(self) -> Mapping[str, float]:
        """What the store said last; it is asked anew, and answers in the background."""
        store = self._store()
        if store is not None and (self._asked is None or self._asked.done()):
            self._asked = _background.submit(self._ask(store))
        return self._newest

    async def _ask(self, store: TurnStore) -> None:
        try:
            self._newest = await store.figures()
        except Exception:  # closed, or out of reach: its operations tell that
            self._newest = {}


_lock = threading.Lock()
_known: WeakKeyDictionary[TurnStore, StoreFigures] = WeakKeyDictionary()


def figures_of(store: TurnStore) -> StoreFigures | None:
    """The figures of a store that has any, the same object each time."""
    if FIGURES not in store.capabilities:
        return None
    with _lock:
        figures = _known.get(store)
        if figures is None:
            figures = _known[store] = StoreFigures(store)
        return figures
