"""The time for which a turn waits for other turns of its session: a span and a duration.

Storage is no part of it: what asks the memory for the session is an operation.
"""

from __future__ import annotations

from time import perf_counter, time_ns
from types import TracebackType

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from session_middleware.telemetry import names
from session_middleware.telemetry.root import RootSpan
from session_middleware.telemetry.turn_metrics import TurnMetrics


class Wait:
    """The wait of one turn, in one ``with`` block or several, whose times add up.

    Attributes:
        seconds: how long it took so far.
        contended: another turn held the session.
        waits: this one waits for it; else there is nothing to wait for.
        holder: that turn's number, where it is known.
    """

    __slots__ = (
        "_backend",
        "_began",
        "_entered",
        "_metrics",
        "_root",
        "contended",
        "holder",
        "seconds",
        "waits",
    )

    def __init__(self, root: RootSpan, metrics: TurnMetrics, backend: str) -> None:
        self._root = root
        self._metrics = metrics
        self._backend = backend
        self._began: int | None = None
        self._entered = 0.0
        self.seconds = 0.0
        self.contended = False
        self.waits = False
        self.holder: int | None = None

    def __enter__(self) -> None:
        self._entered = perf_counter()
        if self._began is None:
            self._began = time_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds += perf_counter() - self._entered

    def end(self, outcome: str) -> None:
        """If there was one, it is over: measured, with a span if another turn was waited for.

        A second call does nothing.
        """
        began, self._began = self._began, None
        if began is None:
            return
        self._metrics.waited(self.seconds, outcome)
        if not self.waits:
            return
        attributes: dict[str, AttributeValue] = {
            names.BACKEND: self._backend,
            names.OPENINFERENCE_SPAN_KIND: names.OPENINFERENCE_CHAIN,
            names.LOCK_WAIT_SECONDS: self.seconds,
            names.OUTCOME: outcome,
        }
        if self.holder is not None:
            attributes[names.OTHER_TURN] = self.holder
        span = self._root.child(names.WAIT_SPAN, SpanKind.INTERNAL, attributes, began)
        if span is not None:
            span.end()
