"""How commands reach the server: one set of connections for each event loop, with a deadline.

A command that may have been lost with its connection is sent again until the deadline; every
script of ours gives the same answer then. What the commands mean is not known here.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import redis.asyncio as redis_asyncio
from redis.asyncio.client import PubSub
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoScriptError,
    RedisClusterException,
    RedisError,
)

from session_middleware._fork import Step, forgetting_at_fork
from session_middleware.errors import MemoryClosed, MemoryUnavailable
from session_middleware.stores.passwords import without_password
from session_middleware.stores.redis.clients import PASSING, Client, Command, Where
from session_middleware.stores.redis.scripts import Script

T = TypeVar("T")

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.5

SCAN_PAGE = 1000
"""So many keys does a server look at for a page of a scan."""

_PASSING_WORDS = ("NOREPLICAS", "MASTERDOWN", "BUSY ", "FAILOVER", "UNBLOCKED")
_FINAL = (AuthenticationError, AuthorizationError)


class Connections:
    """The clients of one memory, one for each event loop that uses it.

    Args:
        make: makes the client of the running event loop.
        timeout: seconds for an operation, new attempts and connections included.
        replicas: so many replicas must confirm a write.
    """

    def __init__(
        self, make: Callable[[], Awaitable[Client]], *, timeout: float, replicas: int = 0
    ) -> None:
        self._make = make
        self._timeout = timeout
        self._replicas = replicas
        self._closed = False
        self.forget_all()
        _all.add(self)

    @property
    def one_server(self) -> bool:
        """Whether one server has all keys, as far as is known."""
        return all(client.one_server for client, _ in self._clients.values())

    async def has_one_server(self) -> bool:
        """Whether one server has all keys; it is asked where that is not known yet."""

        async def ask(client: Client) -> bool:
            return client.one_server

        return await self._attempts(ask)

    @property
    def opened(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._clients)

    def forget_all(self) -> None:
        """Hold no connections: as new, or in a forked child, whose parent holds them."""
        self._clients: dict[asyncio.AbstractEventLoop, tuple[Client, AsyncGenerator[None]]] = {}
        self._lock = threading.Lock()
        self.process = secrets.token_hex(8)  # names this process, whatever it was forked from
        self._under_way = 0
        self._idle: list[Future[None]] = []

    # --- what is asked ---------------------------------------------------------------------

    async def script(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        indexes: Sequence[str] = (),
        writes: bool = False,
    ) -> Any:
        """Run one script on the server that has its keys; returns its answer.

        Args:
            indexes: keys that the script gets as well where one server has all keys.
            writes: replicas must confirm it, where the memory asks for that.
        """
        waits = writes and self._replicas > 0

        def commands(client: Client, left: float) -> list[Command]:
            all_keys = (*keys, *indexes) if client.one_server else keys
            made: list[Command] = [_evalsha(script, all_keys, args)]
            if waits:
                # Half of the time: where the script's text must be sent, there is a second WAIT.
                made.append(("WAIT", self._replicas, max(1, int(left * 450))))
            return made

        answers = await self._until_deadline(keys[0], commands, script)
        if waits:
            self._check_confirmed(answers[1])
        return answers[0]

    async def scripts(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Any]]
    ) -> list[Any]:
        """Run one script on many sessions, at once."""
        commands = [_evalsha(script, keys, (arg,)) for keys, arg in calls]
        return await self._until_deadline(None, lambda *_: commands, script)

    async def commands(self, commands: Sequence[Command], where: Where = None) -> list[Any]:
        """Send plain commands at once; the first that fails raises."""
        return await self._until_deadline(where, lambda *_: commands)

    async def on_each_primary(self, command: Command) -> list[Any]:
        """The answer of every server that has keys to this command."""
        return [(await self.commands([command], primary))[0] for primary in await self._primaries()]

    async def _primaries(self) -> Sequence[Where]:
        async def ask(client: Client) -> Sequence[Where]:
            return await client.primaries()

        return await self._attempts(ask)

    async def scan(self, pattern: str, count: int = SCAN_PAGE) -> AsyncGenerator[list[bytes]]:
        """The keys that match, page by page and server by server; some may come twice."""

        for primary in await self._primaries():
            cursor = None
            while cursor != 0:
                page = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", count)
                ((answer, keys),) = await self.commands([page], primary)
                cursor = int(answer)
                yield keys

    @asynccontextmanager
    async def subscribed(self, channel: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Hear what is published on a channel; in a cluster nothing is heard."""
        pool = (await self._client(asyncio.get_running_loop())).pool()
        if pool is None:
            yield _nothing()
            return
        async with redis_asyncio.Redis(connection_pool=pool).pubsub() as messages:
            await messages.subscribe(channel)
            yield _published(messages)

    async def _until_deadline(
        self,
        where: Where,
        make: Callable[[Client, float], Sequence[Command]],
        script: Script | None = None,
    ) -> list[Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout

        async def attempt(client: Client) -> list[Any]:
            commands = make(client, deadline - loop.time())
            answers = await client.exchange(where, commands)
            if script and any(isinstance(answer, NoScriptError) for answer in answers):
                await self._send_text(client, where, commands, answers, script)
            _raise_first(answers)
            return answers

        return await self._attempts(attempt)

    @staticmethod
    async def _send_text(
        client: Client,
        where: Where,
        commands: Sequence[Command],
        answers: list[Any],
        script: Script,
    ) -> None:
        """Send those again whose script the server did not know, with its text."""
        for at, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                _, _, *rest = commands[at]
                again: list[Command] = [("EVAL", script.text, *rest)]
                again += [command for command in commands[at + 1 :] if command[0] == "WAIT"]
                answers[at : at + len(again)] = await client.exchange(where, again)

    async def _attempts(self, attempt: Callable[[Client], Awaitable[T]]) -> T:
        with self._lock:
            if self._closed:
                raise MemoryClosed("this memory was cleaned up: make a new RedisSessionMemory")
            self._under_way += 1
        try:
            return await self._attempts_until_deadline(attempt)
        finally:
            with self._lock:
                self._under_way -= 1
                while not self._under_way and self._idle:
                    self._idle.pop().set_result(None)

    async def _attempts_until_deadline(self, attempt: Callable[[Client], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        pause = FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await attempt(await self._client(loop))
            except builtins.TimeoutError as error:
                if loop.time() >= deadline:
                    raise MemoryUnavailable(
                        f"the server did not answer within {self._timeout:g} s: see whether it is "
                        "up and has room for another connection, or raise operation_timeout"
                    ) from error
            except (RedisError, RedisClusterException, OSError) as error:
                if not _passes(error) or loop.time() + pause >= deadline:
                    raise _unavailable(error) from error
                if isinstance(error, RedisClusterException) and loop in self._clients:
                    await self._clients[loop][1].aclose()  # it knows nobody who is there
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
            pause = min(2 * pause, LONGEST_PAUSE)

    def _check_confirmed(self, replicas: int) -> None:
        if replicas < self._replicas:
            raise MemoryUnavailable(
                f"{replicas} of the {self._replicas} replicas confirmed the write, which the "
                "primary has stored: see to the replicas, or lower replicas="
            )

    # --- life ------------------------------------------------------------------------------

    async def _client(self, loop: asyncio.AbstractEventLoop) -> Client:
        known = self._clients.get(loop)
        if known is not None:
            return known[0]
        for other in [other for other in self._clients if other.is_closed()]:
            del self._clients[other]
        client = await self._make()
        if loop in self._clients:  # another task was faster
            await client.close()
            return self._clients[loop][0]
        # The loop closes its asynchronous generators before it ends, and with it the connections.
        ending = self._close_with_loop(loop, client)
        self._clients[loop] = (client, ending)
        await anext(ending)
        return client

    async def _close_with_loop(
        self, loop: asyncio.AbstractEventLoop, client: Client
    ) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            await client.close()

    async def close(self) -> None:
        """Close the connections of every loop that still runs, once what was asked is done.

        What is asked from now on is refused.
        """
        here = asyncio.get_running_loop()
        idle: Future[None] = Future()
        with self._lock:
            self._closed = True
            if self._under_way:
                self._idle.append(idle)
            else:
                idle.set_result(None)
        await asyncio.wait((asyncio.wrap_future(idle),), timeout=self._timeout)
        clients, self._clients = self._clients, {}
        for loop, (_, ending) in clients.items():
            if loop is here:
                await ending.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(_close(ending), loop)


async def _close(ending: AsyncGenerator[None]) -> None:
    await ending.aclose()


async def _nothing() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def _published(messages: PubSub) -> AsyncIterator[bytes]:
    async for message in messages.listen():
        if message["type"] == "message":
            data = message["data"]
            yield data.encode() if isinstance(data, str) else data


def _evalsha(script: Script, keys: Sequence[str], args: Sequence[Any]) -> Command:
    return ("EVALSHA", script.digest, len(keys), *keys, *args)


def _raise_first(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _passes(error: BaseException) -> bool:
    """Whether the same may succeed a moment later."""
    if isinstance(error, _FINAL):
        return False
    return isinstance(error, PASSING) or str(error).startswith(_PASSING_WORDS)


def _unavailable(error: BaseException) -> MemoryUnavailable:
    # What follows are the command's arguments, with words of a conversation among them.
    said = without_password(str(error)).partition(", with args")[0] or type(error).__name__
    return MemoryUnavailable(
        f"the Redis server cannot be used ({type(error).__name__}: {said}): see whether it is up, "
        "reachable and writable, then try again"
    )


_all = forgetting_at_fork(
    Step.CONNECTIONS, Connections.forget_all, keeps=lambda connections: connections._clients
)
