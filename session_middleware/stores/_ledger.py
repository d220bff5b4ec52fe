"""The rules of turns on plain dicts: who holds a session, what was stored under which run.

The whole of ``SupportsTurns`` as synchronous functions of one process's memory, in the order of
the interface. Items come in and go out as texts. No locks, no I/O, no event loop: whoever owns a
ledger calls it from one thread at a time. A method checks everything before it changes anything,
so what raises has changed nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from session_middleware.errors import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    TurnInProgress,
    TurnLost,
    WrongSession,
)
from session_middleware.history import LastItems, LastTurns, Turn, holds_output, up_to_last_output
from session_middleware.memory import (
    CarriedRun,
    Item,
    Lease,
    Loaded,
    RunItems,
    RunState,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnRecord,
    TurnState,
)
from session_middleware.stores._base import decode_items


@dataclass(slots=True)
class _Run:
    state: RunState = "running"
    input_digest: str | None = None
    items: dict[int, str] = field(default_factory=dict)

    def texts(self) -> list[str]:
        return [self.items[position] for position in sorted(self.items)]


@dataclass(slots=True)
class _Turn:
    number: int
    state: TurnState
    started_at: datetime
    ended_at: datetime | None = None
    idempotency_key: str | None = None
    input_digest: str | None = None
    runs: dict[int, _Run] = field(default_factory=dict)
    end: TurnEnd | None = None
    sdk_trace_ids: tuple[str, ...] = ()

    def texts(self, hidden: Collection[int] = ()) -> list[str]:
        return [
            text
            for run in sorted(self.runs)
            if run not in hidden
            for text in self.runs[run].texts()
        ]

    def finish(self, state: TurnState, at: datetime) -> None:
        self.state = state
        self.ended_at = at


@dataclass(slots=True)
class _Session:
    turns: dict[int, _Turn] = field(default_factory=dict)  # in the order of their numbers
    token: int | None = None
    leased: int = 0
    stored: bool = False  # something was stored or saved: only then does the session exist
    opened: int | None = None  # the token of the taking by whose input alone it exists
    parked: dict[str, tuple[int, bool]] = field(default_factory=dict)  # -> turn, still open

    def begin(self, state: TurnState, started_at: datetime, first: int = 1) -> _Turn:
        turn = _Turn(max(next(reversed(self.turns), 0) + 1, first), state, started_at)
        self.turns[turn.number] = turn
        return turn

    def cease(self) -> None:
        """Exist no more, if that was by an input alone that is gone."""
        if self.opened == self.token and not any(turn.texts() for turn in self.turns.values()):
            self.stored, self.opened = False, None

    def newest_first(self) -> Iterator[_Turn]:
        return reversed(self.turns.values())


class Ledger:
    """Sessions with their turns. A lease in it never expires: its holder dies with the process."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._parked_in: dict[str, set[str]] = {}  # identity of what was parked -> sessions

    # --- taking a session ------------------------------------------------------------------

    def take(self, request: TakeTurn, *, first: int = 1) -> Taken:
        """Take the session by the rules of ``SupportsTurns.take_turn``.

        ``first`` is the least number that a new turn may get.
        """
        session, resumed, earlier = self.look_up(request)
        if session.token is not None:
            raise SessionBusy(
                f"turn {session.leased} holds session {request.session_id!r}: wait for it, or "
                "release the session",
                turn=session.leased,
                since=session.turns[session.leased].started_at,
            )
        self._sessions[request.session_id] = session
        if resumed is not None:
            turn = resumed
            turn.state, turn.ended_at = "running", None
            assert request.resume is not None  # noqa: S101 - or nothing would be resumed
            session.parked[request.resume] = (turn.number, False)
        else:
            turn = session.begin("running", request.started_at, first)
            turn.idempotency_key = request.idempotency_key
            turn.input_digest = request.input_digest
        if earlier is not None:
            turn.runs, earlier.runs = earlier.runs, {}
            for identity, (number, is_open) in session.parked.items():
                if number == earlier.number:
                    session.parked[identity] = (turn.number, is_open)
            earlier.finish("replaced", earlier.ended_at or request.started_at)
        session.token = secrets.randbits(63)
        session.leased = turn.number
        lease = Lease(request.session_id, turn.number, session.token)
        carried = () if resumed is not None else tuple(_carried(turn))
        stores = request.input is not None and resumed is None and earlier is None
        if request.input is not None and stores:
            opened = None if session.stored else session.token
            self.append(lease, [request.input])
            session.opened = opened
        return Taken(
            lease,
            next_run=max(turn.runs, default=0) + 1,
            resumed=resumed is not None,
            carried=carried,
            stored=stores,
        )

    def look_up(self, request: TakeTurn) -> tuple[_Session, _Turn | None, _Turn | None]:
        """The session, the parked turn the request continues, and the one that it retries."""
        session = self._sessions.get(request.session_id) or _Session()
        resumed = self._resumed(request, session)
        earlier = None if resumed is not None else self._earlier_attempt(request, session)
        return session, resumed, earlier

    def _resumed(self, request: TakeTurn, session: _Session) -> _Turn | None:
        """The parked turn that this request continues, if it names one."""
        if request.resume is None or request.resume not in self._parked_in:
            return None
        if request.resume not in session.parked:
            raise WrongSession(
                "this run was parked in another session: resume it with the session_id it was "
                "started with"
            )
        number, is_open = session.parked[request.resume]
        turn = session.turns[number]
        if not is_open:
            raise DuplicateTurn(
                f"turn {number} of session {request.session_id!r} was resumed from this state "
                "before: use what that turn stored",
                turn=number,
                items=_items(turn.texts()),
            )
        return turn

    def _earlier_attempt(self, request: TakeTurn, session: _Session) -> _Turn | None:
        """The turn with the same idempotency key that this request retries, if there is one."""
        if request.idempotency_key is None:
            return None
        for turn in session.newest_first():
            if turn.idempotency_key == request.idempotency_key and turn.state != "replaced":
                break
        else:
            return None
        digests = {request.input_digest, turn.input_digest} - {None}
        if len(digests) == 2:
            raise IdempotencyConflict(
                f"turn {turn.number} of session {request.session_id!r} had the same idempotency "
                "key and another input: use a new key for a new input"
            )
        if turn.state == "running":
            raise TurnInProgress(
                f"turn {turn.number} of session {request.session_id!r} with the same idempotency "
                "key is running: wait for its outcome",
                turn=turn.number,
                since=turn.started_at,
            )
        if turn.state in ("completed", "awaiting_approval"):
            raise DuplicateTurn(
                f"turn {turn.number} of session {request.session_id!r} had the same idempotency "
                f"key and is {turn.state}: use what it stored",
                turn=turn.number,
                items=_items(turn.texts()),
            )
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
        return Loaded(turns[::-1], complete, corrupt)

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
                records.append(_record(session_id, turn))
        return records

    def sessions(self) -> list[str]:
        return [session_id for session_id, session in self._sessions.items() if session.stored]

    def exists(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is not None and session.stored

    def _newest_first(self, session_id: str) -> Iterator[_Turn]:
        session = self._sessions.get(session_id)
        return iter(()) if session is None else session.newest_first()

    # --- writing under a lease -------------------------------------------------------------

    def fenced(self, lease: Lease) -> _Turn:
        """The turn that holds the session under this lease, or TurnLost."""
        session = self._sessions.get(lease.session_id)
        if session is None or session.token != lease.token:
            raise TurnLost(
                f"turn {lease.turn} no longer holds session {lease.session_id!r}: it was taken "
                "over, cleared, saved over or released, and nothing was written. Start a new turn"
            )
        return session.turns[session.leased]

    def append(self, lease: Lease, items: Sequence[RunItems]) -> None:
        turn = self.fenced(lease)
        for new in items:
            stored = turn.runs.get(new.run) or _Run()
            for at, text in enumerate(new.texts, start=new.position):
                if stored.items.get(at, text) != text and not new.instead:
                    raise ValueError(
                        f"run {new.run} of turn {turn.number} has another item at {at}"
                    )
        session = self._sessions[lease.session_id]
        for new in items:
            stored = turn.runs.setdefault(new.run, _Run())
            if stored.input_digest is None:
                stored.input_digest = new.input_digest
            if new.instead:
                stored.items = {}
            stored.items.update(enumerate(new.texts, start=new.position))
            if new.texts:
                session.stored, session.opened = True, None
        session.cease()

    def retry(self, lease: Lease, failed: int, run: int) -> int:
        turn = self.fenced(lease)
        old = turn.runs.get(failed)
        if old is None:
            return 0
        found = old.texts()
        kept = up_to_last_output(_items(found))
        new = turn.runs.setdefault(run, _Run(input_digest=old.input_digest))
        new.items = dict(enumerate(found[:kept]))
        old.items, old.state = {}, "replaced"
        return kept

    def end(self, lease: Lease, end: TurnEnd) -> None:
        turn = self.fenced(lease)
        session = self._sessions[lease.session_id]
        for run, state in end.runs.items():
            turn.runs.setdefault(run, _Run()).state = state
        if end.discard:
            for stored in turn.runs.values():
                stored.items = {}
        for identity in end.park:
            session.parked[identity] = (turn.number, True)
            self._parked_in.setdefault(identity, set()).add(lease.session_id)
        if end.state == "completed" and (turn.number, True) in session.parked.values():
            end = replace(end, state="awaiting_approval", output_text=None)
        turn.finish(end.state, end.ended_at)
        turn.sdk_trace_ids = tuple(dict.fromkeys((*turn.sdk_trace_ids, *end.sdk_trace_ids)))
        turn.end = end
        session.token = None

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
        for identity, (number, _) in list(session.parked.items()):
            if number not in session.turns:
                self._unpark(session_id, session, identity)

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
        session = self._sessions.setdefault(session_id, _Session())
        now = datetime.now(UTC)
        turn = session.begin("completed", now)
        turn.finish("completed", now)
        turn.runs[1] = _Run("completed", items=dict(enumerate(texts)))
        session.stored = True

    def replace(self, session_id: str, turns: Sequence[Sequence[str]], lease: Lease | None) -> None:
        self.forget(session_id, lease)
        session = self._sessions.setdefault(session_id, _Session())
        session.stored = True
        if lease is not None:
            everything = [text for turn in turns for text in turn]
            session.turns[session.leased].runs[0] = _Run(items=dict(enumerate(everything)))
            return
        for texts in turns:
            self.append_turn(session_id, texts)

    def forget(self, session_id: str, lease: Lease | None) -> None:
        current = None if lease is None else self.fenced(lease)
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        for identity in list(session.parked):
            self._unpark(session_id, session, identity)
        if current is not None:
            for run in current.runs.values():
                run.items = {}
            self._sessions[session_id] = session
            session.turns = {current.number: current}
            session.stored = False

    def _unpark(self, session_id: str, session: _Session, identity: str) -> None:
        del session.parked[identity]
        places = self._parked_in[identity]
        places.remove(session_id)
        if not places:
            del self._parked_in[identity]


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


def _carried(turn: _Turn) -> Iterator[CarriedRun]:
    for number in sorted(turn.runs):
        run = turn.runs[number]
        if run.state != "replaced":
            items = _items(run.texts())
            yield CarriedRun(number, run.input_digest, len(items), holds_output(items))


def _record(session_id: str, turn: _Turn) -> TurnRecord:
    items = _items(turn.texts())
    end = turn.end
    return TurnRecord(
        session_id=session_id,
        turn=turn.number,
        state=turn.state,
        started_at=turn.started_at,
        ended_at=turn.ended_at,
        agent=None if end is None else end.agent,
        error_type=None if end is None else end.error_type,
        item_count=len(items),
        runs=len(turn.runs),
        idempotency_key=turn.idempotency_key,
        sdk_trace_ids=turn.sdk_trace_ids,
        otel_trace_id=None if end is None else end.otel_trace_id,
        usage=None if end is None or end.usage is None else dict(end.usage),
        output_text=None if end is None else end.output_text,
        history_digest=None if end is None else end.history_digest,
        items=items,
    )
