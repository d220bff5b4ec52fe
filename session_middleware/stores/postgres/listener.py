"""Being told at once that a session is free: one connection of a process that listens.

It is opened from the background loop when somebody first waits, and again where it broke. Who
waits is woken early rather than late: a notification may come while the connection is being made,
so whoever waits first looks once more when it stands. Without a connection waiting just ends at
its limit, and the session is asked for again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from session_middleware import _background
from session_middleware._fork import Step, forgetting_at_fork
from session_middleware.stores.postgres.connection import Server

_REMEMBERED = 5.0  # seconds for a notification that came before its asker waited
_BREAK = 5.0  # seconds after a failure during which no new connection is tried


class Listener:
    """The waiting askers of one memory.

    Args:
        server: the database.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.forget_all()
        _listeners.add(self)

    def forget_all(self) -> None:
        """Listen to nothing: as new, or in a forked child, whose parent has the connection."""
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[None]] = {}
        self._woken: dict[int, float] = {}
        self._connection: Any = None
        self._connecting: Future[bool] | None = None
        self._failed_at = float("-inf")

    async def wait(self, ticket: int, seconds: float) -> bool:
        """Wait until the ticket is called, at most for so many seconds.

        Returns whether anybody listened; where not, this returns at once.
        """
        woken: Future[None] = Future()
        with self._lock:
            if self._woken.pop(ticket, None) is not None:
                return True
            self._waiting[ticket] = woken
        try:
            listens, is_new = await self._listens()
            if listens and not is_new:
                await asyncio.wait((asyncio.wrap_future(woken),), timeout=seconds)
            return listens
        finally:
            with self._lock:
                self._waiting.pop(ticket, None)

    async def _listens(self) -> tuple[bool, bool]:
        """Whether a connection listens, and whether it does so only now."""
        with self._lock:
            if self._connection is not None and not self._connection.is_closed():
                return True, False
            if self._connecting is None:
                if time.monotonic() < self._failed_at + _BREAK:
                    return False, False
                self._connecting = _background.submit(self._connect())
            connecting = self._connecting
        return await asyncio.shield(asyncio.wrap_future(connecting)), True

    # --- the background loop ---------------------------------------------------------------

    async def _connect(self) -> bool:
        connection = None
        try:
            connection = await self._server.connect()
            await connection.add_listener(self._server.names.of("channel"), self._heard)
        except Exception:
            connection = None
        with self._lock:
            self._connection = connection
            self._connecting = None
            if connection is None:
                self._failed_at = time.monotonic()
        return connection is not None

    def _heard(self, connection: Any, process: int, channel: str, payload: str) -> None:
        now = time.monotonic()
        with self._lock:
            woken = self._waiting.pop(int(payload), None)
            if woken is None:  # of another memory, or it does not wait yet
                self._woken = {t: at for t, at in self._woken.items() if at > now - _REMEMBERED}
                self._woken[int(payload)] = now
        if woken is not None:
            woken.set_result(None)

    async def close(self) -> None:
        """Listen no more. From any loop."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:

            async def end() -> None:
                with suppress(Exception):
                    await connection.close(timeout=2)

            await asyncio.wrap_future(_background.submit(end()))


_listeners = forgetting_at_fork(
    Step.CONNECTIONS, Listener.forget_all, keeps=lambda listener: listener._connection
)
