"""Memories on the server that the tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from session_middleware.stores.redis import RedisSessionMemory
from tests.support.valkey import own_prefix


@pytest.fixture
async def make_memory(redis_url: str) -> AsyncIterator[Callable[..., RedisSessionMemory]]:
    """Make memories on one prefix, all closed at the end of the test."""
    made: list[RedisSessionMemory] = []
    prefix = own_prefix()

    def make(url: str = redis_url, **options: Any) -> RedisSessionMemory:
        memory = RedisSessionMemory(url, **({"key_prefix": prefix} | options))
        made.append(memory)
        return memory

    yield make
    for memory in made:
        await memory.cleanup()
