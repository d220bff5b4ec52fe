"""The metrics of one turn. It measures nothing until it is started, and it never raises."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from session_middleware.telemetry import log, names
from session_middleware.telemetry.gauges import Source
from session_middleware.telemetry.metrics import Instruments, instruments

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

P = ParamSpec("P")


def _measures(
    method: Callable[Concatenate[TurnMetrics, Instruments, P], None],
) -> Callable[Concatenate[TurnMetrics, P], None]:
    """A method that does nothing where nobody measures, and never raises."""
    guarded = log.never_raises(method)

    @functools.wraps(method)
    def measure(metrics: TurnMetrics, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if metrics._instruments is not None:
            guarded(metrics, metrics._instruments, *args, **kwargs)

    return measure


class TurnMetrics:
    """What is counted and measured of one turn, by the kind of its memory.

    Args:
        backend: the kind of memory, a word of low cardinality.

    Attributes:
        state: what the turn is counted as: waiting, running, or None for neither.
    """

    __slots__ = ("_instruments", "_labels", "state")

    def __init__(self, backend: str) -> None:
        self._labels = {names.BACKEND: backend}
        self._instruments: Instruments | None = None
        self.state: str | None = None

    @property
    def measured(self) -> bool:
        """Whether somebody measures."""
        return self._instruments is not None

    @log.never_raises
    def start(
        self, provider: MeterProvider | None, figures: Callable[[], Source | None] | None
    ) -> None:
        """Measure with this provider, or the global one; ``figures`` gives the memory's own."""
        self._instruments = instruments(provider)
        source = None if self._instruments is None or figures is None else figures()
        if self._instruments is not None and source is not None:
            self._instruments.gauges.watch(source, self._labels[names.BACKEND])

    @log.never_raises
    def count_as(self, state: str | None) -> None:
        """Count the turn as waiting or running from here on; None: as neither."""
        before, self.state = self.state, state
        if self._instruments is None or before == state:
            return
        for counted, change in ((before, -1), (state, 1)):
            if counted is not None:
                labels = {**self._labels, names.STATE: counted}
                self._instruments.turn_active.add(change, labels)

    @_measures
    def contended(self, to: Instruments) -> None:
        """Another turn holds the session."""
        to.conflicts.add(1, self._labels)

    @_measures
    def waited(self, to: Instruments, seconds: float, outcome: str) -> None:
        """The wait for other turns of the session is over."""
        labels = {**self._labels, names.OUTCOME: outcome}
        to.lock_wait.record(seconds, labels)

    @_measures
    def took_over(self, to: Instruments) -> None:
        """The session was acquired from a turn whose lease had expired."""
        to.takeovers.add(1, self._labels)

    @_measures
    def operation(
        self,
        to: Instruments,
        name: str,
        seconds: float,
        error_type: str | None,
        method: str | None = None,
    ) -> None:
        """An operation on the memory is over; ``error_type`` of one that failed.

        ``method`` is that of the memory, where it was called by itself.
        """
        labels = {names.OPERATION_NAME: name, **self._labels}
        if method is not None:
            labels[names.METHOD] = method
        if error_type is not None:
            labels[names.ERROR_TYPE] = error_type
        to.operation_duration.record(seconds, labels)

    @_measures
    def history(self, to: Instruments, items: int) -> None:
        """A history of so many items was handed to the SDK."""
        to.history_items.record(items, self._labels)

    @_measures
    def trimmed(self, to: Instruments) -> None:
        """A window left something out."""
        to.trims.add(1, self._labels)

    @_measures
    def repaired(self, to: Instruments, counts: Mapping[Any, int]) -> None:
        """So many faults of each kind were mended."""
        for kind, count in counts.items():
            to.repairs.add(count, {**self._labels, names.REPAIR_KIND: kind})

    @_measures
    def unknown(self, to: Instruments, calls: int) -> None:
        """So many tool calls of an earlier attempt began, and no end is known."""
        to.unknown_calls.add(calls, self._labels)

    @log.never_raises
    def ended(self, outcome: str, failure: Mapping[str, str], seconds: float) -> None:
        """The turn is over."""
        self.count_as(None)
        if self._instruments is not None:
            labels = {**self._labels, names.OUTCOME: outcome, **failure}
            self._instruments.turn_duration.record(seconds, labels)
