"""A history on its way to the model: read as far as the window extends, cut, repaired, reported.

The memory is asked for no more than the first window needs, where the window can say so. What is
stored is never changed by this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from session_middleware import history
from session_middleware._turns.manifest import TurnManifest
from session_middleware.history import LastItems, LastTurns, TokenBudget
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.records import Item, Loaded, ReadRequest
from session_middleware.telemetry import TurnTelemetry

FIRST_PAGE = 64
"""How many items a budget of tokens reads first; it grows until the budget is used up."""

Hidden: TypeAlias = tuple[int, Collection[int]] | None
"""(turn, runs) that are left out: no run sees another's half."""


class HistoryLoader:
    """Loads one session's history for the runs of one turn.

    Args:
        window: a callable on a list of turns, a list of them, or None.
    """

    def __init__(
        self,
        store: TurnStore,
        session_id: str,
        window: Any,
        telemetry: TurnTelemetry,
        manifest: TurnManifest,
    ) -> None:
        self._store = store
        self._session_id = session_id
        self._windows = [*window] if isinstance(window, list) else [window] if window else []
        self._telemetry = telemetry
        self._manifest = manifest
        self._prefetched: tuple[ReadRequest, Loaded] | None = None

    # --- a history that was read when the session was acquired -----------------------------

    def first_request(self) -> ReadRequest:
        """What a run reads first that has no limit of the SDK's."""
        first = self._windows[0] if self._windows else None
        return ReadRequest(_newest(first))

    def prefetched(self, request: ReadRequest, loaded: Loaded) -> None:
        """The history was read when the session was acquired; the first load may use it."""
        self._prefetched = request, loaded

    def forget_prefetched(self) -> None:
        """The history may be another one by now."""
        self._prefetched = None

    # --- loading ---------------------------------------------------------------------------

    async def load(
        self, run: int, limit: int | None, hide: Hidden, last: int | None = None
    ) -> list[Item]:
        """The history as the model of that run gets it.

        Args:
            limit: at most so many items, in whole turns; the SDK's own setting. None or less
                than 0 sets no limit.
            hide: what the history must not show.
            last: the number of the newest turn that it shows; None: all turns.
        """
        windows = list(self._windows)
        if limit is not None and limit >= 0:
            windows.append(LastItems(limit))
        with self._telemetry.operation("search_memory") as operation:
            prefetched = self._prefetched
            loaded = await self._read([] if last is not None else windows, hide)
            if last is not None:
                turns = [turn for turn in loaded.turns if turn.turn <= last]
                loaded = Loaded(turns, loaded.complete, loaded.corrupt)
            operation.count = sum(len(turn.items) for turn in loaded.turns)
            operation.by_hand = prefetched is not None and loaded is prefetched[1]
        kept = history.apply_windows(loaded.turns, windows)
        items = [item for turn in kept for item in turn.items]
        if not loaded.complete:
            self._telemetry.trimmed(None)
        elif operation.count > len(items):
            self._telemetry.trimmed(operation.count - len(items))
        repaired, receipt = history.repair(items)
        if receipt or loaded.corrupt:
            self._telemetry.repaired(receipt.counts, corrupt=loaded.corrupt)
        faults: dict[Any, int] = {**receipt.counts}
        if loaded.corrupt:
            faults["corrupt_entry"] = loaded.corrupt
        recording = self._telemetry.recording
        size, digest = history.size_and_digest(repaired) if recording else (None, None)
        self._telemetry.history(len(repaired), size, digest)
        self._manifest.digest = digest
        hidden = set(hide[1]) - {run} if hide is not None else ()
        self._manifest.loaded(run, loaded.turns, kept, len(repaired), faults, hidden)
        return repaired

    async def _read(self, windows: Sequence[Callable[..., Any]], hide: Hidden) -> Loaded:
        first = windows[0] if windows else None
        if not isinstance(first, TokenBudget):
            return await self._read_newest(_newest(first), hide)
        page = FIRST_PAGE
        while True:
            loaded = await self._read_newest(LastItems(page), hide)
            if loaded.complete or len(first(loaded.turns)) < len(loaded.turns):
                return loaded
            page *= 4

    async def _read_newest(self, newest: LastTurns | LastItems | None, hide: Hidden) -> Loaded:
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None and prefetched[0] == ReadRequest(newest):
            return prefetched[1]
        return await self._store.load_turns(self._session_id, newest=newest, hide=hide)


def _newest(window: Any) -> LastTurns | LastItems | None:
    """As much of the newest history as the window may want; None: all of it."""
    if isinstance(window, TokenBudget):
        return LastItems(FIRST_PAGE)
    return window if isinstance(window, (LastTurns, LastItems)) else None
