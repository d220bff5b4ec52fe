"""The hooks that the author of a memory overrides, and how a test gets its memory or is skipped.

Nothing here depends on pytest: a test is a plain method that runs its own event loop, and a
skipped test raises ``unittest.SkipTest``, which pytest and unittest report with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn, TypeVar
from unittest import SkipTest

from session_middleware.memory import SessionMemory
from session_middleware.stores.protocol import TURNS, TurnStore
from session_middleware.stores.records import Item

S = TypeVar("S", bound="Hooks")
T = TypeVar("T", bound=Callable[..., Awaitable[None]])


class Hooks:
    """Methods for a subclass to override. Only ``make_memory`` must be.

    A hook that is not overridden skips the tests that need it, and the reason names the hook.
    """

    def make_memory(self) -> SessionMemory:
        """Return a new memory with nothing in it; called once for every test."""
        raise NotImplementedError(f"{type(self).__name__} must override make_memory()")

    def turns_of(self, memory: Any) -> TurnStore:
        """Return the store that keeps the turns of a memory: the memory itself, by default."""
        if TURNS not in memory.capabilities:
            skip(f"the memory does not declare the capability {TURNS!r}")
        store: TurnStore = memory
        return store

    def make_peer(self, memory: Any) -> SessionMemory:
        """Return another memory object on the same storage, as another process would open it."""
        skip_hook("make_peer")

    def peer_program(self, memory: Any) -> str:
        """Return Python statements that make ``memory``, on the same storage, in a new process."""
        skip_hook("peer_program")

    async def expire(self, memory: Any, session_id: str) -> None:
        """Make the lease of a session look as if its holder had died long ago."""
        skip_hook("expire")

    async def raw_items(self, memory: Any, session_id: str) -> list[Item]:
        """Read the items of a session, in order, from the storage and not through the memory."""
        skip_hook("raw_items")

    async def raw_bytes(self, memory: Any) -> bytes:
        """Read all bytes of the storage in which a word of a conversation could be found."""
        skip_hook("raw_bytes")

    def unavailable(self, memory: Any) -> AbstractContextManager[None]:
        """Return a context manager inside which the storage can be neither read nor written."""
        skip_hook("unavailable")


def skip(reason: str) -> NoReturn:
    """End this test as skipped, for this reason."""
    raise SkipTest(reason)


def skip_hook(name: str) -> NoReturn:
    """End this test as skipped because the suite does not override a hook."""
    skip(f"the suite does not override the hook {name}()")


def needs(*capabilities: str) -> Callable[[T], T]:
    """Skip a test on a memory that lacks one of these capabilities."""

    def marked(test: T) -> T:
        test.needs = capabilities  # type: ignore[attr-defined]  # read by ``_skip_if_lacking``
        return test

    return marked


def _skip_if_lacking(store: Any, test: object) -> None:
    for capability in getattr(test, "needs", ()):
        if capability not in store.capabilities:
            skip(f"the memory does not declare the capability {capability!r}")


def _case(
    test: Callable[[S, Any], Awaitable[None]], run: Callable[[S, Any], Awaitable[None]]
) -> Any:
    """Run ``run`` on a new memory in an event loop of its own, and clean up after it."""

    async def with_memory(case: S) -> None:
        memory = case.make_memory()
        try:
            await run(case, memory)
        finally:
            await memory.cleanup()

    def synchronous(case: S) -> None:
        asyncio.run(with_memory(case))

    # Not functools.wraps: pytest would look for the parameters of what is wrapped.
    synchronous.__name__ = test.__name__
    synchronous.__qualname__ = test.__qualname__
    synchronous.__doc__ = test.__doc__
    return synchronous


def given_a_memory(test: Callable[[S, Any], Awaitable[None]]) -> Callable[[S], None]:
    """Make a test of an asynchronous method that takes a new memory."""

    async def run(case: S, memory: Any) -> None:
        _skip_if_lacking(memory, test)
        await test(case, memory)

    case: Callable[[S], None] = _case(test, run)
    return case


def given_turns(test: Callable[[S, TurnStore], Awaitable[None]]) -> Callable[[S], None]:
    """Make a test of an asynchronous method that takes the turn store of a new memory."""

    async def run(case: S, memory: Any) -> None:
        turns = case.turns_of(memory)
        _skip_if_lacking(turns, test)
        await test(case, turns)

    case: Callable[[S], None] = _case(test, run)
    return case
