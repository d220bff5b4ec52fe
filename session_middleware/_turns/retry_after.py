"""When a refused call is worth making again: from how long recent turns of the session took.

The memory is asked once for as long as the session is busy in this process, however many calls
are refused meanwhile.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from session_middleware._turns import queue
from session_middleware._turns.queue import Place
from session_middleware.errors import SessionBusy, SessionMemoryError, TurnInProgress
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.rules import retry_after

RECENT = 5
"""How many turns of a session are looked at."""


async def tell_retry_after(
    store: TurnStore, place: Place, refusal: SessionBusy | TurnInProgress
) -> None:
    """Set ``retry_after`` of a refusal."""
    recent = queue.recent(place)
    if recent is None:
        queue.keep_recent(place, ())  # whoever is refused meanwhile does not ask, too
        recent = await _durations(store, place[1])
        queue.keep_recent(place, recent)
    elapsed = None
    if refusal.since is not None:
        elapsed = (datetime.now(UTC) - refusal.since).total_seconds()
    refusal.retry_after = retry_after(recent, elapsed, queue.waiting(place))


async def _durations(store: TurnStore, session_id: str) -> tuple[float, ...]:
    """Seconds that the newest turns took which have ended."""
    with suppress(SessionMemoryError):  # then only the turn in the way tells something
        records = await store.turns(session_id, limit=RECENT)
        return tuple(
            (record.ended_at - record.started_at).total_seconds()
            for record in records
            if record.ended_at is not None and record.state in ("completed", "failed")
        )
    return ()
