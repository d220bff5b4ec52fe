"""A proxy between a client and PostgreSQL on this machine, which reads the protocol as it passes.

It counts round trips, and cuts connections before a message of the test's choice is handed on. It
runs in a thread of its own, so a test may block its loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

_ASKS = b"QSH"  # Query, Sync and Flush: after each of these a client waits for the server
_SSL_REQUEST = 80877103
_STARTUP_MESSAGES = b"\0"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the protocol.

    Attributes:
        client: the client sent it; else the server did.
        kind: its type byte, such as b"Q"; b"\\0" for those that begin a connection.
        number: how many came before it, of all connections, since the last ``count_anew``.
    """

    client: bool
    kind: bytes
    number: int


class PostgresProxy:
    """Hands everything on to the server, and reads along.

    Attributes:
        cut_before: asked about each message; True cuts its connection instead of handing it on.
        asks: how often a client has sent something and then waited, since ``count_anew``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self.cut_before: Callable[[Message], bool] = lambda message: False
        self.asks = 0
        self.messages = 0
        self.refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        port = self._listener.sockets[0].getsockname()[1]
        user = f"{parts.username}@" if parts.username else ""
        self.url = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{port}"))

    def count_anew(self) -> None:
        """Begin to count from 0."""
        self.asks = self.messages = 0

    def cut(self) -> None:
        """Cut every connection there is."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """Cut every connection, and take no new one, for this block."""
        self.refuses = True
        self.cut()
        try:
            yield
        finally:
            self.refuses = False

    def close(self) -> None:
        """End it."""

        async def end() -> None:
            self._listener.close()
            self._cut()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- in its thread -----------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuses:
            writer.transport.abort()
            return
        with suppress(OSError, asyncio.IncompleteReadError):
            upstream = await asyncio.open_connection(*self._server)
            both = {writer, upstream[1]}
            self._writers |= both
            try:
                ways = (
                    asyncio.ensure_future(self._client_way(reader, upstream[1], writer)),
                    asyncio.ensure_future(self._server_way(upstream[0], writer)),
                )
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._writers -= both
                for end in both:
                    end.transport.abort()

    async def _client_way(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        while True:  # what begins a connection has no type byte
            length = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(length) - 4)
            if not self._passes(True, _STARTUP_MESSAGES):
                return
            if int.from_bytes(body[:4]) == _SSL_REQUEST:
                client.write(b"N")
                continue
            server.write(length + body)
            break
        await self._hand_on(reader, server, client=True)

    async def _server_way(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        await self._hand_on(reader, client, client=False)

    async def _hand_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool
    ) -> None:
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
            if not self._passes(client, head[:1]):
                return
            writer.write(head + body)
            await writer.drain()

    def _passes(self, client: bool, kind: bytes) -> bool:
        message = Message(client, kind, self.messages)
        self.messages += 1
        if client and kind in _ASKS:
            self.asks += 1
        return not self.cut_before(message)
