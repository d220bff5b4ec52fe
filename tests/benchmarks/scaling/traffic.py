"""A day's traffic, compressed: drawn, made on a real server, and put through a model of queues."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from .subjects import Subject, Turn, name_of

HOT = (0.03, 0.02, 0.01, 0.01, 0.01)
"""The share of all turns that each of the hot sessions has."""
MODEL_SECONDS = 0.05
"""Of a turn's model calls, on average: compressed like the day."""
_BURST = 3.0
"""So many times the usual traffic comes in a burst; a twentieth of the day is one."""


@dataclass(frozen=True)
class Planned:
    """One turn of the day: when it is asked for, on which session, how long its model takes."""

    at: float
    session: int
    model: float


def draw(seconds: float, turns: int, sessions: int, seed: int = 7) -> list[Planned]:
    """A day of so many seconds: quiet nights, bursts, a few hot sessions, and a long tail.

    A conversation goes on for four turns on average. Which session it is follows a power law: a
    tenth of the sessions has a third of the conversations.
    """
    chance = random.Random(seed)
    day: list[Planned] = []
    bursts = [chance.uniform(0, seconds) for _ in range(10)]

    def rate(at: float) -> float:  # 1 on average, but for the bursts
        burst = any(begin <= at < begin + seconds / 200 for begin in bursts)
        return (1 - 0.8 * math.cos(2 * math.pi * at / seconds)) * (_BURST if burst else 1)

    highest = 1.8 * _BURST
    while len(day) < turns:
        at = chance.uniform(0, seconds)
        if chance.uniform(0, highest) > rate(at):
            continue
        spot = chance.random()
        hot = next((n for n, share in enumerate(HOT) if (spot := spot - share) < 0), None)
        session = int(sessions * chance.random() ** 2) if hot is None else hot
        for _ in range(1 if hot is not None else 1 + int(chance.expovariate(1 / 3.5))):
            day.append(Planned(at, session, chance.expovariate(1 / MODEL_SECONDS)))
            at += chance.expovariate(100 / seconds)
    return sorted((turn for turn in day if turn.at < seconds), key=lambda turn: turn.at)


@dataclass
class Latencies:
    """Seconds: of each of the two round trips, of each wait for a session, of each whole turn."""

    operations: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)


async def live(subject: Subject, day: Sequence[Planned]) -> Latencies:
    """The day on the server: each turn begins when it is asked for, whatever others do.

    Turns of one session come one after the other, first come, first served, as in a process.
    """
    measured = Latencies()
    free: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def timed(work: Any) -> None:
        began = time.perf_counter()
        await work
        measured.operations.append(time.perf_counter() - began)

    async def one(memory: Any, planned: Planned) -> None:
        asked = time.perf_counter()
        async with free[planned.session]:
            measured.waits.append(time.perf_counter() - asked)
            turn = Turn(memory, name_of(planned.session))
            await timed(turn.begin())
            await asyncio.sleep(planned.model)
            await timed(turn.end())
        measured.turns.append(time.perf_counter() - asked - planned.model)

    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(subject.memory())
        group = await stack.enter_async_context(asyncio.TaskGroup())
        began = time.perf_counter()
        for planned in day:
            await asyncio.sleep(max(0.0, began + planned.at - time.perf_counter()))
            group.create_task(one(memory, planned))
    return measured


async def alone(subject: Subject, count: int = 300) -> list[float]:
    """Seconds of round trips that nothing else of ours is beside: what no queue explains."""
    taken: list[float] = []
    async with subject.memory() as memory:
        for number in range(count + 20):
            turn = Turn(memory, name_of(number))
            for work in (turn.begin, turn.end):
                began = time.perf_counter()
                await work()
                if number >= 20:
                    taken.append(time.perf_counter() - began)
    return taken


def predicted(day: Sequence[Planned], unhindered: Sequence[float], rate: float) -> Latencies:
    """The day in a model: one queue for the machine, and one for each session.

    Args:
        unhindered: seconds of single round trips, from which those of the model are drawn.
        rate: turns a second that the machine can make; a round trip keeps it for half of 1/rate
            on average, exponentially distributed (M/M/1, fed with the day's own arrivals).
    """
    chance = random.Random(11)
    model = Latencies()
    machine_is_free = 0.0
    line: dict[int, deque[Planned]] = defaultdict(deque)  # the first of each has the session
    events = [(turn.at, number, "asks", turn) for number, turn in enumerate(day)]
    numbers = itertools.count(len(day))

    def operation(at: float) -> float:
        nonlocal machine_is_free
        begins = max(at, machine_is_free)
        machine_is_free = begins + chance.expovariate(2 * rate)
        model.operations.append(begins - at + chance.choice(unhindered))
        return at + model.operations[-1]

    def begin(at: float, turn: Planned) -> None:
        model.waits.append(at - turn.at)
        answered = operation(at) + turn.model
        heapq.heappush(events, (answered, next(numbers), "answers", turn))

    while events:
        at, _, what, turn = heapq.heappop(events)
        if what == "asks":
            line[turn.session].append(turn)
            if len(line[turn.session]) == 1:
                begin(at, turn)
        elif what == "answers":
            heapq.heappush(events, (operation(at), next(numbers), "ends", turn))
        else:
            model.turns.append(at - turn.at - turn.model)
            line[turn.session].popleft()
            if line[turn.session]:
                begin(at, line[turn.session][0])
    return model
