"""What waits for a connection, and how a group of it becomes one transaction.

A member is a plain function of the connection; its own error undoes it alone, an error of the
transaction reaches every member. Nothing here knows what the members do, nor opens anything.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import GeneratorType
from typing import Any, Generic, Protocol, TypeVar

from session_middleware.stores.sqlite.driver import is_transient, readable

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work without the connection, in steps of a few milliseconds, and what it comes to."""


class Durability(Enum):
    """What a power failure may take of a write that was reported as done.

    The death of the process takes nothing of either.
    """

    UNFLUSHED = "unflushed"
    """The write, until another commit is flushed."""
    FLUSHED = "flushed"
    """Nothing: the commit is flushed to the disk before the write is reported as done."""


@dataclass(slots=True, eq=False)
class Member(Generic[T]):
    """One function to run in a group, and the future of its result.

    Attributes:
        alone: it runs between two groups, without a transaction.
        steps: what is left to do after the transaction, where the function returned such.
    """

    work: Callable[[sqlite3.Connection], T | Steps[T]]
    durability: Durability
    deadline: float
    waiter: asyncio.Future[T] | None
    alone: bool = False
    result: T | None = None
    error: BaseException | None = None
    steps: Steps[T] | None = None

    def keep(self, result: Any) -> None:
        """Keep what the function returned."""
        if isinstance(result, GeneratorType):
            self.steps = result
        else:
            self.result = result

    def advance(self) -> bool:
        """Make the next step; returns whether there are more."""
        if self.steps is None or self.error is not None:
            return False
        if self.waiter is not None and self.waiter.cancelled():
            self.steps.close()
            return False
        try:
            next(self.steps)
        except StopIteration as finished:
            self.result = finished.value
            return False
        except Exception as error:
            self.error = error
            return False
        return True


@dataclass(slots=True)
class Counts:
    """What a queue did so far.

    Attributes:
        groups: groups that were committed.
        members: functions that ran in them.
        synced: commits that changed something and were flushed to the disk before they returned.
    """

    groups: int = 0
    members: int = 0
    synced: int = 0


class Queue(Protocol):
    """What a connection asks of its queue, in its own thread."""

    running: threading.Lock
    create: Callable[[], None]
    prepare: Callable[[GroupConnection], None]
    check: Callable[[GroupConnection], None]

    def run_waiting(self, connection: GroupConnection) -> None: ...

    def before_close(self, connection: GroupConnection) -> None: ...


class GroupConnection(sqlite3.Connection):
    """An sqlite3 connection whose ``commit()`` runs and commits what waits in its queue."""

    def __init__(self, queue: Queue, *args: Any, **kwargs: Any) -> None:
        self._queue = queue
        self._synchronous = ""
        self._layout: int | None = None  # SQLite's number of the layout that was checked
        with queue.running:
            queue.create()
            super().__init__(*args, **kwargs)
            self.text_factory = readable
            try:
                queue.prepare(self)
            except BaseException:
                super().close()
                raise

    def commit(self) -> None:
        self._queue.run_waiting(self)

    def close(self) -> None:
        with self._queue.running:
            self._queue.before_close(self)
            super().close()

    def begin(self, statement: str, synchronous: str) -> None:
        """Begin a transaction that will be committed with this ``synchronous`` setting.

        Where another program has changed the layout, that is checked first: a view in the place
        of a table may be one that never ends.
        """
        if synchronous != self._synchronous:
            self.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        self.execute(statement)
        ((layout,),) = self.execute("PRAGMA schema_version").fetchall()
        if layout != self._layout:
            self._queue.check(self)
            self._layout = layout


def run_members(
    connection: sqlite3.Connection, group: Sequence[Member[Any]], *, apart: bool = False
) -> bool:
    """Run each; False where one failed halfway, so that what it changed is to be undone.

    That is rare: a fence comes before any change. So the savepoints that can undo one member
    alone are set only ``apart``, in a second attempt, and cost the usual group nothing.
    """
    for member in group:
        member.error = None
        changes = connection.total_changes
        if apart:
            connection.execute("SAVEPOINT member")
        try:
            member.keep(member.work(connection))
        except Exception as error:
            if is_transient(error) or not connection.in_transaction:
                raise  # SQLite has undone the whole transaction, or will have to begin again
            if not apart and connection.total_changes != changes:
                return False
            member.error = error
            if apart:
                connection.execute("ROLLBACK TO member")
        if apart:
            connection.execute("RELEASE member")
    return True


def deliver(members: Iterable[Member[Any]]) -> None:
    """Set the future of every member, with one call into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Member[Any]]] = {}
    for member in members:
        if member.waiter is not None:
            loops.setdefault(member.waiter.get_loop(), []).append(member)
    for loop, waiting in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_set_outcomes, waiting)


def _set_outcomes(members: Sequence[Member[Any]]) -> None:
    for member in members:
        if member.waiter is None or member.waiter.cancelled():
            continue
        if member.error is not None:
            member.waiter.set_exception(member.error)
        else:
            member.waiter.set_result(member.result)
