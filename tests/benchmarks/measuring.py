"""How anything is measured here: side by side in one process, in turn, medians of ratios.

Another process on the machine slows all contenders of a round alike, so what counts is the ratio
within a round, and of the rounds the median. No figure is a target by itself.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

OURS = "session_middleware"
LIST = "a list"
SDK = "SQLiteSession"
NOTHING = "no memory"

STRETCHES = 5


@dataclass(frozen=True)
class Target:
    """What the value of a row is to be, at least or at most."""

    bound: Literal["at least", "at most"]
    value: float
    unit: str = "times"

    def reached_by(self, value: float) -> bool:
        return value >= self.value if self.bound == "at least" else value <= self.value

    def __str__(self) -> str:
        return f"{self.bound} {self.value:g} {self.unit}".strip()


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: one sentence that says what is measured.
        unit: of the figures.
        figures: by contender, one figure for each round.
        values: what the target is about, one for each round.
        processor: by contender, the processor time of one run in ms, one for each round.
        drawn: the title in the chart, where more is better.
    """

    name: str
    what: str
    unit: str
    figures: Mapping[str, Sequence[float]]
    values: Sequence[float]
    target: Target
    notes: list[str] = field(default_factory=list)
    processor: Mapping[str, Sequence[float]] = field(default_factory=dict)
    drawn: str = ""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def reached(self) -> bool:
        return self.target.reached_by(self.value)


async def in_turns(
    contenders: Mapping[str, Callable[[int], Awaitable[float]]], rounds: int
) -> dict[str, list[float]]:
    """Measure every contender once a round, in an order that turns round each time.

    What is measured takes the number of the round and returns a figure.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            gc.collect()
            figures[name].append(await contenders[name](number))
    return figures


@dataclass
class Timed:
    """Work by contender, made once each in turn, with its wall and processor time in ms.

    Attributes:
        work: what is timed.
        after: what is done after it, off the clock.
    """

    work: Mapping[str, Callable[[], Awaitable[Any]]]
    after: Mapping[str, Callable[[], Awaitable[Any]]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, rounds: int, warm: int = 2) -> Timed:
        """Measure so many rounds, after some that do not count."""
        names = [*self.work]
        for number in range(-warm, rounds):
            for name in names if number % 2 == 0 else reversed(names):
                began, worked = perf_counter(), process_time()
                await self.work[name]()
                wall, processor = perf_counter() - began, process_time() - worked
                if number >= 0:
                    self.wall.setdefault(name, []).append(wall * 1000)
                    self.processor.setdefault(name, []).append(processor * 1000)
                if name in self.after:
                    await self.after[name]()
        return self


def gained(series: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """What each has more than no memory, by the medians of five stretches of rounds.

    Single runs differ by more than what is looked for.
    """
    least = series[NOTHING]
    size = max(1, len(least) // STRETCHES)
    starts = range(0, min(STRETCHES, len(least)) * size, size)
    return {
        name: [median(own[at : at + size]) - median(least[at : at + size]) for at in starts]
        for name, own in series.items()
        if name != NOTHING
    }


def ratios(
    figures: Mapping[str, Sequence[float]],
    over: str | None = None,
    best: Callable[[Sequence[float]], float] = max,
) -> list[float]:
    """Ours by that of one contender, or by the best of the others, round by round."""
    ours = figures[OURS]
    others = [
        series for name, series in figures.items() if (name == over if over else name != OURS)
    ]
    return [mine / best([series[at] for series in others]) for at, mine in enumerate(ours)]


def spread(series: Sequence[float]) -> tuple[float, float]:
    """The middle half of the series: its first and third quartile."""
    ordered = sorted(series)
    last = len(ordered) - 1
    return ordered[round(last * 0.25)], ordered[round(last * 0.75)]
