"""Turns in any order: what several memory objects on one file do, against a simple model.

Each memory object stands for a process of its own. The model is a dict of turns and a holder for
each session; what the file holds must be what the model says, at every step. Time passes only
when a rule says so.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from session_middleware import SQLiteSessionMemory
from session_middleware.errors import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    TurnInProgress,
    TurnLost,
)
from session_middleware.memory import Lease, Taken, TakeTurn, TurnEnd, TurnState
from session_middleware.stores import _sqlite_taking

LEASE = 3600.0
OBJECTS = 3
SESSIONS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from([None, None, "k1", "k2"])
INPUTS = st.sampled_from(["x", "x", "x", "y"])


@dataclass
class Run:
    texts: list[str] = field(default_factory=list)
    input: str = ""


@dataclass
class Turn:
    """A turn as the model has it."""

    key: str | None
    input: str
    state: TurnState = "running"
    runs: dict[int, Run] = field(default_factory=dict)
    parked: str | None = None

    @property
    def texts(self) -> list[str]:
        return [text for run in sorted(self.runs) for text in self.runs[run].texts]


@dataclass
class Holder:
    """Who believes to hold a session: a turn with its lease, in a memory object."""

    session_id: str
    turn: int
    lease: Lease
    memory: int
    next_run: int
    until: float
    crashed: bool = False


class Clock:
    """What the store takes for the time of day."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


