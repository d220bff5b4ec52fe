"""A session as the process's memory has it: turns, their runs, items as texts, the lease.

Data and its order only; what may be done with a session is for the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from session_middleware.stores.items import COMPACTION_MARK
from session_middleware.stores.records import (
    BEGINNING,
    JournalEntry,
    RunState,
    TurnEnd,
    TurnState,
)


@dataclass(slots=True)
class StoredRun:
    state: RunState = "running"
    input_digest: str | None = None
    items: dict[int, str] = field(default_factory=dict)

    def texts(self) -> list[str]:
        return [self.items[position] for position in sorted(self.items)]


@dataclass(slots=True)
class StoredTurn:
    number: int
    state: TurnState
    started_at: datetime
    ended_at: datetime | None = None
    idempotency_key: str | None = None
    input_digest: str | None = None
    runs: dict[int, StoredRun] = field(default_factory=dict)
    end: TurnEnd | None = None
    sdk_trace_ids: tuple[str, ...] = ()
    otel_trace_id: str | None = None
    journal: dict[tuple[int, int], JournalEntry] = field(default_factory=dict)

    def entries(self) -> tuple[JournalEntry, ...]:
        return tuple(self.journal[name] for name in sorted(self.journal))

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
class StoredSession:
    turns: dict[int, StoredTurn] = field(default_factory=dict)  # in the order of their numbers
    token: int | None = None
    leased: int = 0
    stored: bool = False  # something was stored or saved: only then does the session exist
    opened: int | None = None  # the token of the lease whose writes alone make it exist
    created_at: datetime = BEGINNING
    updated_at: datetime = BEGINNING
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    compacted: set[int] = field(default_factory=set)  # turns that may hold a compaction item

    def note(self, turn: int, texts: Iterable[str]) -> None:
        """Note a turn whose texts hold an item that stands for all before it."""
        if any(COMPACTION_MARK in text for text in texts):
            self.compacted.add(turn)

    def begin(self, state: TurnState, started_at: datetime, first: int = 1) -> StoredTurn:
        turn = StoredTurn(max(next(reversed(self.turns), 0) + 1, first), state, started_at)
        self.turns[turn.number] = turn
        return turn

    def touch(self) -> None:
        """Something was stored just now."""
        self.updated_at = datetime.now(UTC)
        if not self.stored:
            self.created_at = self.updated_at

    def show(self) -> None:
        """Exist, by a write under the lease."""
        self.touch()
        if not self.stored:
            self.stored, self.opened = True, self.token

    def open(self) -> None:
        """Exist, by a write from outside of turns."""
        self.touch()
        self.stored, self.opened = True, None

    def cease(self) -> None:
        """Exist no more, if that was by writes of the lease alone that are gone."""
        if self.opened == self.token and not any(turn.texts() for turn in self.turns.values()):
            self.stored, self.opened, self.title, self.metadata = False, None, None, {}

    def newest_first(self) -> Iterator[StoredTurn]:
        return reversed(self.turns.values())
