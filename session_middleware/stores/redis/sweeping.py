"""Mending the indexes over all sessions, page by page, in the background.

On one server the scripts keep them right; what is left over there is of sessions that expired. In a
cluster an index may lie on another server than the session, and a process may die between the two
writes: what is left over goes, and what is missing is added. One process does it at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from session_middleware.stores.redis import scripts
from session_middleware.stores.redis.calls import Calls
from session_middleware.stores.redis.connections import Connections
from session_middleware.stores.redis.index import Entries, Index
from session_middleware.stores.redis.keys import Indexes, Keys

PAUSE = 5.0
"""Seconds between two pages."""

_PAGE = 200
"""So many entries does a server look at for a page, about."""


class Sweeping:
    """The sweep of one memory's indexes, which goes round them again and again.

    Args:
        ttl: whether sessions expire.
    """

    def __init__(
        self, connections: Connections, keys: Keys, calls: Calls, index: Index, *, ttl: bool
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._calls = calls
        self._index = index
        self._ttl = ttl
        self._round: AsyncGenerator[None] | None = None

    @property
    def is_needed(self) -> bool:
        """Whether there can be something to mend, as far as is known."""
        return self._ttl or not self._connections.one_server

    async def step(self) -> None:
        """Mend one page, if no other process is at it."""
        one_server = await self._connections.has_one_server()
        if not one_server:
            await self._index.read_floor()
        mine = ("SET", self._keys.sweep, "1", "NX", "PX", round(PAUSE * 500))
        (got,) = await self._connections.commands([mine], self._keys.sweep)
        if got is None:
            return
        if self._round is None:
            self._round = self._pages(one_server)
        try:
            await anext(self._round)
        except StopAsyncIteration:
            self._round = None
        except BaseException:
            self._round = None
            raise

    async def _pages(self, one_server: bool) -> AsyncGenerator[None]:
        for shard in self._keys.all_indexes:
            for key in (shard.names, shard.parked, shard.waiting, shard.traces):
                cursor = None
                while cursor != 0:
                    command = ("ZSCAN", key, cursor or 0, "COUNT", _PAGE)
                    ((answer, found),) = await self._connections.commands([command], key)
                    cursor = int(answer)
                    await self._mend(_by_session(shard, key, _members(found)), one_server)
                    yield
        if not one_server:
            async for page in self._connections.scan(self._keys.sessions, _PAGE):
                await self._add_missing([self._keys.session_of(key) for key in page])
                yield

    async def _mend(self, found: dict[str, Entries], one_server: bool) -> None:
        for session_id, entries in found.items():
            if one_server:
                await self._calls.run(
                    scripts.CORRECT,
                    session_id,
                    writes=True,
                    parked=entries.parked,
                    waiting=entries.waiting,
                    traces=entries.traces,
                )
            else:
                await self._index.update(session_id, entries, all_turns=True)

    async def _add_missing(self, session_ids: Sequence[str]) -> None:
        """Add those whose last activity the index does not have."""
        asked: list[tuple[Any, ...]] = []
        for session_id in session_ids:
            asked.append(("HMGET", self._keys.of_session(session_id)[0], "created", "updated"))
            asked.append(("ZSCORE", self._keys.indexes_of(session_id).recent, session_id))
        answers = await self._connections.commands(asked) if asked else []
        for at, session_id in enumerate(session_ids):
            (created, updated), score = answers[2 * at : 2 * at + 2]
            if created is not None and (score is None or float(score) < float(updated)):
                await self._index.update(session_id, all_turns=True)


def _members(found: Sequence[Any]) -> Sequence[bytes]:
    """The members among the answer of ZSCAN, which a client of a cluster makes pairs of."""
    if found and isinstance(found[0], tuple):
        return [member for member, _ in found]
    return found[::2]


def _by_session(shard: Indexes, key: str, members: Sequence[bytes]) -> dict[str, Entries]:
    """The members of a page, by the session that each is of."""
    found: dict[str, Entries] = {}
    for member in members:
        text = member.decode("utf-8", "surrogatepass")
        if key == shard.names:
            found.setdefault(text, Entries())
        elif key == shard.parked:
            identity, _, session_id = text.rpartition("\n")
            found.setdefault(session_id, Entries()).parked.append(identity)
        elif key == shard.waiting:
            session_id, _, turn = text.rpartition("\n")
            found.setdefault(session_id, Entries()).waiting.append(int(turn))
        else:
            trace, session_id, turn = text.rsplit("\n", 2)
            found.setdefault(session_id, Entries()).traces.append((trace, int(turn)))
    return found
