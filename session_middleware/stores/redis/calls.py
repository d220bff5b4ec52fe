"""One session's scripts, called by what they are for; their answers as our records and errors.

Every call is one exchange with the server, unless it says otherwise. Connections are not known
here, nor who holds a lease.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from session_middleware.history import LastItems, LastTurns, up_to_last_output
from session_middleware.stores import rules
from session_middleware.stores.items import decode_items
from session_middleware.stores.numbers import cut_window
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Item,
    JournalEntry,
    Lease,
    Loaded,
    ReadRequest,
    RunItems,
    TurnEnd,
    TurnRecord,
)
from session_middleware.stores.redis import reads, scripts
from session_middleware.stores.redis.connections import Connections
from session_middleware.stores.redis.index import Entries, Index
from session_middleware.stores.redis.keys import Keys
from session_middleware.stores.rules import Obstacle, Outcome
from session_middleware.stores.sql import text_of
from session_middleware.stores.tickets import TICKET_SECONDS

_encode = json.JSONEncoder(ensure_ascii=False).encode

SHORT = 200
"""So many items of a history are read when the session is acquired."""


class Calls:
    """What a memory asks its server.

    Args:
        lease: seconds.
        ttl: seconds for which a session lives on after its last turn; None: for ever.
    """

    def __init__(
        self,
        connections: Connections,
        keys: Keys,
        index: Index,
        *,
        lease: float,
        ttl: float | None,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._index = index
        self._lease = lease
        self._ttl = ttl
        self._numbers = itertools.count()

    def _header(self, session_id: str, **asked: Any) -> str:
        header = {name: value for name, value in asked.items() if value is not None}
        header["id"] = session_id
        header["channel"] = self._keys.channel
        header["ticket_seconds"] = _milliseconds(TICKET_SECONDS)
        header["nonce"] = f"{self._connections.process}-{next(self._numbers)}"
        if self._index.floor:
            header["floor"] = self._index.floor
        if self._ttl is not None:
            header["ttl"] = _milliseconds(self._ttl)
        return _encode(header)

    async def run(
        self,
        script: scripts.Script,
        session_id: str,
        *texts: str,
        writes: bool = False,
        **asked: Any,
    ) -> Any:
        """Run a script on a session; returns its answer.

        Args:
            texts: what the script gets beside its header.
            writes: it changes what is known of all sessions, and replicas must confirm it.
            asked: the header; what is None is left out.
        """
        keys = self._keys.of_session(session_id)
        header = self._header(session_id, **asked)
        indexes = (*self._keys.indexes_of(session_id), self._keys.fence) if writes else ()
        answer = await self._connections.script(
            script, keys, (header, *texts), indexes=indexes, writes=writes
        )
        if writes and not self._connections.one_server:
            self._index.update_soon(session_id, asked.get("turn"))
        return answer

    async def run_each(
        self, script: scripts.Script, session_ids: Sequence[str], **asked: Any
    ) -> list[Any]:
        """Run a script that only reads on each session, in one exchange with each server."""
        calls = [
            (self._keys.of_session(session_id), self._header(session_id, **asked))
            for session_id in session_ids
        ]
        return await self._connections.scripts(script, calls) if calls else []

    # --- acquiring -------------------------------------------------------------------------

    async def acquire(self, request: AcquireRequest, token: int) -> Acquired:
        """Acquire the session, or raise why not."""
        answer = await self._acquire(
            request,
            token=str(token),
            lease=_milliseconds(self._lease),
            read=_read(request.read),
            new=_described(request.input),
            texts=() if request.input is None else request.input.texts,
        )
        outcome, turn, fence, next_run, stored, runs, moved, took_over, end, calls = answer[:10]
        complete, members, compacted = answer[10:]
        lease = Lease(request.session_id, turn, token, int(fence))
        loaded = None
        if complete >= 0 and request.read is not None:
            loaded = reads.loaded(complete, members, compacted, None, request.read.texts)
        return Acquired(
            lease,
            next_run=next_run,
            resumed=outcome == b"continue",
            carried=reads.carried_of(from_json(runs), moved),
            loaded=loaded,
            stored=bool(stored),
            took_over=took_over or None,
            manifest=reads.manifest_in(end) if outcome == b"continue" else None,
            journal=reads.entries_of(calls),
        )

    async def look_up(self, request: AcquireRequest) -> None:
        """Raise what ``acquire`` would, but for a session that is busy."""
        await self._acquire(request, look=True)

    async def _acquire(
        self, request: AcquireRequest, *, texts: Sequence[str] = (), **asked: Any
    ) -> list[Any]:
        asked |= {
            "key": request.idempotency_key,
            "input": request.input_digest,
            "resume": request.resume,
            "trace": request.otel_trace_id,
            "ticket": None if request.ticket is None else str(request.ticket),
            "started_at": text_of(request.started_at),
        }
        writes = "token" in asked
        if writes:
            await self._index.know_floor()
        run = self.run
        answer = await run(scripts.ACQUIRE, request.session_id, *texts, writes=writes, **asked)
        if answer[0] == b"elsewhere":
            if await self._index.sessions_parking(request.resume or ""):
                raise rules.refusal(Outcome.OTHER_SESSION, Obstacle(request.session_id))
            if not request.adopt:
                raise rules.refusal(Outcome.UNKNOWN, Obstacle(request.session_id))
            asked["elsewhere"] = True
            answer = await run(scripts.ACQUIRE, request.session_id, *texts, writes=writes, **asked)
        outcome = Outcome(answer[0].decode())
        if outcome.grants:
            return list(answer)
        raise rules.refusal(outcome, reads.obstacle_of(request.session_id, answer))

    # --- writing ---------------------------------------------------------------------------

    async def write(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        """Store items of the turn, and its end where it is given: all of it or nothing."""
        texts = [text for new in items for text in new.texts]
        record = output = ""
        how = None
        if end is not None:
            record = reads.end_as_json(end)
            entries = end.journal or ()
            kept = {state.identity: state for state in end.states}
            texts += [reads.state_as_json(end.ended_at, kept.get(each)) for each in end.park]
            texts += [reads.entry_as_json(entry) for entry in entries]
            output = "" if end.output_text is None else json.dumps(end.output_text)
            how = {
                "state": end.state,
                "ended_at": text_of(end.ended_at),
                "runs": {str(run): state for run, state in end.runs.items()},
                "discard": end.discard,
                **({} if end.otel_trace_id is None else {"trace": end.otel_trace_id}),
                "park": end.park,
                "aliases": end.aliases,
                "settles": end.settles,
                "unlisted": end.unlisted,
                "traces": end.sdk_trace_ids,
                "journal": [reads.place_of(entry) for entry in entries],
                "settles_journal": end.journal is not None,
            }
        answer = await self.run(
            scripts.WRITE,
            lease.session_id,
            record,
            output,
            *texts,
            writes=True,
            token=str(lease.token),
            turn=lease.turn,
            items=[_described(new) for new in items],
            end=how,
        )
        if answer[0] == b"conflict":
            raise ValueError(
                f"run {answer[1]} of turn {lease.turn} has another item at {answer[2]}"
            )
        check_held(answer, lease)
        if end is not None and (end.park or end.aliases) and not self._connections.one_server:
            await self._index.update(lease.session_id)  # a resume may follow at once

    async def journal(
        self, lease: Lease, entries: Sequence[JournalEntry], *, durable: bool
    ) -> None:
        """Keep entries of the turn's journal."""
        answer = await self.run(
            scripts.JOURNAL,
            lease.session_id,
            *(reads.entry_as_json(entry) for entry in entries),
            writes=durable,
            token=str(lease.token),
            entries=[reads.place_of(entry) for entry in entries],
        )
        check_held(answer, lease)

    async def may_be_next(self, session_id: str, ticket: int) -> bool:
        """Whether the session is free, and nobody who waits for it came before the ticket."""
        return bool(await self.run(scripts.LINE, session_id, ticket=str(ticket)))

    async def withdraw_ticket(self, session_id: str, ticket: int) -> None:
        """Let those behind the ticket move up."""
        await self.run(scripts.LINE, session_id, ticket=str(ticket), withdraw=True)

    async def retry(self, lease: Lease, failed: int, run: int) -> int:
        """Let ``run`` go on after the last tool output of ``failed``. Two exchanges."""
        members = await self.run(scripts.ITEMS, lease.session_id, turn=lease.turn, run=failed)
        decoded = decode_items([member[reads.TEXT].decode() for member in members])[0]
        answer = await self.run(
            scripts.RETRY,
            lease.session_id,
            writes=True,
            token=str(lease.token),
            failed=failed,
            run=run,
            kept=up_to_last_output(decoded),
        )
        check_held(answer, lease)
        return int(answer[1])

    async def change(
        self,
        session_id: str,
        change: str,
        turns: Sequence[Sequence[str]] = (),
        lease: Lease | None = None,
    ) -> str:
        """Append a turn, replace or forget the history; returns what became of it."""
        answer = await self.run(
            scripts.CHANGE,
            session_id,
            *(text for texts in turns for text in texts),
            writes=True,
            change=change,
            counts=[len(texts) for texts in turns],
            token=None if lease is None else str(lease.token),
            at=text_of(datetime.now(UTC)),
        )
        if lease is not None:
            check_held(answer, lease)
        if answer[1:] and not self._connections.one_server:
            await self._index.update(session_id, Entries([each.decode() for each in answer[1:]]))
        return str(answer[0].decode())

    async def pop(self, session_id: str, lease: Lease | None) -> Item | None:
        """Remove the newest item that can be read. Two exchanges, unless somebody is faster."""
        most = 1
        while True:
            members = await self.run(scripts.ITEMS, session_id, limit=most)
            readable = [m for m in reversed(members) if reads.items_of([m])]
            if readable:
                text = readable[0]
                if await self.change(session_id, "remove", [[text]], lease) == "done":
                    return reads.items_of([text])[0]
            elif len(members) < most:
                return None
            else:
                most *= 8

    async def release(self, session_id: str, token: int | None = None) -> bool:
        """End the lease of the session, or only the one with this token."""
        answer = await self.run(
            scripts.RELEASE,
            session_id,
            writes=True,
            token=None if token is None else str(token),
            at=text_of(datetime.now(UTC)),
        )
        return bool(answer[0] == b"done")

    async def renew(self, held: Mapping[int, str]) -> set[int]:
        """Give each of these leases (token to session) its whole length; returns those that hold.

        One exchange with each server for all of them.
        """
        calls = [
            (
                self._keys.of_session(session_id),
                self._header(session_id, token=str(token), lease=_milliseconds(self._lease)),
            )
            for token, session_id in held.items()
        ]
        answers = await self._connections.scripts(scripts.RENEW, calls)
        return {token for token, holds in zip(held, answers, strict=True) if holds}

    # --- reading ---------------------------------------------------------------------------

    async def load_turns(
        self,
        session_id: str,
        newest: LastTurns | LastItems | None,
        hide: tuple[int, Collection[int]] | None,
        texts: bool,
    ) -> Loaded:
        """The history in whole turns, no more of it than the window keeps."""
        if newest is None:
            return reads.loaded(1, await self._all_items(session_id), (), hide, texts)
        hidden = None if hide is None else {"turn": hide[0], "runs": list(hide[1])}
        complete, members, compacted = await self.run(
            scripts.LOAD, session_id, window=_window(newest), hide=hidden
        )
        return reads.loaded(complete, members, compacted, hide, texts)

    async def _all_items(self, session_id: str) -> list[bytes]:
        key = self._keys.items_of(session_id)
        (members,) = await self._connections.commands([("ZRANGE", key, 0, -1)], key)
        return list(members)

    async def load_items(self, session_id: str, turn: int | None, limit: int | None) -> list[Item]:
        """The newest ``limit`` items that can be read."""
        if limit == 0:
            return []
        wanted = None if limit is None or limit < 0 else limit
        if turn is None and wanted is None:
            return reads.items_of(await self._all_items(session_id))
        most = wanted
        while True:
            members = await self.run(scripts.ITEMS, session_id, turn=turn, limit=most)
            items = reads.items_of(members)
            if wanted is None or most is None or len(items) >= wanted or len(members) < most:
                return items if wanted is None else items[-wanted:]
            most += wanted  # in place of those that cannot be read

    async def records(
        self, session_id: str, limit: int | None, before: int | None
    ) -> list[TurnRecord]:
        """The session's turns, newest first."""
        most = None if limit is None else max(limit, 0)
        rows, members, calls = await self.run(
            scripts.RECORDS, session_id, limit=most, before=before
        )
        items = {turn.turn: turn.items for turn in reads.turns_of(members)[0]}
        journals = reads.by_turn(calls)
        return [
            reads.record_of_row(session_id, row, items.get(row[0], []), journals.get(row[0], []))
            for row in rows
        ]

    async def exists(self, session_id: str) -> bool:
        """Whether something was stored or saved in the session."""
        key = self._keys.of_session(session_id)[0]
        (found,) = await self._connections.commands([("HEXISTS", key, "created")], key)
        return bool(found)

    async def session_ids(self) -> list[str]:
        """The ids of all sessions that something was stored or saved in, oldest first."""
        created: dict[str, int] = {}
        async for keys in self._connections.scan(self._keys.sessions):
            if not keys:
                continue
            found = await self._connections.commands([("HGET", key, "created") for key in keys])
            for key, moment in zip(keys, found, strict=True):
                if moment is not None:
                    created[self._keys.session_of(key)] = int(moment)
        return sorted(created, key=lambda session_id: created[session_id])


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _described(new: RunItems | None) -> dict[str, Any] | None:
    """Everything of the items but their texts."""
    if new is None:
        return None
    described: dict[str, Any] = {
        "run": new.run,
        "position": new.position,
        "count": len(new.texts),
    }
    if new.input_digest is not None:
        described["input"] = new.input_digest
    if new.instead:
        described["instead"] = True
    return described


def _window(newest: LastTurns | LastItems | None) -> dict[str, int] | None:
    newest = cut_window(newest)
    if isinstance(newest, LastTurns):
        return {"n": newest.n, "step": newest.step}
    return None if newest is None else {"n": newest.n}


def _read(request: ReadRequest | None) -> dict[str, Any] | None:
    if request is None:
        return None
    window = _window(request.newest)
    return {"most": SHORT} if window is None else {"most": SHORT, "window": window}


def check_held(answer: Sequence[Any], lease: Lease) -> None:
    """See that a script found the lease to be the session's.

    Raises:
        TurnLost: it is no more.
    """
    if answer[0] == b"lost":
        raise rules.lost(lease)
