"""The runs that wait for approval, of all sessions: which turn each is of, by its identities.

What a resume of one comes to is decided by ``stores.rules``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from session_middleware.stores.managed_store import ParkedCopy, PendingTurn
from session_middleware.stores.records import KeptState, PendingCall, TurnEnd
from session_middleware.stores.rules import ParkedRun


@dataclass(slots=True)
class _Parked:
    """A parked run under one of its identities; ``first`` is the one it was parked under."""

    turn: int
    first: str
    open: bool = True
    since: datetime | None = None
    calls: tuple[PendingCall, ...] = ()
    state: str | None = None


class ParkedRuns:
    """Parked runs by session and identity, and the identities that were deleted."""

    def __init__(self) -> None:
        self._of_session: dict[str, dict[str, _Parked]] = {}
        self._sessions_of: dict[str, set[str]] = {}
        self._deleted: set[str] = set()

    def find(self, session_id: str, identity: str) -> ParkedRun | None:
        """What the rules need to know of a run that is to be resumed in this session."""
        parked = self._of_session.get(session_id, {}).get(identity)
        if parked is not None:
            return ParkedRun(parked.turn, parked.open)
        if identity in self._deleted:
            return ParkedRun(deleted=True)
        return ParkedRun() if identity in self._sessions_of else None

    def waits(self, session_id: str, turn: int) -> bool:
        """Whether a run of the turn is open."""
        runs = self._of_session.get(session_id, {}).values()
        return any(parked.open and parked.turn == turn for parked in runs)

    def end(self, session_id: str, turn: int, end: TurnEnd) -> None:
        """Note what the end of the turn says of parked runs: aliases, settled and new ones."""
        runs = self._of_session.setdefault(session_id, {})
        for alias, identity in end.aliases:
            if identity in runs and alias not in runs:
                self._park(session_id, alias, _Parked(turn, runs[identity].first))
        settled = {runs[identity].first for identity in end.settles if identity in runs}
        for parked in runs.values():
            if parked.first in settled:
                parked.turn, parked.open = turn, False
                parked.calls, parked.state = (), None
        kept = {state.identity: state for state in end.states}
        for identity in end.park:
            state = kept.get(identity) or KeptState(identity)
            parked = _Parked(turn, identity, True, end.ended_at, state.calls, state.text)
            self._park(session_id, identity, parked)
        if not runs:
            del self._of_session[session_id]

    def move(self, session_id: str, earlier: int, turn: int) -> None:
        """Let the runs of one turn be another's, which retries it."""
        for parked in self._of_session.get(session_id, {}).values():
            if parked.turn == earlier:
                parked.turn = turn

    def drop(self, session_id: str, which: Callable[[int], bool], *, deleted: bool) -> None:
        """Forget the runs of these turns; ``deleted``: none of them may be resumed ever again."""
        runs = self._of_session.get(session_id, {})
        for identity in [name for name, parked in runs.items() if which(parked.turn)]:
            del runs[identity]
            if deleted:
                self._deleted.add(identity)
            places = self._sessions_of[identity]
            places.remove(session_id)
            if not places:
                del self._sessions_of[identity]
        if not runs:
            self._of_session.pop(session_id, None)

    # --- managing --------------------------------------------------------------------------

    def of_turn(self, session_id: str, turn: int) -> tuple[ParkedCopy, ...]:
        """Copies of all that is parked in the turn."""
        runs = self._of_session.get(session_id, {})
        return tuple(
            ParkedCopy(
                name,
                None if parked.first == name else parked.first,
                parked.open,
                parked.since,
                parked.calls,
                parked.state,
            )
            for name, parked in sorted(runs.items())
            if parked.turn == turn
        )

    def put(self, session_id: str, turn: int, copies: Sequence[ParkedCopy]) -> None:
        """Park these copies in the turn."""
        self._of_session.setdefault(session_id, {})
        for copy in copies:
            first = copy.alias_of or copy.identity
            parked = _Parked(turn, first, copy.open, copy.since, copy.calls, copy.state)
            self._park(session_id, copy.identity, parked)
        if not self._of_session[session_id]:
            del self._of_session[session_id]

    def pending(self) -> Iterator[PendingTurn]:
        """Every run that waits, of all sessions."""
        for session_id, runs in self._of_session.items():
            for name, parked in runs.items():
                if parked.open and parked.first == name and parked.since is not None:
                    yield PendingTurn(
                        session_id, parked.turn, parked.since, parked.calls, parked.state, name
                    )

    def decide(self, waiting: PendingTurn, calls: tuple[PendingCall, ...]) -> None:
        """Put these calls, one of which was decided, in place of the run's."""
        self._of_session[waiting.session_id][waiting.identity].calls = calls

    def _park(self, session_id: str, identity: str, parked: _Parked) -> None:
        self._of_session[session_id][identity] = parked
        self._sessions_of.setdefault(identity, set()).add(session_id)
