"""The memories of one test: opened on any backend, what ``memory=True`` means, and gone after it.

Free of pytest: ``pytest_session_middleware`` makes fixtures of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Callable, Coroutine
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from session_middleware.memory_option import put_default_of_a_test
from session_middleware.stores import open_memory
from session_middleware.stores.base import TurnMemory
from session_middleware.testing.leases import LeaseClock

__all__ = ["MemoriesOfTest"]


class MemoriesOfTest:
    """Makes the memories of a test; they are closed, and their storage is removed, at its end.

    While it is entered, ``memory=True`` means a memory of the test: first one on a file in the
    folder, then the newest that was opened. Other processes that the test starts get the same
    from SESSION_MIDDLEWARE_MEMORY, unless it is a memory that only this process has.

    Attributes:
        memory: the one on a file.
        clock: the clock of the leases in all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.clock = LeaseClock()
        self._folder = folder
        self._opened: list[TurnMemory] = []
        self._remove: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def __enter__(self) -> Self:
        self._environment = os.environ.get("SESSION_MIDDLEWARE_MEMORY")
        self._default = put_default_of_a_test(None)
        self.memory = self._open(f"sqlite:///{self._folder / 'session_memory.db'}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        put_default_of_a_test(self._default)
        if self._environment is None:
            del os.environ["SESSION_MIDDLEWARE_MEMORY"]
        else:
            os.environ["SESSION_MIDDLEWARE_MEMORY"] = self._environment
        _carry_out(self._close)

    def in_memory(self) -> TurnMemory:
        """A memory that only this process has."""
        return self._open(":memory:")

    def on_postgres(self, url: str) -> TurnMemory:
        """A memory in a schema of its own, in the database that the URL names."""
        return self._on_server(url, "schema", "postgres")

    def on_redis(self, url: str) -> TurnMemory:
        """A memory under a prefix of its own, on the server that the URL names."""
        return self._on_server(url, "key_prefix", "redis")

    def _on_server(self, url: str, option: str, folder: str) -> TurnMemory:
        own = f"{url}{'&' if '?' in url else '?'}{option}=test_{secrets.token_hex(8)}"

        async def remove() -> None:
            store: Any = import_module(f"session_middleware.stores.{folder}.for_tests")
            async with open_memory(own) as memory:  # the test may have closed its own
                await store.remove(memory)

        self._remove.append(remove)
        return self._open(own)

    def _open(self, url: str) -> TurnMemory:
        memory = open_memory(url)
        self._opened.append(memory)
        self.clock.add(memory)
        put_default_of_a_test(memory)
        if url != ":memory:":
            os.environ["SESSION_MIDDLEWARE_MEMORY"] = url
        return memory

    async def _close(self) -> None:
        try:
            for memory in self._opened:
                await memory.cleanup()
        finally:
            for remove in self._remove:
                await remove()


def _carry_out(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function in a loop and a thread of its own, so that no loop is disturbed."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(function())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
