"""What is known of all sessions at once: their orders, what is parked, and the traces of turns.

A single server writes the indexes with the session, in its scripts. In a cluster they may lie on
another server and are written right after; ``sweeping`` makes up for an entry that a crash left
out. An entry alone proves nothing: its reader asks the session as well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from session_middleware import _background
from session_middleware.errors import SessionMemoryError
from session_middleware.stores.redis.clients import Command
from session_middleware.stores.redis.connections import Connections
from session_middleware.stores.redis.keys import Keys
from session_middleware.stores.redis.scripts import ENTRIES, PAGE

FEW = 5000
"""So many sessions of one user, in one shard, are sorted for each page of them."""

_RAISE = """
    if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then
        redis.call('SET', KEYS[1], ARGV[1])
    end
"""
_LAST = 2**52
"""A fence that the clock, in microseconds, does not reach before the year 2112."""


@dataclass(slots=True)
class Entries:
    """What the indexes have of one session: names of parked runs, turns that wait, traces."""

    parked: list[str] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    traces: list[tuple[str, int]] = field(default_factory=list)


class Index:
    """The indexes of one memory.

    Attributes:
        floor: in a cluster, a fence that every later one is above; 0 where one server knows it.
    """

    def __init__(self, connections: Connections, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys
        self._waiting: set[tuple[str, int | None]] = set()
        self._under_way: set[Future[None]] = set()
        self.floor = 0
        self._floor_is_known = False

    # --- writing ---------------------------------------------------------------------------

    def update_soon(self, session_id: str, turn: int | None = None) -> None:
        """Bring the entries of a session up to date in the background."""
        if (session_id, turn) in self._waiting:
            return

        async def update() -> None:
            self._waiting.discard((session_id, turn))
            with suppress(SessionMemoryError):  # a sweep makes up for it
                await self.update(session_id, turn=turn)

        self._waiting.add((session_id, turn))
        under_way = _background.submit(update())
        self._under_way.add(under_way)
        under_way.add_done_callback(self._under_way.discard)

    async def update(
        self,
        session_id: str,
        had: Entries | None = None,
        *,
        turn: int | None = None,
        all_turns: bool = False,
    ) -> None:
        """Bring the entries of a session up to date. Two exchanges.

        Args:
            had: entries that may be there and go, unless they hold; those of traces only where
                ``all_turns`` is said.
            turn: the turn that was changed.
            all_turns: the entries of every turn, not of those alone that may have changed.
        """
        asked: dict[str, Any] = {"id": session_id, "ticket_seconds": 0, "all": all_turns}
        header = json.dumps(asked if turn is None else {**asked, "turn": turn})
        keys = self._keys.of_session(session_id)
        facts = await self._connections.script(ENTRIES, keys, (header,))
        await self._connections.commands(self._entries(session_id, facts, had or Entries()))

    def _entries(self, session_id: str, facts: Sequence[Any], had: Entries) -> list[Command]:
        keys = self._keys.indexes_of(session_id)
        own = session_id.encode()
        commands: list[Command] = []
        dates, identities, waiting, traces = facts
        if dates:
            created, updated = dates
            commands += [
                ("ZADD", keys.recent, updated, own),
                ("ZADD", keys.created, created, own),
                ("ZADD", keys.names, 0, own),
            ]
        else:
            commands += [("ZREM", key, own) for key in (keys.recent, keys.created, keys.names)]
        parked = {name.encode() for name in had.parked} - set(identities)
        commands += [("ZREM", keys.parked, name + b"\n" + own) for name in parked]
        ended = set(had.waiting) - {number for number, _ in waiting}
        commands += [("ZREM", keys.waiting, b"%s\n%d" % (own, number)) for number in ended]
        told = {(trace.encode(), number) for trace, number in had.traces}
        untold = told - {(trace, number) for trace, number in traces}
        commands += [
            ("ZREM", keys.traces, b"%s\n%s\n%d" % (trace, own, number)) for trace, number in untold
        ]
        commands += [("ZADD", keys.parked, 0, name + b"\n" + own) for name in identities]
        for number, since in waiting:
            member = b"%s\n%d" % (own, number)
            add = ("ZADD", keys.waiting, since, member)
            commands.append(add if since else ("ZREM", keys.waiting, member))
        commands += [
            ("ZADD", keys.traces, 0, b"%s\n%s\n%d" % (trace, own, number))
            for trace, number in traces
        ]
        return commands

    # --- reading ---------------------------------------------------------------------------

    async def page(self, **asked: Any) -> list[tuple[str, int]]:
        """The next sessions in an order, each with what it is sorted by: one query a shard."""
        await self.settled()
        given = {name: value for name, value in asked.items() if value is not None}
        header = json.dumps({**given, "few": FEW})
        calls = [(shard, header) for shard in self._keys.all_indexes]
        answers = await self._connections.scripts(PAGE, calls)
        found = [
            (int(float(key or 0)), name)  # the server may write 1.7e+15
            for shard in answers
            for name, key in shard
        ]
        by_id = asked["order"] == "id"
        found.sort(reverse=not by_id)
        return [(name.decode(), key) for key, name in found[: asked["limit"]]]

    async def sessions_parking(self, identity: str) -> list[str]:
        """The sessions in which a run is parked under this identity. Two exchanges."""
        low, high = f"[{identity}\n", f"({identity}\v"
        found = await self._connections.commands(
            [("ZRANGEBYLEX", shard.parked, low, high) for shard in self._keys.all_indexes]
        )
        named = [member.decode().partition("\n")[2] for members in found for member in members]
        return [
            each
            for each, holds in zip(named, await self._park(named, identity), strict=True)
            if holds
        ]

    async def _park(self, session_ids: Sequence[str], identity: str) -> list[bool]:
        parks = [self._keys.of_session(each)[3] for each in session_ids]
        if not parks:
            return []
        return await self._connections.commands([("HEXISTS", key, identity) for key in parks])

    async def traced(self, trace_id: str) -> list[tuple[str, int]]:
        """The sessions and turns that may have a trace."""
        await self.settled()
        wanted = trace_id.encode("utf-8", "surrogatepass")
        found = await self._connections.commands(
            [
                ("ZRANGEBYLEX", shard.traces, b"[%s\n" % wanted, b"(%s\v" % wanted)
                for shard in self._keys.all_indexes
            ]
        )
        places = [member.rsplit(b"\n", 2) for members in found for member in members]
        return [(name.decode(), int(turn)) for trace, name, turn in places if trace == wanted]

    async def waiting(self) -> list[str]:
        """The sessions in which a run may wait for approval."""
        await self.settled()
        found = await self._connections.commands(
            [("ZRANGE", shard.waiting, 0, -1) for shard in self._keys.all_indexes]
        )
        named = [member.decode().partition("\n")[0] for members in found for member in members]
        return list(dict.fromkeys(named))

    async def figures(self) -> tuple[int, float | None]:
        """How many turns wait for approval, and since when the oldest does, since 1970."""
        shards = self._keys.all_indexes
        commands: list[Command] = [("ZCARD", shard.waiting) for shard in shards]
        commands += [("ZRANGE", shard.waiting, 0, 0, "WITHSCORES") for shard in shards]
        answers = await self._connections.commands(commands)
        counts, oldest = answers[: len(shards)], answers[len(shards) :]
        since = [float(each[1]) / 1e6 for each in oldest if each]
        return sum(counts), min(since, default=None)

    # --- fences ----------------------------------------------------------------------------

    async def know_floor(self) -> None:
        """In a cluster, read once what no server of a session can know: see ``floor``."""
        if not self._floor_is_known:
            if not await self._connections.has_one_server():
                await self.read_floor()
            self._floor_is_known = True

    async def read_floor(self) -> int:
        """The fence that other memories had given when sessions were copied from them."""
        (stored,) = await self._connections.commands([("GET", self._keys.fence)], self._keys.fence)
        self.floor = 0 if self._connections.one_server else int(stored or 0)
        return int(stored or 0)

    async def raise_floor(self, fence: int) -> None:
        """Let every later fence be above this one; other processes know it a minute later."""
        key = self._keys.fence
        await self._connections.commands([("EVAL", _RAISE, 1, key, min(fence, _LAST))], key)
        await self.read_floor()

    async def settled(self) -> None:
        """Wait for the updates of this process, so that it finds what it has written."""
        under_way = [asyncio.wrap_future(update) for update in list(self._under_way)]
        if under_way:
            await asyncio.wait(under_way)
