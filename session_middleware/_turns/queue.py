"""Waiting for a session within this process: in order, across tasks, threads and loops.

The queue is only about order and about noticing that two turns wait for each other; the lease in
the memory decides who may write. Entering and leaving cost the same however many wait. No entry
is kept for an idle session.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from session_middleware._fork import Step, at_fork
from session_middleware.errors import SessionBusy
from session_middleware.memory import set_release_listener
from session_middleware.stores.rules import Obstacle, Outcome, busy, refusal

Place: TypeAlias = tuple[Hashable, str]
"""A session of a memory: (identity of the memory, session id)."""


class QueuedTurn(Protocol):
    """A turn, as the queue sees it."""

    @property
    def session_id(self) -> str: ...
    @property
    def number(self) -> int | None: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def idempotency_key(self) -> str | None: ...
    def enclosing(self) -> Iterable[QueuedTurn]:
        """The turns this one was started in, which cannot end before it does."""
        ...


@dataclass(eq=False, slots=True)
class _Waiter:
    turn: QueuedTurn
    enclosing: tuple[QueuedTurn, ...]
    granted: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Queue:
    """Who holds a session in this process, and who waits for it.

    Attributes:
        keys: the idempotency keys of the holder and of all who wait.
        recent: seconds that recent turns of the session took, once somebody has asked.
    """

    holder: QueuedTurn
    waiters: OrderedDict[_Waiter, None] = field(default_factory=OrderedDict)
    keys: dict[str, QueuedTurn] = field(default_factory=dict)
    recent: Sequence[float] | None = None


_lock = threading.Lock()
_queues: dict[Place, _Queue] = {}
_awaited: dict[QueuedTurn, Counter[Place]] = {}
"""For each turn, the places that calls inside it wait for."""


def is_held(place: Place) -> bool:
    """Whether a turn of this process holds the session, so that another one would wait."""
    return place in _queues


def waiting(place: Place) -> int:
    """How many turns of this process wait for the session."""
    queue = _queues.get(place)
    return 0 if queue is None else len(queue.waiters)


def recent(place: Place) -> Sequence[float] | None:
    """What ``keep_recent`` was given since the session became busy here."""
    queue = _queues.get(place)
    return None if queue is None else queue.recent


def keep_recent(place: Place, seconds: Sequence[float]) -> None:
    """Keep the seconds that recent turns took, for as long as the session is busy here."""
    queue = _queues.get(place)
    if queue is not None:
        queue.recent = seconds


async def enter(
    place: Place,
    turn: QueuedTurn,
    *,
    limit: int,
    patience: float | None,
    contended: Callable[[int | None], None],
) -> None:
    """Wait until it is this turn's time; ``leave`` must follow.

    Args:
        place: the session.
        turn: the turn that wants it.
        limit: how many may wait for the session at most; 0: this turn never waits.
        patience: seconds to wait; None: for ever.
        contended: called with the holder's number before a wait begins.

    Raises:
        SessionBusy: at once if ``limit`` wait already or if waiting would never end, else after
            ``patience`` seconds.
        TurnInProgress: a turn with the same idempotency key holds the session, or waits for it.
    """
    with _lock:
        queue = _queues.get(place)
        if queue is None:
            queue = _queues[place] = _Queue(turn)
            _index_key(queue, turn)
            return
        _check_key(place, queue, turn)
        _check_limit(place, queue, limit)
        enclosing = tuple(turn.enclosing())
        _check_no_circle(place, queue, enclosing)
        waiter = _Waiter(turn, enclosing, asyncio.get_running_loop().create_future())
        _add(place, queue, waiter)
        holder = queue.holder.number
    try:
        contended(holder)
        await _granted(waiter.granted, patience)
    except BaseException as error:
        with _lock:
            queue = _queues.get(place)  # None, where our loop was closed and we were passed over
            if queue is not None and waiter in queue.waiters:
                _remove(place, queue, waiter)
            elif queue is not None and queue.holder is turn:  # while we were being cancelled
                _pass_on(place, queue)
        if isinstance(error, TimeoutError) and queue is not None:
            raise _busy(place, queue.holder, f"waited {patience:g} s for it") from None
        raise


async def _granted(granted: asyncio.Future[None], patience: float | None) -> None:
    """Wait, with few objects: the garbage collector looks at those of all who wait."""
    if patience is None:
        await granted
        return
    context = contextvars.Context()  # of its own: two threads cannot be in one at a time
    end = granted.get_loop().call_later(patience, _give_up, granted, context=context)
    try:
        await granted
    finally:
        end.cancel()


def _give_up(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_exception(TimeoutError())


def _grant(granted: asyncio.Future[None]) -> None:
    if not granted.done():  # else whoever gave up passes the place on
        granted.set_result(None)


def leave(place: Place, turn: QueuedTurn) -> None:
    """Let the next turn in; nothing happens if this turn does not hold the place."""
    with _lock:
        queue = _queues.get(place)
        if queue is not None and queue.holder is turn:
            _pass_on(place, queue)


def dispossess(identity: Hashable, session_id: str) -> None:
    """Let the next turn in: the memory took the session from its turn, which may never end."""
    place = (identity, session_id)
    with _lock:
        queue = _queues.get(place)
        if queue is not None:
            _pass_on(place, queue)


# --- under the lock ------------------------------------------------------------------------


def _add(place: Place, queue: _Queue, waiter: _Waiter) -> None:
    queue.waiters[waiter] = None
    _index_key(queue, waiter.turn)
    for outer in waiter.enclosing:
        _awaited.setdefault(outer, Counter())[place] += 1


def _remove(place: Place, queue: _Queue, waiter: _Waiter) -> None:
    del queue.waiters[waiter]
    _forget_key(queue, waiter.turn)
    _waits_no_more(place, waiter)


def _waits_no_more(place: Place, waiter: _Waiter) -> None:
    for outer in waiter.enclosing:
        places = _awaited[outer]
        places[place] -= 1
        if not places[place]:
            del places[place]
        if not places:
            del _awaited[outer]


def _pass_on(place: Place, queue: _Queue) -> None:
    _forget_key(queue, queue.holder)
    while queue.waiters:
        following, _ = queue.waiters.popitem(last=False)
        _waits_no_more(place, following)
        queue.holder = following.turn
        try:
            loop = following.granted.get_loop()
            context = contextvars.Context()
            loop.call_soon_threadsafe(_grant, following.granted, context=context)
        except RuntimeError:  # its loop is closed: nobody would ever wake up there
            _forget_key(queue, following.turn)
        else:
            return
    del _queues[place]


def _index_key(queue: _Queue, turn: QueuedTurn) -> None:
    if turn.idempotency_key is not None:
        queue.keys[turn.idempotency_key] = turn


def _forget_key(queue: _Queue, turn: QueuedTurn) -> None:
    if turn.idempotency_key is not None and queue.keys.get(turn.idempotency_key) is turn:
        del queue.keys[turn.idempotency_key]


def _check_key(place: Place, queue: _Queue, turn: QueuedTurn) -> None:
    if turn.idempotency_key is None:
        return
    other = queue.keys.get(turn.idempotency_key)
    if other is not None:
        raise refusal(Outcome.IN_PROGRESS, _obstacle(place, other))


def _check_limit(place: Place, queue: _Queue, limit: int) -> None:
    waiting = len(queue.waiters)
    if waiting >= limit:
        others = f"{waiting} others wait for it" if waiting else "try again later"
        raise _busy(place, queue.holder, others)


def _check_no_circle(place: Place, queue: _Queue, mine: tuple[QueuedTurn, ...]) -> None:
    """Raise SessionBusy if the holder waits, directly or not, for a turn this call is part of."""
    seen: set[QueuedTurn] = set()
    ahead = [queue.holder] if mine else []
    while ahead:
        other = ahead.pop()
        if other in mine:
            number = other.number or "(starting)"
            raise _busy(
                place,
                queue.holder,
                f"waiting would never end: it waits for session {other.session_id!r}, whose "
                f"turn {number} this call is part of. Acquire the sessions in one order, or do "
                "not nest them",
            )
        if other not in seen:
            seen.add(other)
            held = (_queues.get(awaited) for awaited in _awaited.get(other, ()))
            ahead.extend(of.holder for of in held if of is not None)


def _busy(place: Place, holder: QueuedTurn, advice: str) -> SessionBusy:
    return busy(_obstacle(place, holder), advice)


def _obstacle(place: Place, turn: QueuedTurn) -> Obstacle:
    return Obstacle(place[1], turn=turn.number, since=turn.started_at)


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _queues.clear()  # the parent's turns
    _awaited.clear()


set_release_listener(dispossess)
at_fork(Step.SESSION_QUEUES, _forget_after_fork)
