"""A lock for coroutines of any thread and any event loop; asyncio's own belong to one loop.

It is not fair and not reentrant: whoever waits looks again when it is free.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future


class Exclusion:
    """``async with``: one coroutine at a time.

    Attributes:
        held: whether somebody is inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: Future[None] | None = None  # made for the first one that waits
        self.held = False

    async def __aenter__(self) -> None:
        while True:
            with self._lock:
                if not self.held:
                    self.held = True
                    return
                if self._free is None:
                    self._free = Future()
                free = self._free
            await asyncio.shield(asyncio.wrap_future(free))

    async def __aexit__(self, *exc_info: object) -> None:
        with self._lock:
            free, self._free = self._free, None
            self.held = False
        if free is not None:
            free.set_result(None)
