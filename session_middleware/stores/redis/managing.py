"""What managing conversations asks of the server, and what its answers come to.

As in ``calls``, every call is one exchange with the server, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from session_middleware.stores.cursors import Cursor
from session_middleware.stores.listing import decided, info_of, relabelled
from session_middleware.stores.managed_store import (
    EXCERPT,
    LONGEST_SHOWN,
    LOOKED_AT,
    Labels,
    NewestTurn,
    Order,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
    TurnCopy,
)
from session_middleware.stores.numbers import MOST
from session_middleware.stores.records import BEGINNING, Lease
from session_middleware.stores.redis import reads, scripts
from session_middleware.stores.redis.calls import Calls, check_held
from session_middleware.stores.redis.connections import Connections
from session_middleware.stores.redis.copies import copy_of_row, described
from session_middleware.stores.redis.index import Entries, Index
from session_middleware.stores.redis.keys import Keys
from session_middleware.stores.sql import calls_of, calls_text, date_of, metadata_of

_EPOCH_STEP = 60_000_000
"""Microseconds by which a lease after a failover may be above the clock; see ``session.lua``."""

_STRING = re.compile(rb'"(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*')


class Managing:
    """What a memory asks its server about conversations as a whole."""

    def __init__(self, connections: Connections, keys: Keys, calls: Calls, index: Index) -> None:
        self._connections = connections
        self._keys = keys
        self._calls = calls
        self._index = index

    # --- sessions --------------------------------------------------------------------------

    async def page(self, query: SessionQuery) -> list[SessionInfo]:
        """One page: one exchange with each server for its shards, and one for the sessions.

        A session that an index has and that is gone by now makes room for the next one.
        """
        if query.session_id is not None:
            (info,) = await self._infos([query.session_id], query.order)
            return [info] if info is not None and _is_in(info, query) else []
        found: list[SessionInfo] = []
        after = query.after
        while len(found) < query.limit:
            wanted = min(query.limit - len(found), MOST)
            listed = await self._index.page(
                order=query.order,
                limit=wanted,
                prefix=query.prefix,
                after=None if after is None else {"key": _microseconds(after), "id": after[2]},
                idle_since=None if query.idle_since is None else _since_1970(query.idle_since),
            )
            infos = await self._infos([name for name, _ in listed], query.order)
            found += [info for info in infos if info is not None and _is_in(info, query)]
            if len(listed) < wanted:
                break
            name, key = listed[-1]
            after = Cursor(query.order, str(key), name)
        return found

    async def _infos(self, session_ids: Sequence[str], order: Order) -> list[SessionInfo | None]:
        rows = await self._calls.run_each(
            scripts.INFO, session_ids, longest=4 * LONGEST_SHOWN, excerpt=16 * EXCERPT
        )
        return [
            _info(session_id, row, order) if row else None
            for session_id, row in zip(session_ids, rows, strict=True)
        ]

    async def newest_turns(self, session_ids: Sequence[str]) -> list[NewestTurn | None]:
        """The newest turn of each of these sessions: one exchange with each server."""
        answers = await self._calls.run_each(
            scripts.NEWEST, session_ids, items=LOOKED_AT, longest=4 * LONGEST_SHOWN
        )
        return [
            reads.newest_turn(session_id, *answer) if answer else None
            for session_id, answer in zip(session_ids, answers, strict=True)
        ]

    async def label(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata, which others may do at the same time. Two exchanges."""
        key = self._keys.of_session(session_id)[0]
        while True:
            command = ("HMGET", key, "title", "metadata")
            ((title, metadata),) = await self._connections.commands([command], key)
            before = [(title or b"").decode(), (metadata or b"").decode()]
            text = json.loads(before[0]) if before[0] else None
            title, metadata = relabelled(text, before[1] or None, labels)
            after = ["" if title is None else json.dumps(title), metadata or ""]
            done = await self._calls.run(scripts.LABEL, session_id, *before, *after, writes=True)
            if done:
                return bool(done == 1)

    # --- copies ----------------------------------------------------------------------------

    async def read_copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """The next turns with a number above ``after``."""
        rows, members, calls = await self._calls.run(
            scripts.COPIES, session_id, after=after, limit=min(limit, MOST)
        )
        items, journals = reads.by_turn(members), reads.by_turn(calls)
        return [
            copy_of_row(session_id, row, items.get(row[0], []), journals.get(row[0], []))
            for row in rows
        ]

    async def write_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's. Up to three exchanges."""
        if fence >= min(await self._clocks()):
            await self._index.raise_floor(fence)
        told, texts = described(turns)
        answer = await self._calls.run(
            scripts.PUT_COPIES,
            lease.session_id,
            *texts,
            writes=True,
            token=str(lease.token),
            turns=told,
            created=str(_since_1970(info.created_at)),
            updated=str(_since_1970(info.updated_at)),
            title=None if info.title is None else json.dumps(info.title),
            metadata=json.dumps(info.metadata) if info.metadata else None,
        )
        check_held(answer, lease)
        await self._tell_index(lease.session_id, answer[1:], all_turns=True)

    async def newest_fence(self) -> int:
        """A fence that none is above by now, as fences are moments of the servers' clocks."""
        return max(max(await self._clocks()) + _EPOCH_STEP, await self._index.read_floor())

    async def _clocks(self) -> list[int]:
        """The clocks of the servers that have keys, in microseconds."""
        moments = await self._connections.on_each_primary(("TIME",))
        return [int(seconds) * 1_000_000 + int(rest) for seconds, rest in moments]

    # --- removing --------------------------------------------------------------------------

    async def remove_turns(self, lease: Lease, turns: Sequence[int]) -> None:
        """Remove every word of these turns, and end the lease's own."""
        answer = await self._calls.run(
            scripts.REMOVE_TURNS,
            lease.session_id,
            writes=True,
            token=str(lease.token),
            turns=list(turns),
        )
        check_held(answer, lease)
        await self._tell_index(lease.session_id, answer[1:], all_turns=True)

    async def delete_sessions(self, session_ids: Sequence[str], idle_since: datetime | None) -> int:
        """Remove these sessions, one exchange for each; returns how many anybody could see."""
        idle = None if idle_since is None else _since_1970(idle_since)

        async def delete(session_id: str) -> int:
            answer = await self._calls.run(scripts.DELETE, session_id, writes=True, idle_since=idle)
            await self._tell_index(session_id, answer[1:])
            return int(answer[0])

        return sum(await asyncio.gather(*map(delete, session_ids)))

    async def _tell_index(
        self, session_id: str, unparked: Sequence[bytes], *, all_turns: bool = False
    ) -> None:
        if not self._connections.one_server:
            had = Entries(parked=[name.decode() for name in unparked])
            await self._index.update(session_id, had, all_turns=all_turns)

    # --- traces and approvals --------------------------------------------------------------

    async def find_trace(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id; the newest. Two exchanges."""
        places = await self._index.traced(trace_id)
        commands = [("HGET", self._keys.of_session(name)[1], turn) for name, turn in places]
        found = await self._connections.commands(commands) if commands else []
        dated = [
            (json.loads(kept)["started_at"], place)
            for place, kept in zip(places, found, strict=True)
            if kept is not None and trace_id in _traces(json.loads(kept))
        ]
        return max(dated)[1] if dated else None

    async def parked_runs(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait. Two exchanges."""
        ids = await self._index.waiting() if query.session_id is None else [query.session_id]
        ids = [each for each in ids if each.startswith(query.prefix or "")]
        answers = await self._calls.run_each(scripts.PENDING, ids)
        found = [
            _pending(session_id, row)
            for session_id, rows in zip(ids, answers, strict=True)
            for row in rows
        ]
        found.sort(key=lambda run: (run.since, run.session_id, run.turn, run.identity))
        return found[: query.limit]

    async def note_decision(
        self, session_id: str, turn: int, call_id: str, approved: bool, message: str | None
    ) -> None:
        """Keep the decision with the parked run. Two exchanges."""
        while True:
            rows = await self._calls.run(scripts.PENDING, session_id, all=True)
            rows = [row for row in rows if row[0] == turn]
            runs = [_pending(session_id, row) for row in rows]
            run, calls = decided(runs, session_id, turn, call_id, approved, message)
            (before,) = [row[2] for row, each in zip(rows, runs, strict=True) if each is run]
            after = json.dumps({**json.loads(before), "calls": calls_text(calls)})
            texts = (before.decode(), after)
            if await self._calls.run(
                scripts.DECIDE, session_id, *texts, writes=True, identity=run.identity
            ):
                return


def _since_1970(moment: datetime) -> int:
    """Microseconds, exactly."""
    return (moment.astimezone(UTC) - BEGINNING) // timedelta(microseconds=1)


def _microseconds(cursor: Cursor) -> int:
    return int(cursor.key) if cursor.key.lstrip("-").isdecimal() else 0


def _is_in(info: SessionInfo, query: SessionQuery) -> bool:
    """Whether the session still is one that was asked for."""
    idle = query.idle_since is None or info.updated_at <= query.idle_since
    return idle and info.session_id.startswith(query.prefix or "")


def _info(session_id: str, row: Sequence[Any], order: Order) -> SessionInfo:
    created, updated, turns, items, size, title, metadata, state, answer, first, last = row
    key = {"created": created.decode(), "updated": updated.decode(), "id": ""}[order]
    return info_of(
        session_id,
        created_at=BEGINNING + timedelta(microseconds=int(created)),
        updated_at=BEGINNING + timedelta(microseconds=int(updated)),
        turns=int(turns),
        items=int(items),
        size=int(size),
        title=json.loads(title) if title else None,
        metadata=metadata_of(metadata.decode()),
        state=state.decode() or None,
        first=first.decode("utf-8", "surrogateescape") or None,
        last=last.decode("utf-8", "surrogateescape") or None,
        answer=_cut(answer),
        cursor=Cursor(order, key, session_id),
    )


def _cut(answer: bytes) -> str | None:
    """The text whose JSON this is the beginning of, as far as it goes."""
    whole = _STRING.match(answer)
    return None if whole is None else str(json.loads(whole[0] + b'"'))


def _traces(turn: dict[str, Any]) -> list[str]:
    known = [*turn.get("traces", []), *turn.get("earlier", [])]
    return [*known, turn["trace"]] if "trace" in turn else known


def _pending(session_id: str, row: Sequence[Any]) -> PendingTurn:
    turn, identity, state, ended = row
    kept = json.loads(state or b"{}")
    since = date_of(kept.get("since") or ended.decode())
    calls = calls_of(kept.get("calls"))
    return PendingTurn(session_id, turn, since, calls, kept.get("state"), identity.decode())
