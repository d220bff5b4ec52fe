"""The memory on a Valkey server passes the suite that ships with the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from session_middleware.conformance import MemoryConformance
from session_middleware.memory import SessionMemory
from session_middleware.stores.records import Item
from session_middleware.stores.redis import RedisSessionMemory
from session_middleware.stores.redis.keys import Keys
from tests.support.forked_peers import ForkedPeers
from tests.support.limits import little_time
from tests.support.proxy import proxy_to
from tests.support.valkey import own_prefix


class TestRedis(ForkedPeers, MemoryConformance):
    @pytest.fixture(autouse=True)
    def on_a_server(self, redis_url: str) -> Iterator[None]:
        self.prefix = own_prefix()
        self.client = redis.Redis.from_url(redis_url)
        with proxy_to(urlsplit(redis_url).port or 6379) as self.proxy, self.client:
            self.url = f"redis://127.0.0.1:{self.proxy.port}/0"
            yield

    def make_memory(self) -> SessionMemory:
        return RedisSessionMemory(self.url, key_prefix=self.prefix, lease=3)

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        return RedisSessionMemory(self.url, key_prefix=self.prefix, lease=3)

    def peer_program(self, memory: SessionMemory) -> str:
        return (
            "from session_middleware import RedisSessionMemory\n"
            f"memory = RedisSessionMemory({self.url!r}, key_prefix={self.prefix!r}, lease=3)"
        )

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        """Behind the memory's back, as the clock would."""
        self.client.hset(Keys(self.prefix).of_session(session_id)[0], "until", "1")

    async def raw_items(self, memory: SessionMemory, session_id: str) -> list[Item]:
        members: Any = self.client.zrange(Keys(self.prefix).items_of(session_id), 0, -1)
        return [json.loads(member[27:]) for member in members]

    async def raw_bytes(self, memory: SessionMemory) -> bytes:
        """What is in the server's memory, as it would be written to a file."""
        keys: Any = list(self.client.scan_iter(f"{self.prefix}:*"))
        return b"".join(key + (self.client.dump(key) or b"") for key in keys)

    @contextmanager
    def unavailable(self, memory: SessionMemory) -> Iterator[None]:
        with self.proxy.refusing(), little_time(memory):
            yield
