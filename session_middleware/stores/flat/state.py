"""The order of a turn's runs in a flat history, and the state of one memory object's turns.

A flat history has no place for a run's number, so its runs are kept whole by letting one through
at a time. Bookkeeping only: nothing here calls the memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from session_middleware._fork import Step, at_fork
from session_middleware.memory import SessionMemory
from session_middleware.stores.in_memory.engine import Engine
from session_middleware.stores.records import Item

NOBODY = -1
"""In place of a run that is let through: every run waits."""


@dataclass(slots=True)
class RunOrder:
    """The items of the turn that holds a session: those stored, and those that wait.

    Attributes:
        through: the run whose items go to the memory at once.
        stored: run and item of everything this turn put at the end of the history, in order.
        waiting: items of other runs, by run, in the order in which the runs came.
        over: runs that append no more.
    """

    through: int | None = None
    stored: list[tuple[int, Item]] = field(default_factory=list)
    waiting: dict[int, list[Item]] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)

    def advance(self) -> list[tuple[int, Item]]:
        """Let the next run through, once the one before is over; returns what to store now."""
        batch: list[tuple[int, Item]] = []
        while self.through is None or self.through in self.over:
            if not self.waiting:
                self.through = None
                break
            self.through = next(
                (run for run in self.waiting if run in self.over), next(iter(self.waiting))
            )
            batch.extend((self.through, item) for item in self.waiting.pop(self.through))
        self.stored.extend(batch)
        return batch

    def take_back(self, items: Sequence[Item]) -> None:
        """Forget that these very items were stored."""
        self.stored = [one for one in self.stored if not any(one[1] is item for item in items)]

    def put_back(self, batch: Sequence[tuple[int, Item]]) -> None:
        """Let a batch that could not be stored wait on, before everything else, until the end."""
        self.take_back([item for _, item in batch])
        later, self.waiting = self.waiting, {}
        for run, item in batch:
            self.waiting.setdefault(run, []).append(item)
        for run, items in later.items():
            self.waiting.setdefault(run, []).extend(items)
        self.through = NOBODY

    def pop(self) -> tuple[int, Item]:
        """Remove the newest item that waits; returns its run and the item."""
        run = next(reversed(self.waiting))
        item = self.waiting[run].pop()
        if not self.waiting[run]:
            del self.waiting[run]
        return run, item

    def end(self) -> list[tuple[int, Item]]:
        """Everything that still waits, run by run."""
        self.over.update(self.waiting)
        if self.through is not None:
            self.over.add(self.through)
        return self.advance()


class FlatState:
    """All that is known of one memory object, however many ``FlatTurns`` serve it."""

    def __init__(self) -> None:
        # Entered again when a dropped write is noticed while its thread is in here.
        self.lock = threading.RLock()
        self.engine = Engine()
        self.orders: dict[str, RunOrder] = {}
        self.writes: dict[str, Future[None]] = {}  # the newest write of a session, until it is done
        self.idle: OrderedDict[str, None] = OrderedDict()

    def after_fork(self) -> None:
        # The threads that held sessions, or were writing, are the parent's.
        self.lock = threading.RLock()
        self.engine.release_all()
        self.orders.clear()
        self.writes.clear()


_state: dict[int, FlatState] = {}
_books_lock = threading.Lock()


def flat_state_of(memory: SessionMemory) -> FlatState:
    # By identity, not by equality: a memory may well be a dataclass, or not hashable.
    with _books_lock:
        state = _state.get(id(memory))
        if state is None:
            state = _state[id(memory)] = FlatState()
            weakref.finalize(memory, _state.pop, id(memory), None).atexit = False
        return state


def places(stored: Sequence[tuple[int, Item]], history: Sequence[Item]) -> list[int]:
    """Where each of the stored items lies in the history, -1 for one that is not there.

    Looked for from the end, in order; the history may have been changed by somebody else.
    """
    found: list[int] = []
    end = len(history)
    for _, item in reversed(stored):
        place = next((at for at in range(end - 1, -1, -1) if history[at] == item), -1)
        found.append(place)
        end = place if place >= 0 else end
    return found[::-1]


def _after_fork_in_child() -> None:
    global _books_lock
    _books_lock = threading.Lock()
    for state in _state.values():
        state.after_fork()


at_fork(Step.FLAT_SESSIONS, _after_fork_in_child)
