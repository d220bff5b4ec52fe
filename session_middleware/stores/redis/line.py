"""Waiting for a busy session: woken by a message of the server, else by looking again.

A message is a ticket: the first in the line of a session that became free. It may be lost, and
nobody sends one when a holder dies, so whoever waits looks from time to time.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from redis.exceptions import RedisError

from session_middleware.stores.redis.calls import Calls
from session_middleware.stores.redis.connections import Connections

LOOK_AGAIN = 0.25
"""Seconds between two looks of one who listens as well."""


class Line:
    """Those of this process who wait for sessions of one memory, by event loop."""

    def __init__(self, connections: Connections, calls: Calls, channel: str) -> None:
        self._connections = connections
        self._calls = calls
        self._channel = channel
        self._listeners: dict[asyncio.AbstractEventLoop, _Listener] = {}

    async def wait(self, session_id: str, ticket: int, seconds: float) -> None:
        """Return when the ticket may be first at a free session, or after ``seconds``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        woken = await self._listen(loop, ticket)
        try:
            while not await self._calls.may_be_next(session_id, ticket):
                left = deadline - loop.time()
                if left <= 0:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_AGAIN)):
                        await woken.wait()
                        return
        finally:
            self._listeners[loop].forget(ticket)

    async def _listen(self, loop: asyncio.AbstractEventLoop, ticket: int) -> asyncio.Event:
        for other in [other for other in self._listeners if other.is_closed()]:
            del self._listeners[other]
        listener = self._listeners.get(loop)
        if listener is None:
            listener = self._listeners[loop] = _Listener(self._connections, self._channel)
        return await listener.expect(ticket)


class _Listener:
    """Hears the messages of one event loop, as long as somebody there waits."""

    def __init__(self, connections: Connections, channel: str) -> None:
        self._connections = connections
        self._channel = channel
        self._waiting: dict[bytes, asyncio.Event] = {}
        self._hearing: asyncio.Task[None] | None = None

    async def expect(self, ticket: int) -> asyncio.Event:
        """Hear of the ticket from now on; returns what is set when its message comes."""
        event = self._waiting[b"%d" % ticket] = asyncio.Event()
        if self._hearing is None or self._hearing.done():
            subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._hearing = asyncio.ensure_future(self._hear(subscribed))
            await asyncio.wait((subscribed, self._hearing), return_when="FIRST_COMPLETED")
        return event

    def forget(self, ticket: int) -> None:
        self._waiting.pop(b"%d" % ticket, None)
        if not self._waiting and self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None

    async def _hear(self, subscribed: asyncio.Future[None]) -> None:
        with suppress(RedisError, OSError):  # whoever waits looks again by itself
            async with self._connections.subscribed(self._channel) as messages:
                if not subscribed.done():
                    subscribed.set_result(None)
                async for ticket in messages:
                    if ticket in self._waiting:
                        self._waiting[ticket].set()
