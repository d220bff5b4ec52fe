"""Turns on plain dicts: which turn holds a session, and what was stored under which run.

The whole of ``TurnStore`` as synchronous functions of one process's memory, in the order of
the interface. Items come in and go out as texts. No locks, no I/O, no event loop: the owner of an
engine calls it from one thread at a time. A method checks everything before it changes anything,
so a method that raises has changed nothing.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from session_middleware.errors import SessionBusy
from session_middleware.history import (
    LastItems,
    LastTurns,
    Turn,
    holds_compaction,
    holds_output,
    up_to_last_output,
)
from session_middleware.stores.in_memory.parked import ParkedRuns
from session_middleware.stores.in_memory.session import StoredRun, StoredSession, StoredTurn
from session_middleware.stores.items import decode_items
from session_middleware.stores.records import (
    END_FIELDS,
    Acquired,
    AcquireRequest,
    CarriedRun,
    Item,
    JournalEntry,
    Lease,
    Loaded,
    RunItems,
    TurnEnd,
    TurnRecord,
)
from session_middleware.stores.rules import (
    Decision,
    Facts,
    HeldLease,
    KeyedTurn,
    Obstacle,
    Outcome,
    decide,
    lost,
    refusal,
)


class Engine:
    """Sessions with their turns. A lease in it never expires: its holder dies with the process."""

    def __init__(self) -> None:
        self._sessions: dict[str, StoredSession] = {}
        self._fence = 0
        self._parked = ParkedRuns()

    # --- acquiring a session ---------------------------------------------------------------

    def acquire(self, request: AcquireRequest, *, first: int = 1) -> Acquired:
        """Acquire the session by ``stores.rules``, or raise why not.

        ``first`` is the least number that a new turn may get.
        """
        session, decision = self._decide(request)
        self._sessions[request.session_id] = session
        begins = decision.outcome is Outcome.BEGIN
        turn = self._turn_for(request, session, decision, first)
        self._fence += 1
        session.token = secrets.randbits(63)
        session.leased = turn.number
        lease = Lease(request.session_id, turn.number, session.token, self._fence)
        stores = request.input is not None and begins
        if request.input is not None and stores:
            self.append(lease, [request.input])
        resumed = decision.outcome is Outcome.CONTINUE
        return Acquired(
            lease,
            next_run=max(turn.runs, default=0) + 1,
            resumed=resumed,
            carried=tuple(_carried(turn)) if decision.outcome is Outcome.RETRY else (),
            stored=stores,
            manifest=copy.deepcopy(turn.end.manifest) if resumed and turn.end else None,
            journal=turn.entries(),
            started_at=turn.started_at,
        )

    def look_up(self, request: AcquireRequest) -> None:
        """Raise what ``acquire`` would raise but for SessionBusy."""
        with suppress(SessionBusy):
            self._decide(request)

    def _decide(self, request: AcquireRequest) -> tuple[StoredSession, Decision]:
        """The session and what the rules say of the request; raises the refusal."""
        session = self._sessions.get(request.session_id) or StoredSession()
        decision = decide(request, self._facts(request, session))
        if decision.outcome.grants:
            return session, decision
        obstacle = Obstacle(request.session_id, decision.turn)
        if decision.turn is not None:
            turn = session.turns[decision.turn]
            items = _items(turn.texts()) if decision.outcome.is_duplicate else ()
            obstacle = replace(obstacle, since=turn.started_at, items=items)
        raise refusal(decision.outcome, obstacle)

    def _facts(self, request: AcquireRequest, session: StoredSession) -> Facts:
        parked = None
        if request.resume is not None:
            parked = self._parked.find(request.session_id, request.resume)
        same_key = None
        if request.idempotency_key is not None:
            for turn in session.newest_first():
                if turn.idempotency_key == request.idempotency_key and turn.state != "replaced":
                    waits = self._parked.waits(request.session_id, turn.number)
                    same_key = KeyedTurn(turn.number, turn.state, turn.input_digest, waits)
                    break
        lease = None if session.token is None else HeldLease(session.leased)
        return Facts(lease, parked, same_key)

    def _turn_for(
        self, request: AcquireRequest, session: StoredSession, decision: Decision, first: int
    ) -> StoredTurn:
        """The turn that the lease is for: the parked one, or a new one."""
        if decision.outcome is Outcome.CONTINUE and request.resume and decision.turn:
            turn = session.turns[decision.turn]
            turn.state, turn.ended_at = "running", None
            if turn.end is not None and request.otel_trace_id is not None:
                turn.end = replace(turn.end, otel_trace_id=request.otel_trace_id)
            return turn
        turn = session.begin("running", request.started_at, first)
        turn.idempotency_key = request.idempotency_key
        turn.input_digest = request.input_digest
        turn.otel_trace_id = request.otel_trace_id
        if decision.outcome is Outcome.RETRY and decision.turn:
            earlier = session.turns[decision.turn]
            turn.runs, earlier.runs = earlier.runs, {}
            session.note(turn.number, turn.texts())
            turn.journal, earlier.journal = earlier.journal, {}
            self._parked.move(request.session_id, earlier.number, turn.number)
            earlier.finish("replaced", earlier.ended_at or request.started_at)
        return turn

    # --- reading ---------------------------------------------------------------------------

    def load(
        self,
        session_id: str,
        *,
        newest: LastTurns | LastItems | None = None,
        hide: tuple[int, Collection[int]] | None = None,
        texts: bool = False,
    ) -> Loaded:
        """Whole turns, oldest first; reads no further back than the window needs."""
        turns: list[Turn] = []
        complete, corrupt, items = True, 0, 0
        cut: int | None = None
        for turn in self._newest_first(session_id):
            hidden = hide[1] if hide is not None and hide[0] == turn.number else ()
            found = turn.texts(hidden)
            if not found:
                continue
            if _is_cut(newest, cut, turns, items + len(found), turn.number):
                complete = False
                break
            items += len(found)
            decoded, faults = decode_items(found)
            corrupt += faults
            kept = [item for item in decoded if item is not None]
            turns.append(Turn(turn.number, kept, found if texts else None))
            if isinstance(newest, LastTurns) and len(turns) == newest.n:
                cut = turn.number - turn.number % newest.step
        oldest_first = turns[::-1]
        if not complete and turns:
            oldest_first = self._with_compaction(session_id, oldest_first, hide or (0, ()))
        return Loaded(oldest_first, complete, corrupt)

    def _with_compaction(
        self, session_id: str, turns: list[Turn], hide: tuple[int, Collection[int]]
    ) -> list[Turn]:
        """These turns, behind the older one that holds the newest compaction item, if one does."""
        if any(holds_compaction(turn.items) for turn in turns):
            return turns
        session = self._sessions[session_id]
        for number in sorted(session.compacted, reverse=True):
            stored = session.turns.get(number)
            if stored is not None and number < turns[0].turn:
                items = _items(stored.texts(hide[1] if hide[0] == number else ()))
                if holds_compaction(items):
                    return [Turn(number, items), *turns]
        return turns

    def texts(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[str]:
        """The newest ``limit`` texts, oldest first; None or a negative limit: all of them."""
        wanted = -1 if limit is None else limit
        newest: list[str] = []
        for candidate in self._newest_first(session_id):
            if 0 <= wanted <= len(newest):
                break
            if turn is None or candidate.number == turn:
                newest.extend(reversed(candidate.texts()))
        if wanted >= 0:
            del newest[wanted:]
        return newest[::-1]

    def records(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The turns, newest first."""
        records: list[TurnRecord] = []
        for turn in self._newest_first(session_id):
            if limit is not None and len(records) >= limit:
                break
            if before is None or turn.number < before:
                records.append(record_of(session_id, turn))
        return records

    def sessions(self) -> list[str]:
        return [session_id for session_id, session in self._sessions.items() if session.stored]

    def exists(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is not None and session.stored

    def _newest_first(self, session_id: str) -> Iterator[StoredTurn]:
        session = self._sessions.get(session_id)
        return iter(()) if session is None else session.newest_first()

    # --- writing under a lease -------------------------------------------------------------

    def fenced(self, lease: Lease) -> StoredTurn:
        """The turn that holds the session under this lease, or TurnLost."""
        session = self._sessions.get(lease.session_id)
        if session is None or session.token != lease.token:
            raise lost(lease)
        return session.turns[session.leased]

    def append(self, lease: Lease, items: Sequence[RunItems]) -> None:
        turn = self.fenced(lease)
        for new in items:
            stored = turn.runs.get(new.run) or StoredRun()
            for at, text in enumerate(new.texts, start=new.position):
                if stored.items.get(at, text) != text and not new.instead:
                    raise ValueError(
                        f"run {new.run} of turn {turn.number} has another item at {at}"
                    )
        session = self._sessions[lease.session_id]
        for new in items:
            stored = turn.runs.setdefault(new.run, StoredRun())
            if stored.input_digest is None:
                stored.input_digest = new.input_digest
            if new.instead:
                stored.items = {}
            stored.items.update(enumerate(new.texts, start=new.position))
            session.note(turn.number, new.texts)
            if new.texts:
                session.show()
        if any(new.withdraws for new in items):
            session.cease()

    def retry(self, lease: Lease, failed: int, run: int) -> int:
        turn = self.fenced(lease)
        old = turn.runs.get(failed)
        if old is None:
            return 0
        found = old.texts()
        kept = up_to_last_output(_items(found))
        new = turn.runs.setdefault(run, StoredRun(input_digest=old.input_digest))
        new.items = dict(enumerate(found[:kept]))
        old.items, old.state = {}, "replaced"
        return kept

    def journal(self, lease: Lease, entries: Sequence[JournalEntry]) -> None:
        turn = self.fenced(lease)
        turn.journal.update({(entry.run, entry.place): entry for entry in entries})

    def end(self, lease: Lease, end: TurnEnd) -> None:
        turn = self.fenced(lease)
        session = self._sessions[lease.session_id]
        for run, state in end.runs.items():
            turn.runs.setdefault(run, StoredRun()).state = state
        if end.discard:
            for stored in turn.runs.values():
                stored.items = {}
            self._parked.drop(lease.session_id, lambda of: of == turn.number, deleted=True)
            session.cease()
        elif end.output_text is not None:
            session.show()
        session.token = None
        if end.unlisted:
            del session.turns[turn.number]
            return
        self._parked.end(lease.session_id, turn.number, end)
        if end.state == "completed" and self._parked.waits(lease.session_id, turn.number):
            end = replace(end, state="awaiting_approval", output_text=None)
        turn.finish(end.state, end.ended_at)
        turn.sdk_trace_ids = tuple(dict.fromkeys((*turn.sdk_trace_ids, *end.sdk_trace_ids)))
        if end.journal is not None:
            turn.journal = {(entry.run, entry.place): entry for entry in end.journal}
        turn.end = end

    # --- writing without one ---------------------------------------------------------------

    def pop(self, session_id: str, *, run: int | None = None) -> str | None:
        """Remove the newest text of the session, or the newest of the newest run so numbered."""
        for turn in self._newest_first(session_id):
            for number in sorted(turn.runs, reverse=True):
                items = turn.runs[number].items
                if items and run in (None, number):
                    return items.pop(max(items))
        return None

    def take_back(self, lease: Lease, run: int, positions: range) -> None:
        """Undo an append that came to nothing, whoever holds the session by now."""
        session = self._sessions.get(lease.session_id)
        turn = session.turns.get(lease.turn) if session is not None else None
        stored = turn.runs.get(run) if turn is not None else None
        if stored is not None:
            for position in positions:
                stored.items.pop(position, None)

    def keep_newest(self, session_id: str, count: int) -> None:
        """Forget all but the newest turns of a session, and what was parked in the others."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        for number in list(session.turns)[:-count]:
            del session.turns[number]
        self._parked.drop(session_id, lambda turn: turn not in session.turns, deleted=False)

    def release(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        if session is None or session.token is None:
            return False
        session.turns[session.leased].finish("abandoned", datetime.now(UTC))
        session.token = None
        return True

    def knows(self, session_id: str) -> bool:
        """Whether there is anything of the session, a turn at least."""
        return session_id in self._sessions

    def holder(self, session_id: str) -> int:
        """The number of the turn that holds the session, or held it last."""
        return self._sessions[session_id].leased

    def is_held(self) -> bool:
        """Whether any session is held."""
        return any(session.token is not None for session in self._sessions.values())

    def release_all(self) -> None:
        for session_id in self._sessions:
            self.release(session_id)

    def append_turn(self, session_id: str, texts: Sequence[str]) -> None:
        session = self._sessions.setdefault(session_id, StoredSession())
        now = datetime.now(UTC)
        turn = session.begin("completed", now)
        turn.finish("completed", now)
        turn.runs[1] = StoredRun("completed", items=dict(enumerate(texts)))
        session.note(turn.number, texts)
        session.open()

    def replace(self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None) -> None:
        before = self._sessions.get(session_id) or StoredSession()
        labels = (before.created_at, before.title, before.metadata) if before.stored else None
        self.forget(session_id, lease)
        session = self._sessions.setdefault(session_id, StoredSession())
        session.open() if lease is None else session.show()
        if labels is not None:
            session.created_at, session.title, session.metadata = labels
        if lease is not None:
            everything = [text for turn in turns for text in turn]
            session.turns[session.leased].runs[0] = StoredRun(items=dict(enumerate(everything)))
            session.note(session.leased, everything)
            return
        for texts in turns:
            self.append_turn(session_id, texts)

    def forget(self, session_id: str, lease: Lease | None, *, deleted: bool = True) -> None:
        """Remove a session; ``deleted``: its parked runs may never be resumed again."""
        current = None if lease is None else self.fenced(lease)
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        self._parked.drop(session_id, lambda turn: True, deleted=deleted)
        if current is not None:
            for run in current.runs.values():
                run.items = {}
            current.journal = {}
            self._sessions[session_id] = session
            session.turns = {current.number: current}
            session.stored, session.title, session.metadata = False, None, {}


def _is_cut(
    newest: LastTurns | LastItems | None,
    cut: int | None,
    newer: Sequence[Turn],
    items: int,
    number: int,
) -> bool:
    """Whether the window ends before this turn, given the newer ones that it keeps."""
    if isinstance(newest, LastTurns):
        return newest.n == 0 or (cut is not None and number < cut)
    if isinstance(newest, LastItems):
        return newest.n == 0 or (bool(newer) and items > newest.n)
    return False


def _items(texts: Sequence[str]) -> list[Item]:
    return [item for item in decode_items(texts)[0] if item is not None]


def _carried(turn: StoredTurn) -> Iterator[CarriedRun]:
    for number in sorted(turn.runs):
        run = turn.runs[number]
        if run.state != "replaced":
            items = _items(run.texts())
            yield CarriedRun(number, run.input_digest, len(items), holds_output(items))


def record_of(session_id: str, turn: StoredTurn) -> TurnRecord:
    """The record of the turn, with its items."""
    items = _items(turn.texts())
    told: dict[str, Any] = {"otel_trace_id": turn.otel_trace_id}
    if turn.end is not None:
        told = copy.deepcopy({name: getattr(turn.end, name) for name in END_FIELDS})
    return TurnRecord(
        session_id=session_id,
        turn=turn.number,
        state=turn.state,
        started_at=turn.started_at,
        ended_at=turn.ended_at,
        item_count=len(items),
        runs=len(turn.runs),
        idempotency_key=turn.idempotency_key,
        sdk_trace_ids=turn.sdk_trace_ids,
        calls=tuple(entry.call for entry in turn.entries() if entry.call is not None),
        items=items,
        **told,
    )
