"""Asking a memory for a session until it is free, and never keeping one that nobody wants.

Who stands in line in this process is not known here, nor what a turn is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from session_middleware import _background
from session_middleware.errors import MemoryUnavailable, SessionBusy
from session_middleware.memory import (
    SupportsLookUp,
    SupportsTurns,
    SupportsTurnWrites,
    Taken,
    TakeTurn,
)


async def look_up(store: SupportsTurns, request: TakeTurn) -> None:
    """Refuse at once what was done before, where the session is not to be had yet."""
    repeats = request.idempotency_key is not None or request.resume is not None
    if repeats and isinstance(store, SupportsLookUp):
        with suppress(MemoryUnavailable):  # taking the session will say so
            await store.look_up(request)


async def take(
    store: SupportsTurns,
    request: TakeTurn,
    contended: Callable[[int | None], None],
    *,
    began: float,
    patience: float | None,
) -> Taken:
    """Take the session, with growing pauses while a turn of another process holds it.

    Args:
        contended: told, once, which turn that is.
        began: when the waiting began, by the monotonic clock.
        patience: seconds to wait, counted from then; None: for ever, 0: not at all.
    """
    told = False
    while True:
        try:
            return await _take_whole(store, request)
        except SessionBusy as busy:
            if not told:
                told = True
                contended(busy.turn)
            waited = time.monotonic() - began
            if patience is not None and waited >= patience:
                raise
            pause = min(0.5, max(0.005, waited / 8)) * random.uniform(0.5, 1.5)  # noqa: S311
            await asyncio.sleep(pause if patience is None else min(pause, patience - waited))


async def _take_whole(store: SupportsTurns, request: TakeTurn) -> Taken:
    """Take the session; cancelled meanwhile, give it back."""
    taking, cancelled = await _background.settle(store.take_turn(request))
    if cancelled is None:
        return taking.result()
    if taking.exception() is None:
        lease = taking.result().lease
        items, end = taking.result().undone(request, datetime.now(UTC))
        if items and isinstance(store, SupportsTurnWrites):
            await _background.settle(store.write_turn(lease, items, end))
        else:
            await _background.settle(store.end_turn(lease, end))
    raise cancelled
