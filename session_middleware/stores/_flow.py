"""Which run of a turn may write to a flat history, and what one memory object's turns stored.

A flat history has no place for a run's number, so its runs are kept whole by letting one through
at a time. Bookkeeping only: nothing here calls the memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from session_middleware.memory import Item, SessionMemory
from session_middleware.stores._ledger import Ledger

NOBODY = -1
"""In place of a run that is let through: every run waits."""


@dataclass(slots=True)
class Flow:
    """What the turn that holds a session has stored, and what it has yet to store.

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
        """Take away the newest item that waits, and say whose it was."""
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


class Books:
    """All that is known of one memory object, however many ``FlatTurns`` serve it."""

    def __init__(self) -> None:
        # Entered again when a dropped write is noticed while its thread is in here.
        self.lock = threading.RLock()
        self.ledger = Ledger()
        self.flows: dict[str, Flow] = {}
        self.writes: dict[str, Future[None]] = {}  # the newest write of a session, until it is done
        self.idle: OrderedDict[str, None] = OrderedDict()

    def after_fork(self) -> None:
        # The threads that held sessions, or were writing, are the parent's.
        self.lock = threading.RLock()
        self.ledger.release_all()
        self.flows.clear()
        self.writes.clear()


_books: dict[int, Books] = {}
_books_lock = threading.Lock()


def books_of(memory: SessionMemory) -> Books:
    # By identity, not by equality: a memory may well be a dataclass, or not hashable.
    with _books_lock:
        books = _books.get(id(memory))
        if books is None:
            books = _books[id(memory)] = Books()
            weakref.finalize(memory, _books.pop, id(memory), None).atexit = False
        return books


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
    for books in _books.values():
        books.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
