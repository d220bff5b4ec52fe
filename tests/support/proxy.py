"""A proxy on this machine between a client and a server: it counts exchanges and cuts connections.

It knows no protocol. What a client sends until something comes back is one request; a request is
counted, and may be lost on its way, or its answer may be.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["request", "answer"]


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to another.

    Attributes:
        requests: how many were passed on, of all connections.
        sent, received: bytes that clients sent, and that they were answered with.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._fault: tuple[int, Fault] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refuses = False
        self._refuses_after_loss = False
        self.requests = 0
        self.sent = 0
        self.received = 0
        self.port = 0

    def lose(self, what: Fault, number: int) -> None:
        """Cut the connection of the request of this number from now, from 1, once.

        "request": the server never gets it. "answer": the server does what it asks, and the
        client never hears of it.
        """
        self._fault = (self.requests + number, what)

    @property
    def is_armed(self) -> bool:
        """Whether what was to be lost was not lost yet."""
        return self._fault is not None

    def disarm(self) -> None:
        self._fault = None

    def cut_all(self) -> None:
        """Cut every connection there is."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut every connection, and those that come within the block."""
        self._refuses = True
        self.cut_all()
        try:
            yield
        finally:
            self._refuses = False

    @contextmanager
    def gone_before_its_answer(self) -> Iterator[None]:
        """Lose the answer to the next request; from then on refuse connections within the block."""
        self._refuses_after_loss = True
        self.lose("answer", 1)
        try:
            yield
        finally:
            self._refuses_after_loss = self._refuses = False

    def _loses(self) -> None:
        self._refuses = self._refuses or self._refuses_after_loss

    def _start(self) -> None:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        )
        self._server = started.result(30)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there = None
        try:
            if self._refuses:
                return
            from_server, there = await asyncio.open_connection("127.0.0.1", self._server_port)
            connection = _Connection(self, reader, writer, from_server, there)
            pumps = [
                asyncio.ensure_future(connection.requests()),
                asyncio.ensure_future(connection.answers()),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, there):
                if each is not None:
                    each.transport.abort()

    def _passes(self) -> Fault | None:
        """Count a request; returns what of it is to be lost."""
        self.requests += 1
        if self._fault is not None and self._fault[0] == self.requests:
            what = self._fault[1]
            self._fault = None
            return what
        return None


class _Connection:
    def __init__(
        self,
        proxy: Proxy,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = from_client, to_client
        self._from_server, self._to_server = from_server, to_server
        self._asked = False
        self._loses_answer = False

    async def requests(self) -> None:
        while chunk := await self._from_client.read(65536):
            if not self._asked:
                self._asked = True
                lost = self._proxy._passes()
                if lost == "request":
                    return
                self._loses_answer = lost == "answer"
            self._proxy.sent += len(chunk)
            self._to_server.write(chunk)
            await self._to_server.drain()

    async def answers(self) -> None:
        while chunk := await self._from_server.read(65536):
            if self._loses_answer:
                self._proxy._loses()
                return
            self._asked = False
            self._proxy.received += len(chunk)
            self._to_client.write(chunk)
            await self._to_client.drain()


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """A proxy that ends with the block."""
    proxy = Proxy(port)
    proxy._start()
    try:
        yield proxy
    finally:
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(proxy._stop(), proxy._loop).result(30)
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        proxy._thread.join(30)
        proxy._loop.close()
