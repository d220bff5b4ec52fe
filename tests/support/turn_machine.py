"""Turns in any order: what several memory objects on one storage do, against a simple model.

Each memory object stands for a process of its own. The model is a dict of turns and a holder for
each session; what the storage holds must be what the model says, at every step. Time passes only
when a rule says so. A test of a store makes its ``Storage`` and calls ``run_machine``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from session_middleware.errors import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    TurnInProgress,
    TurnLost,
)
from session_middleware.stores.records import Acquired, AcquireRequest, Lease, TurnEnd, TurnState

LEASE = 3600.0
OBJECTS = 3
FEW = 20
"""Up to so many stories are the same ones in every run, so that only a change can fail them."""
SESSIONS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from([None, None, "k1", "k2"])
INPUTS = st.sampled_from(["x", "x", "x", "y"])


@dataclass
class Run:
    texts: list[str] = field(default_factory=list)
    input: str = ""


@dataclass
class Turn:
    """A turn as the model has it.

    Attributes:
        waiting: the name of its run that waits for approval; None: none, or it was settled.
        settled: the names of those that were settled.
    """

    key: str | None
    input: str
    state: TurnState = "running"
    runs: dict[int, Run] = field(default_factory=dict)
    waiting: str | None = None
    settled: list[str] = field(default_factory=list)

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


class Storage(Protocol):
    """What the memory objects of one story share."""

    def open(self, lease: float) -> Any:
        """Another memory object on the storage."""
        ...

    def pass_time(self, seconds: float) -> Awaitable[None]:
        """Make every lease in the storage as much older."""
        ...

    def close(self) -> None:
        """Remove the storage."""
        ...


class Turns(RuleBasedStateMachine):
    """Acquire, append, retry, end, park, resume, crash, stall, expire, clear, release."""

    def __init__(self, make_storage: Callable[[], Storage]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.storage = make_storage()
        self.memories = [self.storage.open(LEASE) for _ in range(OBJECTS)]
        self.sessions: dict[str, dict[int, Turn]] = {"a": {}, "b": {}}
        self.holders: dict[str, Holder | None] = {"a": None, "b": None}
        self.lost: list[Holder] = []
        self.deleted: list[tuple[str, str]] = []
        self.counter = 0
        self.now = 0.0

    @initialize(parked=st.booleans())
    def begin_with_a_parked_run(self, parked: bool) -> None:
        """Half of the stories begin with what takes many steps to come to."""
        if parked:
            self.acquire(session="a", memory=0, key="k1", given="x")
            holder = self.holders["a"]
            assert holder is not None
            self._append_run(holder, 1)
            self._end(holder, "awaiting_approval", discard=False)

    def teardown(self) -> None:
        for memory in self.memories:
            self.wait(memory.cleanup())
        self.runner.close()
        self.storage.close()

    def wait(self, work: Any) -> Any:
        return self.runner.run(work)

    def text(self) -> str:
        self.counter += 1
        return f"{self.counter}"

    # --- acquiring -----------------------------------------------------------------------------

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1), key=KEYS, given=INPUTS)
    def acquire(self, session: str, memory: int, key: str | None, given: str) -> None:
        turns = self.sessions[session]
        request = AcquireRequest(
            session, datetime.now(UTC), idempotency_key=key, input_digest=given
        )
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
            elif earlier.state == "completed" or earlier.waiting is not None:
                expected = DuplicateTurn
        if expected is None and holder is not None:
            expected = SessionBusy
        if expected is not None:
            with pytest.raises(expected):
                self.wait(self.memories[memory].acquire(request))
            return
        acquired = self.wait(self.memories[memory].acquire(request))
        self._take_over(session)
        number = max(turns, default=0) + 1
        assert acquired.lease.turn == number
        turn = turns[number] = Turn(key, given)
        if same:
            earlier = turns[same[-1]]
            turn.runs, earlier.runs, earlier.state = earlier.runs, {}, "replaced"
            turn.settled, earlier.settled = earlier.settled, []
            assert {run.run: run.item_count for run in acquired.carried if run.item_count} == {
                run: len(stored.texts) for run, stored in turn.runs.items() if stored.texts
            }
        self._hold(session, acquired, memory)

    def _hold(self, session: str, acquired: Acquired, memory: int) -> None:
        self.holders[session] = Holder(
            session,
            acquired.lease.turn,
            acquired.lease,
            memory,
            acquired.next_run,
            until=self.now + LEASE,
        )

    def _unexpired(self, session: str) -> Holder | None:
        holder = self.holders[session]
        return None if holder is None or holder.until <= self.now else holder

    def _told(self, session: str, turn: Any) -> str:
        """The state that a record tells: a turn that runs under no lease is abandoned."""
        dead = turn.state == "running" and self._unexpired(session) is None
        return "abandoned" if dead else str(turn.state)

    def _take_over(self, session: str) -> None:
        """Whoever held the session until now has lost it."""
        holder = self.holders[session]
        if holder is not None:
            self.sessions[session][holder.turn].state = "abandoned"
            self.lost.append(holder)
            self.holders[session] = None

    # --- what a holder does --------------------------------------------------------------------

    def _alive(self) -> list[Holder]:
        """The holders that have not crashed; they may have lost their leases without knowing."""
        return [holder for holder in self.holders.values() if holder and not holder.crashed]

    def _writing(self) -> list[Holder]:
        """Those of them whose turn has runs."""
        return [one for one in self._alive() if self.sessions[one.session_id][one.turn].runs]

    @precondition(_alive)
    @rule(data=st.data(), count=st.integers(1, 3))
    def append_a_run(self, data: Any, count: int) -> None:
        self._append_run(data.draw(st.sampled_from(self._alive())), count)

    def _append_run(self, holder: Holder, count: int) -> None:
        texts = [self.text() for _ in range(count)]
        run, holder.next_run = holder.next_run, holder.next_run + 1
        self._append(holder, run, 0, texts)
        self._turn(holder).runs[run] = Run(texts, "x")

    def _turn(self, holder: Holder) -> Turn:
        return self.sessions[holder.session_id][holder.turn]

    @precondition(_writing)
    @rule(data=st.data())
    def append_to_the_newest_run(self, data: Any) -> None:
        holder = data.draw(st.sampled_from(self._writing()))
        runs = self._turn(holder).runs
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

    @precondition(_writing)
    @rule(data=st.data())
    def retry_the_oldest_run(self, data: Any) -> None:
        """Everything this model stores is an output, so a retry keeps it all."""
        holder = data.draw(st.sampled_from(self._writing()))
        runs = self._turn(holder).runs
        failed = min(runs)
        run, holder.next_run = holder.next_run, holder.next_run + 1
        memory = self.memories[holder.memory]
        kept = self.wait(memory.retry_run(holder.lease, failed, run))
        assert kept == len(runs[failed].texts)
        runs[run] = runs.pop(failed)

    @precondition(_alive)
    @rule(
        data=st.data(),
        state=st.sampled_from(["completed", "failed", "cancelled", *["awaiting_approval"] * 3]),
        discard=st.booleans(),
    )
    def end(self, data: Any, state: TurnState, discard: bool) -> None:
        self._end(data.draw(st.sampled_from(self._alive())), state, discard=discard)

    def _end(self, holder: Holder, state: TurnState, *, discard: bool) -> None:
        session, turn = holder.session_id, self._turn(holder)
        discard = discard and state in ("failed", "cancelled")
        park = f"parked {self.text()}" if state == "awaiting_approval" else None
        is_done = state in ("completed", "awaiting_approval")
        settles = [turn.waiting] if turn.waiting and is_done else []
        end = TurnEnd(
            state,
            datetime.now(UTC),
            discard=discard,
            park=() if park is None else (park,),
            settles=tuple(settles),
        )
        self.wait(self.memories[holder.memory].end_turn(holder.lease, end))
        turn.state = state
        if settles:
            turn.settled += settles
            turn.waiting = None
        turn.waiting = park or turn.waiting
        if discard:
            turn.runs = {run: Run([], stored.input) for run, stored in turn.runs.items()}
            self._delete_parked(session, turn)
        self.holders[session] = None

    def _delete_parked(self, session: str, turn: Turn) -> None:
        names = [*turn.settled, *([turn.waiting] if turn.waiting else [])]
        self.deleted += [(session, name) for name in names]
        turn.settled, turn.waiting = [], None

    def _turns_with(self, what: str) -> list[tuple[str, int]]:
        """The session and number of every turn whose attribute of this name is not empty."""
        return [
            (session, number)
            for session, turns in self.sessions.items()
            for number, turn in turns.items()
            if getattr(turn, what)
        ]

    @precondition(lambda self: self._turns_with("waiting"))
    @rule(data=st.data(), memory=st.integers(0, OBJECTS - 1))
    def resume(self, data: Any, memory: int) -> None:
        """A parked turn goes on, whatever came in between, until a resume of it is settled."""
        session, number = data.draw(st.sampled_from(self._turns_with("waiting")))
        turn = self.sessions[session][number]
        request = AcquireRequest(session, datetime.now(UTC), resume=turn.waiting)
        holder = self._unexpired(session)
        if holder is not None:
            with pytest.raises(TurnInProgress if holder.turn == number else SessionBusy):
                self.wait(self.memories[memory].acquire(request))
            return
        acquired = self.wait(self.memories[memory].acquire(request))
        assert (acquired.resumed, acquired.lease.turn) == (True, number)
        self._take_over(session)
        turn.state = "running"
        self._hold(session, acquired, memory)

    @precondition(lambda self: self._turns_with("settled"))
    @rule(data=st.data(), memory=st.integers(0, OBJECTS - 1))
    def resume_what_was_settled(self, data: Any, memory: int) -> None:
        """Nobody resumes it any more, whether the session is held or free."""
        session, number = data.draw(st.sampled_from(self._turns_with("settled")))
        name = data.draw(st.sampled_from(self.sessions[session][number].settled))
        request = AcquireRequest(session, datetime.now(UTC), resume=name)
        with pytest.raises(DuplicateTurn):
            self.wait(self.memories[memory].acquire(request))

    @precondition(lambda self: self.deleted)
    @rule(data=st.data(), memory=st.integers(0, OBJECTS - 1))
    def resume_what_was_deleted(self, data: Any, memory: int) -> None:
        """What was cleared or discarded does not come back."""
        session, name = data.draw(st.sampled_from(self.deleted))
        request = AcquireRequest(session, datetime.now(UTC), resume=name)
        with pytest.raises(TurnLost):
            self.wait(self.memories[memory].acquire(request))

    # --- what goes wrong -----------------------------------------------------------------------

    @precondition(_alive)
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        """The holder dies: nobody renews its lease, and nobody ends its turn."""
        data.draw(st.sampled_from(self._alive())).crashed = True

    @precondition(lambda self: any(self.holders.values()))
    @rule()
    def stall(self) -> None:
        """Time passes, and nobody renews a lease: it is over, and still good while nobody else
        acquires the session."""
        self.wait(self.storage.pass_time(LEASE + 1))
        self.now += LEASE + 1

    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1))
    def release(self, session: str, memory: int) -> None:
        holder = self.holders[session]
        assert self.wait(self.memories[memory].release(session)) is (holder is not None)
        self._take_over(session)

    @precondition(lambda self: any(map(len, self.sessions.values())))
    @rule(session=SESSIONS, memory=st.integers(0, OBJECTS - 1))
    def clear(self, session: str, memory: int) -> None:
        """From outside: the session is gone, and so is the turn that ran there."""
        self.wait(self.memories[memory].clear_session(session))
        self._take_over(session)
        for turn in self.sessions[session].values():
            self._delete_parked(session, turn)
        self.sessions[session] = {}

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
    def the_storage_holds_what_the_model_says(self) -> None:
        """Items in the order of turn, run and position, and every turn's state."""
        memory = self.memories[self.counter % OBJECTS]
        for session, turns in self.sessions.items():
            expected = [text for number in sorted(turns) for text in turns[number].texts]
            items = self.wait(memory.load_session(session))
            assert [item["output"] for item in items] == expected
            records = self.wait(memory.turns(session))
            assert {record.turn: record.state for record in records} == {
                number: self._told(session, turn) for number, turn in turns.items()
            }
            for record in records:
                stored = [item["output"] for item in record.items]
                assert stored == turns[record.turn].texts


def run_machine(make_storage: Callable[[], Storage], examples: int, steps: int) -> None:
    """Tell stories of turns, each on a storage of its own: a few the same ones, many at random.

    One of a few that fails is shown as it is; making it shorter takes minutes.
    """
    few = examples <= FEW
    run_state_machine_as_test(
        lambda: Turns(make_storage),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=few,
            phases=[Phase.generate] if few else [*Phase],
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
