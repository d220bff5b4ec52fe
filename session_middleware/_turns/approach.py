"""Coming to a crowded session, and leaving its crowd: one call in each step of the event loop.

Thousands of calls that start at once would otherwise all be made ready to wait in one step, and
thousands that are cancelled at once would all be ended in one, and nothing else could go on
meanwhile. How long a turn waits for its session, and whether it may, is the queue's business; a
call stays here for no longer than the calls before it take to come in, or to leave.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from session_middleware._turns import queue
from session_middleware._turns.queue import Place

_CROWD = 8
"""How many may wait for a session before others come one by one."""

_LOOK_UPS = 4
"""How many calls may ask the memory about their work before the next one comes."""


class _Door:
    """The calls of one event loop that come to one session.

    Attributes:
        looking_up: how many of those that came in ask the memory about their work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.looking_up = 0
        self._loop = loop
        self._line: deque[asyncio.Future[None]] = deque()
        self._opens = False

    @property
    def is_needed(self) -> bool:
        return bool(self._line or self.looking_up or self._opens)

    async def pass_through(self) -> None:
        ahead = self._loop.create_future()
        self._line.append(ahead)
        self.open()
        await ahead

    def open(self) -> None:
        """Let the next one in at the next step of the loop, and so on."""
        if not self._opens and self._line:
            self._opens = True
            self._loop.call_soon(self._admit)

    def _admit(self) -> None:
        self._opens = False
        if self.looking_up == _LOOK_UPS:
            return  # until one of them has its answer
        while self._line:
            ahead = self._line.popleft()
            if not ahead.done():  # else it was cancelled
                ahead.set_result(None)
                break
        self.open()


# A forked child has event loops of its own, and what the parent's keep here is never looked at.
_doors: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Place, _Door]] = WeakKeyDictionary()


async def approach(place: Place) -> None:
    """Return at once, or after those that came before, if a crowd waits for the session."""
    loop = asyncio.get_running_loop()
    doors = _doors.get(loop)
    if queue.waiting(place) < _CROWD and (doors is None or place not in doors):
        return
    door = _door(place, loop)
    try:
        await door.pass_through()
    finally:
        _close(place, loop, door)


async def depart(place: Place) -> None:
    """The same for a call that waited for the session, and is cancelled."""
    await approach(place)


@contextmanager
def looking_up(place: Place) -> Iterator[None]:
    """A block in which a call that came to the session asks the memory about its work."""
    loop = asyncio.get_running_loop()
    door = _door(place, loop)
    door.looking_up += 1
    try:
        yield
    finally:
        door.looking_up -= 1
        door.open()
        _close(place, loop, door)


def _door(place: Place, loop: asyncio.AbstractEventLoop) -> _Door:
    doors = _doors.setdefault(loop, {})
    if place not in doors:
        doors[place] = _Door(loop)
    return doors[place]


def _close(place: Place, loop: asyncio.AbstractEventLoop, door: _Door) -> None:
    if not door.is_needed and _doors[loop].get(place) is door:
        del _doors[loop][place]
