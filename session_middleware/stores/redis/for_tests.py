"""What ``session_middleware.testing`` does to a server: leases look older, a prefix goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_middleware.stores.redis.keys import Keys

if TYPE_CHECKING:
    from session_middleware.stores.redis.memory import RedisSessionMemory

_AGE = """
    if redis.call('HEXISTS', KEYS[1], 'until') == 1 then
        redis.call('HINCRBY', KEYS[1], 'until', ARGV[1])
    end
"""


async def age_leases(memory: RedisSessionMemory, seconds: float) -> None:
    """Let every lease under the memory's prefix end so many seconds earlier."""
    connections = memory._connections
    async for page in connections.scan(Keys(memory._identity[-1]).sessions):
        for key in page:
            command = ("EVAL", _AGE, 1, key, -round(seconds * 1000))
            await connections.commands([command], key.decode())


async def remove(memory: RedisSessionMemory) -> None:
    """Delete every key under the memory's prefix."""
    connections = memory._connections
    async for page in connections.scan(f"{memory._identity[-1]}:*"):
        for key in page:
            await connections.commands([("DEL", key)], key.decode())
