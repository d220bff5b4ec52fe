"""Waiting for a session in order, between processes: the part that all stores share.

Whoever asks for a busy session gets a place in its line under a ticket, and the session goes to
the first one. A ticket counts for TICKET_SECONDS after it was last shown, by asking again, so that
it dies with its asker; one that is shown again later has its old place. How a store keeps tickets
is not known here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

TICKET_SECONDS = 3.0
"""For how long a ticket counts after it was last shown: an asker's loop may be busy meanwhile."""

SHOW_AGAIN = 1.0
"""Seconds after which a waiting asker shows its ticket again."""

_SHORTEST, _LONGEST = 0.004, 0.05  # seconds between two looks


async def poll(is_next: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Look until the asker may have the session, with growing pauses, at most for ``seconds``."""
    began = time.monotonic()
    while not await is_next():
        waited = time.monotonic() - began
        if waited >= seconds:
            return
        pause = min(_LONGEST, max(_SHORTEST, waited / 8))
        await asyncio.sleep(min(pause, seconds - waited))
