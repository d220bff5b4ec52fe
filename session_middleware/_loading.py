"""A history on its way to the model: read in the window's extent, cut, repaired, reported.

The memory is asked for no more than the first window needs, where it can say so. What is stored
is never changed by this.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

from session_middleware import history
from session_middleware.history import LastItems, LastTurns, TokenBudget
from session_middleware.memory import Item, Loaded, Reading, SupportsTurns
from session_middleware.telemetry import TurnTelemetry

FIRST_PAGE = 64
"""How many items a budget of tokens reads first; it grows until the budget is used up."""

Hidden = tuple[int, Collection[int]] | None
"""(turn, runs) that are left out: no run sees another's half."""


async def load(
    store: SupportsTurns,
    session_id: str,
    window: Any,
    limit: int | None,
    hide: Hidden,
    telemetry: TurnTelemetry,
    prefetched: tuple[Reading, Loaded] | None = None,
) -> tuple[list[Item], str | None]:
    """The history as the model gets it, and its digest where a trace records it.

    Args:
        window: a callable on a list of turns, a list of them, or None.
        limit: at most so many items, in whole turns; the SDK's own setting. None or less than
            0 sets no limit.
        prefetched: what was read when the session was taken, if that is what is asked for.
    """
    windows = [*window] if isinstance(window, list) else [window] if window else []
    if limit is not None and limit >= 0:
        windows.append(LastItems(limit))
    recording = telemetry.recording
    with telemetry.operation("search_memory") as operation:
        loaded = await _read(store, session_id, windows, hide, recording, prefetched)
        operation.count = sum(len(turn.items) for turn in loaded.turns)
    kept = history.apply_windows(loaded.turns, windows) if windows else loaded.turns
    items = [item for turn in kept for item in turn.items]
    if not loaded.complete:
        telemetry.trimmed(None)
    elif operation.count > len(items):
        telemetry.trimmed(operation.count - len(items))
    repaired, receipt = history.repair(items)
    if receipt or loaded.corrupt:
        telemetry.repaired(receipt, corrupt=loaded.corrupt)
    if not recording:
        telemetry.history(len(repaired), None, None)
        return repaired, None
    texts = _texts_of(kept, items, repaired)
    size, digest = history.size_and_digest(texts)
    telemetry.history(len(texts), size, digest)
    return repaired, digest


def first_reading(window: Any, recording: bool) -> Reading:
    """What a run without a limit of the SDK's reads first."""
    return Reading(_newest(window[0] if isinstance(window, list) and window else window), recording)


def _newest(window: Any) -> LastTurns | LastItems | None:
    """As much of the newest history as the window may want; None: all of it."""
    if isinstance(window, TokenBudget):
        return LastItems(FIRST_PAGE)
    return window if isinstance(window, (LastTurns, LastItems)) else None


async def _read(
    store: SupportsTurns,
    session_id: str,
    windows: Sequence[Callable[..., Any]],
    hide: Hidden,
    texts: bool,
    prefetched: tuple[Reading, Loaded] | None,
) -> Loaded:
    async def read(newest: LastTurns | LastItems | None) -> Loaded:
        if prefetched is not None and prefetched[0] == Reading(newest, texts):
            return prefetched[1]
        return await store.load_turns(session_id, newest=newest, hide=hide, texts=texts)

    first = windows[0] if windows else None
    if not isinstance(first, TokenBudget):
        return await read(_newest(first))
    page = FIRST_PAGE
    while True:
        loaded = await read(LastItems(page))
        if loaded.complete or len(first(loaded.turns)) < len(loaded.turns):
            return loaded
        page *= 4


def _texts_of(
    kept: Sequence[history.Turn], loaded: Sequence[Item], items: Sequence[Item]
) -> list[str]:
    """The stored texts of these items; of one that a repair made, its own."""
    stored = [text for turn in kept for text in turn.texts or ()]
    if len(stored) == len(items) and all(map(operator.is_, loaded, items)):
        return stored
    texts = {
        id(item): text
        for turn in kept
        for item, text in zip(turn.items, turn.texts or (), strict=False)
    }
    return [texts.get(id(item)) or history.text_of(item) for item in items]