class Turns(RuleBasedStateMachine):
    """Take, append, retry, end, park, resume, crash, stall, expire, clear, release."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.memories = [
            SQLiteSessionMemory(self.folder / "memory.db", lease=LEASE, synchronous="NORMAL")
            for _ in range(OBJECTS)
        ]
        self.sessions: dict[str, dict[int, Turn]] = {"a": {}, "b": {}}
        self.holders: dict[str, Holder | None] = {"a": None, "b": None}
        self.lost: list[Holder] = []
        self.resumed: list[tuple[str, str]] = []
        self.counter = 0
        self.clock = Clock()
        self.patched = mock.patch.object(_sqlite_taking, "time", self.clock)
        self.patched.start()

    def teardown(self) -> None:
        self.patched.stop()
        for memory in self.memories:
            self.wait(memory.cleanup())
        self.runner.close()
        shutil.rmtree(self.folder)

    def wait(self, work: Any) -> Any:
        return self.runner.run(work)

    def text(self) -> str:
        self.counter += 1
        return f"{self.counter}"

    # --- taking --------------------------------------------------------------------------------

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1), key=KEYS, given=INPUTS)
    def take(self, session: str, memory: int, key: str | None, given: str) -> None:
        turns = self.sessions[session]
        request = TakeTurn(session, datetime.now(UTC), idempotency_key=key, input_digest=given)
        holder = self._unexpired(session)
        same = [
            number
            for number, turn in turns.items()
            if key is not None and turn.key == key and turn.state != "replaced"
        ]
        expected: type[Exception] | None = None
        if same:
            earlier = turns[same[-1]]
            if earlier.input != given:
                expected = IdempotencyConflict
            elif earlier.state == "running" and holder is not None and holder.turn == same[-1]:
                expected = TurnInProgress
            elif earlier.state in ("completed", "awaiting_approval"):
                expected = DuplicateTurn
        if expected is None and holder is not None:
            expected = SessionBusy
        if expected is not None:
            with pytest.raises(expected):
                self.wait(self.memories[memory].take_turn(request))
            return
        taken = self.wait(self.memories[memory].take_turn(request))
        self._take_over(session)
        number = max(turns, default=0) + 1
        assert taken.lease.turn == number
        turn = turns[number] = Turn(key, given)
        if same:
            earlier = turns[same[-1]]
            turn.runs, earlier.runs, earlier.state = earlier.runs, {}, "replaced"
            assert {run.run: run.item_count for run in taken.carried if run.item_count} == {
                run: len(stored.texts) for run, stored in turn.runs.items() if stored.texts
            }
        self._hold(session, taken, memory)

    def _hold(self, session: str, taken: Taken, memory: int) -> None:
        self.holders[session] = Holder(
            session,
            taken.lease.turn,
            taken.lease,
            memory,
            taken.next_run,
            until=self.clock.now + LEASE,
        )

    def _unexpired(self, session: str) -> Holder | None:
        holder = self.holders[session]
        return None if holder is None or holder.until <= self.clock.now else holder

    def _take_over(self, session: str) -> None:
        """Whoever held the session until now has lost it."""
        holder = self.holders[session]
        if holder is not None:
            self.sessions[session][holder.turn].state = "abandoned"
            self.lost.append(holder)
            self.holders[session] = None

    # --- what a holder does --------------------------------------------------------------------

    def _holding(self, session: str) -> Holder | None:
        holder = self.holders[session]
        return None if holder is None or holder.crashed else holder

    @rule(session=SESSIONS, count=st.integers(1, 3))
    def append_a_run(self, session: str, count: int) -> None:
        holder = self._holding(session)
        if holder is None:
            return
        texts = [self.text() for _ in range(count)]
        run, holder.next_run = holder.next_run, holder.next_run + 1
        self._append(holder, run, 0, texts)
        self.sessions[session][holder.turn].runs[run] = Run(texts, "x")

    @rule(session=SESSIONS)
    def append_to_the_newest_run(self, session: str) -> None:
        holder = self._holding(session)
        if holder is None or not (runs := self.sessions[session][holder.turn].runs):
            return
        newest = max(runs)
        texts = [self.text()]
        self._append(holder, newest, len(runs[newest].texts), texts)
        runs[newest].texts += texts

    def _append(self, holder: Holder, run: int, position: int, texts: list[str]) -> None:
        items = [
            {"type": "function_call_output", "call_id": text, "output": text} for text in texts
        ]
        memory = self.memories[holder.memory]
        self.wait(memory.append_items(holder.lease, run, position, items, input_digest="x"))

    @rule(session=SESSIONS)
    def retry_the_oldest_run(self, session: str) -> None:
        """Everything this model stores is an output, so a retry keeps it all."""
        holder = self._holding(session)
        if holder is None or not (runs := self.sessions[session][holder.turn].runs):
            return
        failed = min(runs)
        run, holder.next_run = holder.next_run, holder.next_run + 1
        memory = self.memories[holder.memory]
        kept = self.wait(memory.retry_run(holder.lease, failed, run))
        assert kept == len(runs[failed].texts)
        runs[run] = runs.pop(failed)

    @rule(
        session=SESSIONS,
        state=st.sampled_from(["completed", "failed", "cancelled", "awaiting_approval"]),
        discard=st.booleans(),
    )
    def end(self, session: str, state: TurnState, discard: bool) -> None:
        holder = self._holding(session)
        if holder is None:
            return
        turn = self.sessions[session][holder.turn]
        discard = discard and state in ("failed", "cancelled")
        park = f"parked {self.text()}" if state == "awaiting_approval" else None
        parked = () if park is None else (park,)
        end = TurnEnd(state, datetime.now(UTC), discard=discard, park=parked)
        self.wait(self.memories[holder.memory].end_turn(holder.lease, end))
        turn.state, turn.parked = state, park
        if discard:
            turn.runs = {run: Run([], stored.input) for run, stored in turn.runs.items()}
        self.holders[session] = None

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1))
    def resume(self, session: str, memory: int) -> None:
        """A parked turn goes on, whatever came in between, once."""
        parked = [(number, turn) for number, turn in self.sessions[session].items() if turn.parked]
        if not parked:
            return
        number, turn = parked[0]
        identity = turn.parked or ""
        request = TakeTurn(session, datetime.now(UTC), resume=identity)
        if self._unexpired(session) is not None:
            with pytest.raises(SessionBusy):
                self.wait(self.memories[memory].take_turn(request))
            return
        taken = self.wait(self.memories[memory].take_turn(request))
        assert (taken.resumed, taken.lease.turn) == (True, number)
        self._take_over(session)
        turn.state, turn.parked = "running", None
        self.resumed.append((session, identity))
        self._hold(session, taken, memory)

    @precondition(lambda self: self.resumed)
    @rule(memory=st.integers(0, OBJECTS - 1))
    def resume_again(self, memory: int) -> None:
        session, identity = self.resumed[-1]
        request = TakeTurn(session, datetime.now(UTC), resume=identity)
        with pytest.raises(DuplicateTurn):
            self.wait(self.memories[memory].take_turn(request))

    # --- what goes wrong -----------------------------------------------------------------------

    @rule(session=SESSIONS)
    def crash(self, session: str) -> None:
        """The holder dies: nobody renews its lease, and nobody ends its turn."""
        holder = self._holding(session)
        if holder is not None:
            holder.crashed = True

    @rule()
    def stall(self) -> None:
        """Time passes, and nobody renews a lease: it is over, and still good while nobody else
        takes the session."""
        self.clock.now += LEASE + 1

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1))
    def release(self, session: str, memory: int) -> None:
        holder = self.holders[session]
        assert self.wait(self.memories[memory].release(session)) is (holder is not None)
        self._take_over(session)

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1))
    def clear(self, session: str, memory: int) -> None:
        """From outside: the session is gone, and so is the turn that ran there."""
        self.wait(self.memories[memory].clear_session(session))
        self._take_over(session)
        self.sessions[session] = {}
        self.resumed = [one for one in self.resumed if one[0] != session]

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1))
    def append_from_outside(self, session: str, memory: int) -> None:
        """A turn of its own, that waits for nobody."""
        text = self.text()
        item = {"type": "function_call_output", "call_id": text, "output": text}
        self.wait(self.memories[memory].append_to_session(session, [item]))
        turns = self.sessions[session]
        turns[max(turns, default=0) + 1] = Turn(None, "", "completed", {1: Run([text])})

    # --- what is always true -------------------------------------------------------------------

    @invariant()
    def the_lost_write_nothing(self) -> None:
        """Every way to write under a lease that was lost raises, and changes nothing."""
        for holder in self.lost[-2:]:
            memory = self.memories[holder.memory]
            end = TurnEnd("completed", datetime.now(UTC))
            item = {"role": "user", "content": "from beyond"}
            with pytest.raises(TurnLost):
                self.wait(memory.append_items(holder.lease, 99, 0, [item]))
            with pytest.raises(TurnLost):
                self.wait(memory.retry_run(holder.lease, 1, 99))
            with pytest.raises(TurnLost):
                self.wait(memory.end_turn(holder.lease, end))

    @invariant()
    def the_file_holds_what_the_model_says(self) -> None:
        """Items in the order of turn, run and position, and every turn's state."""
        memory = self.memories[self.counter % OBJECTS]
        for session, turns in self.sessions.items():
            expected = [text for number in sorted(turns) for text in turns[number].texts]
            items = self.wait(memory.load_session(session))
            assert [item["output"] for item in items] == expected
            records = self.wait(memory.turns(session))
            assert {record.turn: record.state for record in records} == {
                number: turn.state for number, turn in turns.items()
            }
            for record in records:
                stored = [item["output"] for item in record.items]
                assert stored == turns[record.turn].texts


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Turns,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_turns_of_several_memories_on_one_file() -> None:
    """A few stories of turns, made at random."""
    run_machine(examples=12, steps=25)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_stories_of_turns() -> None:
    """Many and longer stories of turns."""
    run_machine(examples=200, steps=50)
