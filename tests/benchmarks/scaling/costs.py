"""What a turn costs: round trips, bytes on the wire and in the store, processor time."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from tests.support.proxy import proxy_to

from .subjects import WINDOW, Subject, Turn, name_of

_COUNTED = 200
AT_ONCE = 64


@dataclass(frozen=True)
class Wire:
    """Of one turn: round trips, bytes to the server and from it, bytes it adds to the store."""

    trips: float
    sent: float
    received: float
    stored: float = 0.0


async def on_the_wire(subject: Subject) -> tuple[Wire, Wire]:
    """A session's first turn, and one that reads a whole window of history."""
    with proxy_to(subject.port) as proxy:
        async with subject.memory(port=proxy.port, **_ONE[subject.name]) as memory:

            async def turns(name: str, count: int, each: int) -> Wire:
                began = (proxy.requests, proxy.sent, proxy.received, await subject.stored())
                for number in range(count):
                    for _ in range(each):
                        turn = Turn(memory, f"{name} {number}")
                        await turn.begin()
                        await turn.end()
                ends = (proxy.requests, proxy.sent, proxy.received, await subject.stored())
                made = count * each
                return Wire(*((end - start) / made for start, end in zip(began, ends, strict=True)))

            await turns("warm", 3, WINDOW)
            return await turns("first", _COUNTED, 1), await turns("warm", 1, _COUNTED)


_ONE = {"PostgreSQL": {"max_size": 1}, "Valkey": {"max_connections": 1}}


@dataclass(frozen=True)
class Pace:
    """Turns a second with many sessions at once, and seconds of processor time for each."""

    rate: float
    client: float
    server: float


async def pace(subject: Subject, sessions: int, seconds: float = 10.0) -> Pace:
    """Turns without a pause on sessions at random, of so many that were filled in."""
    done = 0
    async with subject.memory() as memory:

        async def turns(lane: int, until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                number = random.randrange(sessions // AT_ONCE) * AT_ONCE + lane
                turn = Turn(memory, name_of(number))
                await turn.begin()
                await turn.end()
                done += 1

        async def all_lanes(for_seconds: float) -> None:
            until = time.perf_counter() + for_seconds
            await asyncio.gather(*(turns(lane, until) for lane in range(AT_ONCE)))

        await all_lanes(seconds / 5)
        done = 0
        began, own, theirs = time.perf_counter(), time.process_time(), subject.processor()
        await all_lanes(seconds)
        passed = time.perf_counter() - began
        used = time.process_time() - own, subject.processor() - theirs
    return Pace(done / passed, used[0] / done, used[1] / done)
