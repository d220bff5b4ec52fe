"""Memories that each break one rule, for the conformance suite to find.

Each is a SQLite memory with one method that does what a careless author might have written.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from session_middleware.errors import DuplicateTurn, MemoryUnavailable, SessionBusy, TurnLost
from session_middleware.stores.protocol import LOOK_UP, TURNS, WRITE_TURN
from session_middleware.stores.records import Acquired, AcquireRequest, Item, Lease, TurnEnd
from session_middleware.stores.sqlite import SQLiteSessionMemory


class Broken(SQLiteSessionMemory):
    """What the broken memories have in common: their methods are not passed by."""

    capabilities = frozenset({TURNS, WRITE_TURN, LOOK_UP})


# --- fencing -----------------------------------------------------------------------------------


class NoFence(Broken):
    """Writes for a turn that lost its session."""

    async def append_items(
        self, lease: Lease, run: int, position: int, items: Sequence[Item], **how: Any
    ) -> None:
        try:
            await super().append_items(lease, run, position, items, **how)
        except TurnLost:
            await self.append_to_session(lease.session_id, list(items))


class EndsWithoutToken(Broken):
    """Gives the session up for a turn that has lost it, to whoever holds it now."""

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        try:
            await super().end_turn(lease, end)
        except TurnLost:
            await self.release(lease.session_id)
            raise


class GuessableToken(Broken):
    """Takes any token for the one that was granted last."""

    async def append_items(
        self, lease: Lease, run: int, position: int, items: Sequence[Item], **how: Any
    ) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute(
                "SELECT token FROM session WHERE session_id = ?", (lease.session_id,)
            ).fetchone()
        if row is not None and row[0] is not None:
            lease = replace(lease, token=row[0])
        await super().append_items(lease, run, position, items, **how)


class RenewsLostLease(Broken):
    """Puts its token back with each renewal, for as long as it believes in its lease."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        leases = self._database.leases
        renew = leases._renew

        async def believes(held: Mapping[int, int]) -> Collection[int]:
            with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
                connection.executemany(
                    "UPDATE session SET token = ? WHERE key = ? AND token IS NOT NULL",
                    [(token, key) for key, token in held.items()],
                )
            return await renew(held)

        leases._renew = believes


class TakesHeldSession(Broken):
    """Ends the lease of whoever holds the session that it is asked for."""

    async def acquire(self, request: AcquireRequest) -> Acquired:
        try:
            return await super().acquire(request)
        except SessionBusy:
            await self.release(request.session_id)
            return await super().acquire(request)


class KeepsCancelled(Broken):
    """Acquires a session also for a caller that was cancelled, and tells nobody."""

    async def acquire(self, request: AcquireRequest) -> Acquired:
        return await asyncio.shield(asyncio.ensure_future(super().acquire(request)))


class WallClock(Broken):
    """Ends a lease by the wall clock of the process that asks."""

    async def acquire(self, request: AcquireRequest) -> Acquired:
        with closing(sqlite3.connect(self.path)) as connection, suppress(sqlite3.OperationalError):
            row = connection.execute(
                "SELECT lease_until FROM session WHERE session_id = ?", (request.session_id,)
            ).fetchone()
            if row is not None and row[0] is not None and row[0] < time.time():
                await self.release(request.session_id)
        return await super().acquire(request)


# --- items -------------------------------------------------------------------------------------


class TornBatch(Broken):
    """Stores a batch item by item."""

    async def append_items(
        self, lease: Lease, run: int, position: int, items: Sequence[Item], **how: Any
    ) -> None:
        for at, item in enumerate(items):
            await super().append_items(lease, run, position + at, [item], **how)


class TornTurn(TornBatch):
    """The same, found where the caller is cancelled in between."""


class TornAppend(Broken):
    """Appends item by item, so that a cancellation comes in between."""

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        for item in new_items:
            await super().append_to_session(session_id, [item])


class TornWrite(Broken):
    """Stores the items and the end of a turn one after the other."""

    capabilities = Broken.capabilities

    async def write_turn(self, lease: Lease, items: Any, end: TurnEnd | None = None) -> None:
        for new in items:
            await super().write_turn(lease, [new])
        if end is not None:
            await self.end_turn(lease, end)


class Reordered(Broken):
    """Returns user messages before all others."""

    async def load_session(self, session_id: str) -> Any:
        items = await super().load_session(session_id)
        return sorted(items, key=lambda item: item.get("role") != "user")


class Doubled(Broken):
    """Appends twice, as after an answer that was lost."""

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        await super().append_to_session(session_id, new_items)
        await super().append_to_session(session_id, new_items)


class DoubledBelow(Doubled):
    """Appends twice, and returns each item once: only the storage itself shows it."""

    async def load_session(self, session_id: str) -> Any:
        seen: list[Item] = []
        for item in await super().load_session(session_id):
            if item not in seen:
                seen.append(item)
        return seen


