"""What managing conversations needs of the in-memory engine, in the order of ``ManagedStore``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from session_middleware.stores.cursors import Cursor
from session_middleware.stores.in_memory.engine import Engine, record_of
from session_middleware.stores.in_memory.session import StoredRun, StoredSession, StoredTurn
from session_middleware.stores.items import decode_items
from session_middleware.stores.listing import decided, info_of
from session_middleware.stores.managed_store import (
    LONGEST_SHOWN,
    LOOKED_AT,
    Labels,
    NewestTurn,
    Order,
    PendingQuery,
    PendingTurn,
    RunCopy,
    SessionInfo,
    SessionQuery,
    TurnCopy,
)
from session_middleware.stores.records import END_FIELDS, Lease, TurnEnd


class ManagedEngine(Engine):
    """An engine whose sessions can be listed, copied and removed."""

    # --- sessions --------------------------------------------------------------------------

    def page(self, query: SessionQuery) -> list[SessionInfo]:
        """One page; the keys of all sessions are looked at, as they lie in memory anyway."""
        keys = [
            (_key(session, query.order), session_id)
            for session_id, session in self._sessions.items()
            if session.stored
            and session_id.startswith(query.prefix or "")
            and query.session_id in (None, session_id)
            and (query.idle_since is None or session.updated_at <= query.idle_since)
        ]
        keys.sort(reverse=query.order != "id")
        if query.after is not None:
            last = (query.after.key, query.after.session_id)
            newest_first = query.order != "id"
            keys = [key for key in keys if (key < last if newest_first else key > last)]
        return [
            self._info(session_id, Cursor(query.order, key, session_id))
            for key, session_id in keys[: query.limit]
        ]

    def _info(self, session_id: str, cursor: Cursor) -> SessionInfo:
        session = self._sessions[session_id]
        texts = [text for turn in session.turns.values() for text in turn.texts()]
        newest = next(session.newest_first(), None)
        answers = (turn.end.output_text for turn in session.newest_first() if turn.end)
        return info_of(
            session_id,
            created_at=session.created_at,
            updated_at=session.updated_at,
            turns=len(session.turns),
            items=len(texts),
            size=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
            title=session.title,
            metadata=copy.deepcopy(session.metadata),
            state=None if newest is None else newest.state,
            first=texts[0] if texts else None,
            last=texts[-1] if texts else None,
            answer=next((answer for answer in answers if answer is not None), None),
            cursor=cursor,
        )

    def newest_turn(self, session_id: str) -> NewestTurn | None:
        """The newest turn of a session, as a list tells it."""
        session = self._sessions.get(session_id)
        turn = None if session is None else next(session.newest_first(), None)
        if session is None or turn is None:
            return None
        texts = [text for each in session.newest_first() for text in reversed(each.texts())]
        shown = [text for text in texts[:LOOKED_AT] if len(text) <= LONGEST_SHOWN]
        record = replace(record_of(session_id, turn), item_count=0, items=[])
        return NewestTurn(record, decode_items(shown)[1])

    def relabel(self, session_id: str, labels: Labels) -> bool:
        """Change title and metadata; False where there is no such session."""
        session = self._sessions.get(session_id)
        if session is None or not session.stored:
            return False
        if labels.title != "":
            session.title = labels.title
        merged = {**session.metadata, **copy.deepcopy(dict(labels.metadata))}
        session.metadata = {name: value for name, value in merged.items() if value is not None}
        return True

    # --- copies ----------------------------------------------------------------------------

    def copies(self, session_id: str, after: int, limit: int) -> list[TurnCopy]:
        """The next turns with a number above ``after``."""
        session = self._sessions.get(session_id)
        turns = [] if session is None else session.turns.values()
        wanted = [turn for turn in turns if turn.number > after]
        return [self._copy(session_id, turn) for turn in wanted[:limit]]

    def _copy(self, session_id: str, turn: StoredTurn) -> TurnCopy:
        return TurnCopy(
            replace(record_of(session_id, turn), items=[], calls=()),
            turn.input_digest,
            tuple(
                RunCopy(number, run.state, run.input_digest, tuple(run.texts()))
                for number, run in sorted(turn.runs.items())
            ),
            turn.entries(),
            self._parked.of_turn(session_id, turn.number),
        )

    def put_copies(
        self, lease: Lease, info: SessionInfo, turns: Sequence[TurnCopy], fence: int
    ) -> None:
        """Put these turns in place of the session's, and end the lease."""
        self.fenced(lease)
        self._parked.drop(lease.session_id, lambda turn: True, deleted=False)
        session = StoredSession(
            stored=True,
            created_at=info.created_at,
            updated_at=info.updated_at,
            title=info.title,
            metadata=copy.deepcopy(info.metadata),
        )
        self._sessions[lease.session_id] = session
        for each in turns:
            turn = _stored(each)
            session.turns[turn.number] = turn
            session.note(turn.number, turn.texts())
            self._parked.put(lease.session_id, turn.number, each.parked)
        self._fence = max(self._fence, fence)

    def newest_fence(self) -> int:
        return self._fence

    # --- removing --------------------------------------------------------------------------

    def remove_words(self, lease: Lease, turns: Sequence[int], end: TurnEnd) -> None:
        """Remove every word of these turns, and end the lease's own."""
        self.fenced(lease)
        session = self._sessions[lease.session_id]
        for number in turns:
            turn = session.turns[number]
            for run in turn.runs.values():
                run.items = {}
            turn.journal = {
                place: replace(entry, item=None, output=None)
                for place, entry in turn.journal.items()
            }
            if turn.end is not None:
                turn.end = replace(turn.end, output_text=None)
            if turn.state == "awaiting_approval":
                turn.state = "cancelled"
        self._parked.drop(lease.session_id, lambda turn: turn in turns, deleted=True)
        session.touch()
        self.end(lease, end)

    def delete(self, session_ids: Iterable[str], idle_since: datetime | None) -> int:
        """Remove these sessions; return how many there were."""
        deleted = 0
        for session_id in session_ids:
            session = self._sessions.get(session_id)
            if session is None or not self._may_go(session, idle_since):
                continue
            deleted += session.stored
            self.forget(session_id, None)
        return deleted

    def _may_go(self, session: StoredSession, idle_since: datetime | None) -> bool:
        if idle_since is None:
            return True
        return session.stored and session.token is None and session.updated_at <= idle_since

    # --- traces and approvals --------------------------------------------------------------

    def find(self, trace_id: str) -> tuple[str, int] | None:
        """The session and turn with that trace id; the newest."""
        found = [
            (turn.started_at, session_id, turn.number)
            for session_id, session in self._sessions.items()
            for turn in session.turns.values()
            if _is_of(trace_id, session_id, turn)
        ]
        return max(found)[1:] if found else None

    def waiting(self, query: PendingQuery) -> list[PendingTurn]:
        """The runs that wait for approval, the one that waits longest first."""
        found = [
            waiting
            for waiting in self._parked.pending()
            if query.session_id in (None, waiting.session_id)
            and waiting.session_id.startswith(query.prefix or "")
            and not self._is_at_work(waiting)
        ]
        found.sort(key=lambda waiting: (waiting.since, waiting.session_id, waiting.turn))
        return found[: query.limit]

    def _is_at_work(self, waiting: PendingTurn) -> bool:
        session = self._sessions[waiting.session_id]
        return session.token is not None and session.leased == waiting.turn

    def decide(
        self, session_id: str, turn: int, call_id: str, approved: bool, message: str | None
    ) -> None:
        """Keep the decision with the parked run."""
        runs = [
            waiting
            for waiting in self._parked.pending()
            if (waiting.session_id, waiting.turn) == (session_id, turn)
        ]
        waiting, calls = decided(runs, session_id, turn, call_id, approved, message)
        self._parked.decide(waiting, calls)


def _key(session: StoredSession, order: Order) -> str:
    if order == "id":
        return ""
    moment = session.updated_at if order == "updated" else session.created_at
    return moment.isoformat(timespec="microseconds")


def _is_of(trace_id: str, session_id: str, turn: StoredTurn) -> bool:
    record = record_of(session_id, turn)
    return trace_id in (*record.sdk_trace_ids, *record.otel_trace_ids)


def _stored(given: TurnCopy) -> StoredTurn:
    record = given.record
    told: dict[str, Any] = copy.deepcopy({name: getattr(record, name) for name in END_FIELDS})
    turn = StoredTurn(
        record.turn,
        record.state,
        record.started_at,
        record.ended_at,
        record.idempotency_key,
        given.input_digest,
        sdk_trace_ids=record.sdk_trace_ids,
        otel_trace_id=record.otel_trace_id,
        journal={(entry.run, entry.place): entry for entry in given.journal},
    )
    turn.runs = {
        run.run: StoredRun(run.state, run.input_digest, dict(enumerate(run.texts)))
        for run in given.runs
    }
    if record.ended_at is not None:
        turn.end = TurnEnd(record.state, record.ended_at, **told)
    return turn
