"""Figures of memories, observed whenever a metric reader collects. Sees no store.

A source is asked in the reader's thread and must answer at once. Sources are held weakly: one that
is gone is observed no more.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from session_middleware.telemetry import log, names

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

Source: TypeAlias = Callable[[], Mapping[str, float]]
"""Gives the newest figures by the names of ``FIGURES``; of those it does not know, none."""


class _Figure(NamedTuple):
    kind: Literal["gauge", "counter", "age"]
    unit: str
    description: str


FIGURES: Final[dict[str, _Figure]] = {
    "turn.parked": _Figure("gauge", "{turn}", "Turns that wait for an approval."),
    "turn.parked.age": _Figure("age", "s", "Since when the oldest of them waits."),
    "memory.queue.length": _Figure("gauge", "{write}", "Writes that wait to be made."),
    "memory.write.groups": _Figure("counter", "{group}", "Groups of writes that were committed."),
    "memory.write.members": _Figure("counter", "{write}", "Writes in these groups."),
    "memory.file.size": _Figure("gauge", "By", "Size of the memory's files."),
}
"""What a memory may tell of itself: the metric without its prefix. An age is given as the moment
in seconds since 1970 from which it counts."""


class Gauges:
    """The observable instruments of one meter."""

    def __init__(self, meter: Meter) -> None:
        self._sources: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        for name, figure in FIGURES.items():
            make = (
                meter.create_observable_counter
                if figure.kind == "counter"
                else meter.create_observable_gauge
            )
            make(
                names.OWN_PREFIX + name,
                [functools.partial(self._observe, name, figure)],
                figure.unit,
                figure.description,
            )

    def watch(self, source: Source, backend: str) -> None:
        """Observe this source from now on."""
        if source not in self._sources:
            self._sources[source] = backend

    def _observe(
        self, name: str, figure: _Figure, options: CallbackOptions
    ) -> Iterable[Observation]:
        """One observation per backend: the sum of its memories, or the greatest age."""
        observed: dict[str, float] = {}
        for source, backend in list(self._sources.items()):
            try:
                value = source().get(name)
            except Exception as error:
                log.swallowed(name, error)
                continue
            if value is None:
                continue
            if figure.kind == "age":
                observed[backend] = max(observed.get(backend, 0.0), time.time() - value)
            else:
                observed[backend] = observed.get(backend, 0) + value
        from opentelemetry.metrics import Observation

        return [Observation(value, {names.BACKEND: backend}) for backend, value in observed.items()]