class DoubledRepeat(Broken):
    """Stores what is written once more at a place of its own."""

    capabilities = Broken.capabilities

    async def write_turn(self, lease: Lease, items: Any, end: TurnEnd | None = None) -> None:
        written = self.__dict__.setdefault("_written", set())
        again = [replace(new, run=new.run + 100) if str(new) in written else new for new in items]
        written.update(map(str, items))
        await super().write_turn(lease, again, end)


class ChangesValues(Broken):
    """Sorts the keys of an item."""

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        text = json.dumps(new_items, sort_keys=True)
        await super().append_to_session(session_id, json.loads(text))


class SharesObjects(Broken):
    """Returns the very list that it keeps."""

    async def load_session(self, session_id: str) -> Any:
        kept = self.__dict__.setdefault("_kept", {})
        if session_id not in kept:
            kept[session_id] = await super().load_session(session_id)
        return kept[session_id]


class KeepsOpenCalls(Broken):
    """Lets a retried run keep calls that were never answered."""

    async def retry_run(self, lease: Lease, failed: int, run: int) -> int:
        before = await self.load_items(lease.session_id, turn=lease.turn)
        kept = await super().retry_run(lease, failed, run)
        if kept:
            await self.append_items(lease, run, kept, before[kept:])
        return kept


# --- sessions ----------------------------------------------------------------------------------


class FoldsIds(Broken):
    """Takes ids that differ in case for one."""

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        await super().append_to_session(session_id.lower(), new_items)

    async def load_session(self, session_id: str) -> Any:
        return await super().load_session(session_id.lower())


class SharesSessions(Broken):
    """Keeps everything in one session."""

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        await super().append_to_session("all", new_items)

    async def load_session(self, session_id: str) -> Any:
        return await super().load_session("all")


class LostOnReopen(Broken):
    """Keeps its sessions in a file that no other object finds."""

    _numbers = itertools.count()

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(f"{path}-{next(self._numbers)}", **options)


class StaleRead(Broken):
    """Reads a history once, and then from memory until it writes to it."""

    async def load_session(self, session_id: str) -> Any:
        cache = self.__dict__.setdefault("_cache", {})
        if session_id not in cache:
            cache[session_id] = await super().load_session(session_id)
        return list(cache[session_id])

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        self.__dict__.setdefault("_cache", {}).pop(session_id, None)
        await super().append_to_session(session_id, new_items)


class AcknowledgesEarly(Broken):
    """Returns before anything is stored."""

    async def append_items(
        self, lease: Lease, run: int, position: int, items: Sequence[Item], **how: Any
    ) -> None:
        waiting = self.__dict__.setdefault("_waiting", [])
        waiting.append((lease, run, position, list(items), how))

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        for held, run, position, items, how in self.__dict__.pop("_waiting", []):
            await super().append_items(held, run, position, items, **how)
        await super().end_turn(lease, end)


class KeepsWords(Broken):
    """Leaves a copy of what was appended beside the file."""

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        with open(f"{self.path}.log", "a") as log:  # noqa: ASYNC230 - careless, as announced
            log.write(json.dumps(new_items))
        await super().append_to_session(session_id, new_items)


# --- turns -------------------------------------------------------------------------------------


class ForgetsKeys(Broken):
    """Begins a turn for a key that was done."""

    async def acquire(self, request: AcquireRequest) -> Acquired:
        return await super().acquire(replace(request, idempotency_key=None, input_digest=None))


class ResumesTwice(Broken):
    """Begins a turn for a state that was resumed."""

    async def acquire(self, request: AcquireRequest) -> Acquired:
        try:
            return await super().acquire(request)
        except DuplicateTurn:
            return await super().acquire(replace(request, resume=None))


class DiscardsEverything(Broken):
    """Clears the session where a turn is discarded."""

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        await super().end_turn(lease, end)
        if end.discard:
            await self.clear_session(lease.session_id)


class TornDiscard(Broken):
    """Ends a turn, and then removes its items."""

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        await super().end_turn(lease, replace(end, discard=False))
        if end.discard:
            await self.clear_session(lease.session_id)


class DiscardsNothing(Broken):
    """Keeps the items of a discarded turn."""

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        await super().end_turn(lease, replace(end, discard=False))


class ForgetsFields(Broken):
    """Drops the usage of a turn from its record."""

    async def turns(self, session_id: str, *page: Any, **pages: Any) -> Any:
        records = await super().turns(session_id, *page, **pages)
        return [replace(record, usage=None) for record in records]


class LooksAway(Broken):
    """Finds nothing that was done before."""

    async def look_up(self, request: AcquireRequest) -> None:
        return


class SwallowsFailures(Broken):
    """Returns an empty history where the storage cannot be read."""

    async def load_session(self, session_id: str) -> Any:
        with suppress(MemoryUnavailable):
            return await super().load_session(session_id)
        return []
