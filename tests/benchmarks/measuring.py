"""How anything is measured here: side by side in one process, in turns, medians of ratios.

Another process on the machine slows all contenders of a round alike, so what counts is the ratio
within a round, and of the rounds the median. No figure is a target by itself.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

OURS = "session_middleware"


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
        what: what was done.
        unit: of the figures.
        figures: by contender, one figure for each round.
        values: what the target is about, one for each round.
        drawn: whether more is better, so that the chart shows it.
    """

    name: str
    what: str
    unit: str
    figures: Mapping[str, Sequence[float]]
    values: Sequence[float]
    target: Target
    notes: list[str] = field(default_factory=list)
    drawn: bool = False

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


def ratios(
    figures: Mapping[str, Sequence[float]], best: Callable[[Sequence[float]], float] = max
) -> list[float]:
    """Ours by the best of the others, round by round."""
    ours = figures[OURS]
    others = [series for name, series in figures.items() if name != OURS]
    return [mine / best([series[at] for series in others]) for at, mine in enumerate(ours)]


def spread(series: Sequence[float]) -> tuple[float, float]:
    """The middle half of the series: its first and third quartile."""
    ordered = sorted(series)
    last = len(ordered) - 1
    return ordered[round(last * 0.25)], ordered[round(last * 0.75)]


def processor_times(spent: Mapping[str, Sequence[float]]) -> str:
    """What each took of the processor for one run, in ms: hardly changed by other processes."""
    times = ", ".join(f"{name} {median(series):.2f} ms" for name, series in spent.items())
    return f"processor time of a run: {times}"
