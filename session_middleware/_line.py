"""Waiting for a session within this process: in order, across tasks, threads and loops.

The line is only about order and about noticing that two turns wait for each other; who may
write is decided by the lease in the memory. No entry is kept for an idle session.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from session_middleware.errors import SessionBusy, TurnInProgress
from session_middleware.memory import set_release_listener

Place: TypeAlias = tuple[Hashable, str]
"""A session of a memory: (identity of the memory, session id)."""


class InLine(Protocol):
    """A turn, as the line sees it."""

    @property
    def session_id(self) -> str: ...
    @property
    def number(self) -> int | None: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def idempotency_key(self) -> str | None: ...
    def held_with(self) -> Iterable[InLine]:
        """The turns its context holds, which cannot end before it does."""
        ...


@dataclass(eq=False, slots=True)
class _Waiter:
    turn: InLine
    loop: asyncio.AbstractEventLoop
    granted: Future[None] = field(default_factory=Future)


@dataclass(eq=False, slots=True)
class _Line:
    holder: InLine
    waiters: deque[_Waiter] = field(default_factory=deque)


_lock = threading.Lock()
_lines: dict[Place, _Line] = {}


def _busy(place: Place, holder: InLine, why: str) -> SessionBusy:
    return SessionBusy(
        f"session {place[1]!r} is busy: turn {holder.number or '(starting)'} holds it since "
        f"{holder.started_at:%H:%M:%S} UTC. {why}",
        turn=holder.number,
        since=holder.started_at,
        retry_after=1.0,
    )


def _waits_for(holder: InLine) -> Iterator[tuple[Place, InLine]]:
    """The places that calls inside the holder's turn wait for, with who holds those."""
    for place, line in _lines.items():
        if any(holder in set(waiter.turn.held_with()) for waiter in line.waiters):
            yield place, line.holder


def _check_no_circle(place: Place, turn: InLine, holder: InLine) -> None:
    mine = set(turn.held_with())
    if not mine:
        return
    seen: set[InLine] = set()
    ahead = [holder]
    while ahead:
        other = ahead.pop()
        if other in mine:
            raise _busy(
                place,
                holder,
                f"Waiting would never end: that turn waits for session {other.session_id!r}, "
                f"whose turn {other.number or '(starting)'} this call is part of. "
                "Take the sessions in one order, or do not nest them.",
            )
        if other not in seen:
            seen.add(other)
            ahead.extend(held_by for _, held_by in _waits_for(other))


def is_held(place: Place) -> bool:
    """Whether a turn of this process holds the session, so that another one would wait."""
    return place in _lines


async def enter(place: Place, turn: InLine, *, reject: bool, patience: float | None) -> None:
    """Wait until it is this turn's time; ``leave`` must follow.

    Raises:
        SessionBusy: at once with ``reject`` or when waiting would never end, else after
            ``patience`` seconds.
        TurnInProgress: a turn with the same idempotency key is in the line already.
    """
    with _lock:
        line = _lines.get(place)
        if line is None:
            _lines[place] = _Line(turn)
            return
        if turn.idempotency_key is not None:
            for other in (line.holder, *(waiter.turn for waiter in line.waiters)):
                if other.idempotency_key == turn.idempotency_key:
                    raise TurnInProgress(
                        f"a turn with this idempotency key is running on session {place[1]!r}: "
                        "wait for its answer, or ask again later",
                        turn=other.number,
                        since=other.started_at,
                        retry_after=1.0,
                    )
        if reject:
            raise _busy(place, line.holder, "Try again later, or use on_busy='wait'.")
        _check_no_circle(place, turn, line.holder)
        waiter = _Waiter(turn, asyncio.get_running_loop())
        line.waiters.append(waiter)
    try:
        async with asyncio.timeout(patience):
            await asyncio.shield(asyncio.wrap_future(waiter.granted))
    except BaseException as error:
        with _lock:
            line = _lines.get(place)  # gone, where our loop was closed and we were passed over
            if line is not None and waiter in line.waiters:
                line.waiters.remove(waiter)
        leave(place, turn)  # if it became ours while we were being cancelled: pass it on
        if isinstance(error, TimeoutError) and line is not None:
            raise _busy(place, line.holder, f"Gave up waiting after {patience:g} s.") from None
        raise


def leave(place: Place, turn: InLine) -> None:
    """Let the next one in; nothing happens if this turn does not hold the place."""
    with _lock:
        line = _lines.get(place)
        if line is None or line.holder is not turn:
            return
        _pass_on(place, line)


def dispossess(identity: Hashable, session_id: str) -> None:
    """The memory took the session away from its turn, which may never end: let the next one in."""
    place = (identity, session_id)
    with _lock:
        line = _lines.get(place)
        if line is not None:
            _pass_on(place, line)


def _pass_on(place: Place, line: _Line) -> None:
    while line.waiters:
        following = line.waiters.popleft()
        if not following.loop.is_closed():  # nobody would ever wake up there
            line.holder = following.turn
            following.granted.set_result(None)
            return
    del _lines[place]


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _lines.clear()  # the parent's turns


set_release_listener(dispossess)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
