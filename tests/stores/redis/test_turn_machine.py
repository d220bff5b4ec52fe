"""Turns in any order, as several memory objects on one server make them."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from session_middleware.stores.redis import RedisSessionMemory
from session_middleware.stores.redis.keys import Keys
from tests.support.turn_machine import FEW, run_machine
from tests.support.valkey import own_prefix


class Prefix:
    """Keys of one story on a server that others use as well."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = own_prefix()

    def open(self, lease: float) -> Any:
        return RedisSessionMemory(self.url, key_prefix=self.prefix, lease=lease)

    async def pass_time(self, seconds: float) -> None:
        with redis.Redis.from_url(self.url) as client:
            for session in client.scan_iter(Keys(self.prefix).sessions):
                client.hincrby(session, "until", -round(seconds * 1000))

    def close(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            for key in client.scan_iter(f"{self.prefix}:*"):
                client.delete(key)


def test_turns_of_several_memories_on_one_server(redis_url: str) -> None:
    """A few stories of turns, the same in every run."""
    run_machine(lambda: Prefix(redis_url), examples=FEW, steps=25)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_stories_of_turns(redis_url: str) -> None:
    """Many and longer stories of turns."""
    run_machine(lambda: Prefix(redis_url), examples=200, steps=50)
