"""One operation on the memory: a span and a duration. It sees no store and no item.

A refusal is an answer of the memory and no failure of it: its span has an outcome, not an error.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter, time_ns
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.trace import Span, SpanKind

from session_middleware.errors import DuplicateTurn, SessionBusy, TurnInProgress
from session_middleware.telemetry import log, names, spans
from session_middleware.telemetry.root import Attachment, RootSpan
from session_middleware.telemetry.turn_metrics import TurnMetrics

REFUSALS: dict[type[Any], str] = {
    DuplicateTurn: "duplicate",
    TurnInProgress: "in_progress",
    SessionBusy: "busy",
}
"""The outcome of each error with which a memory says that another turn comes first."""


@dataclass(eq=False, slots=True)
class Operation:
    """One operation on the memory while it runs; say how many records it touched.

    Attributes:
        count: how many records it returned, stored, changed or removed, or tried to; set it
            before the block ends. None: it tells no number.
        by_hand: the memory was not asked: an earlier operation had brought the records along.
            Its duration says nothing of the memory, and is not measured.
        waited: seconds of it that were spent behind other turns of the session, which its
            duration leaves out.
    """

    count: int | None = 0
    by_hand: bool = False
    waited: float = 0.0


class MemoryOperation(AbstractContextManager[Operation]):
    """Times and traces the block it surrounds, and never raises of its own.

    Its span is current inside, so that spans of a database client are its children. It hangs under
    the span that is current, where that belongs to the turn: the spans of a run have below them
    what it stores.

    Args:
        again: the operation was refused before, and may be refused again. Refused, it leaves no
            span, as one for each question of a long wait would hide the others; its span is made
            at the end, and so is never current.
        method: of the memory, where it is called by itself and for no run.
    """

    __slots__ = (
        "_again",
        "_attachment",
        "_backend",
        "_began",
        "_kind",
        "_method",
        "_metrics",
        "_name",
        "_operation",
        "_root",
        "_silent",
        "_span",
        "_started",
    )

    def __init__(
        self,
        name: str,
        *,
        root: RootSpan,
        metrics: TurnMetrics,
        backend: str,
        networked: bool,
        again: bool = False,
        method: str | None = None,
    ) -> None:
        self._name = name
        self._method = method
        self._root = root
        self._metrics = metrics
        self._backend = backend
        self._kind = SpanKind.CLIENT if networked else SpanKind.INTERNAL
        self._again = again
        self._operation = Operation()
        self._span: Span | None = None
        self._attachment: Attachment | None = None
        self._silent = False
        self._started = 0.0
        self._began = 0

    def __enter__(self) -> Operation:
        self._started = perf_counter()
        try:
            heard = self._root.traced or self._metrics.measured
            self._silent = not heard or self._root.suppressed or spans.suppressed(get_current())
            if self._again:
                self._began = time_ns()
            elif not self._silent:
                self._start_span()
                if self._span is not None:
                    context = trace.set_span_in_context(self._span, self._root.context())
                    self._attachment = self._root.attach(context)
        except Exception as error:
            log.swallowed(self._name, error)
        return self._operation

    def _start_span(self, start_time: int | None = None) -> None:
        if not self._root.traced:
            return
        retrieves = self._name == names.SEARCH_MEMORY
        self._span = self._root.child(
            self._name,
            self._kind,
            {
                names.OPERATION_NAME: self._name,
                names.MEMORY_STORE_ID: self._backend,
                names.BACKEND: self._backend,
                **({} if self._method is None else {names.METHOD: self._method}),
                names.OPENINFERENCE_SPAN_KIND: (
                    names.OPENINFERENCE_RETRIEVER if retrieves else names.OPENINFERENCE_CHAIN
                ),
            },
            start_time,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        duration = perf_counter() - self._started
        if self._attachment is not None:
            self._root.detach(self._attachment)
        if self._silent:
            return
        for step in (self._measure, self._end_span):
            try:
                step(duration, error)
            except Exception as fault:
                log.swallowed(self._name, fault)

    def _measure(self, duration: float, error: BaseException | None) -> None:
        if self._operation.by_hand:
            return
        failed = isinstance(error, Exception) and type(error) not in REFUSALS
        kind = spans.error_type(error) if failed else None
        self._metrics.operation(self._name, duration - self._operation.waited, kind, self._method)

    def _end_span(self, duration: float, error: BaseException | None) -> None:
        refusal = None if error is None else REFUSALS.get(type(error))
        if self._again and refusal is None:
            self._start_span(self._began)
        span = self._span
        if span is None:
            return
        try:
            if error is None or self._operation.count:
                count = self._operation.count
                spans.set_attributes(span, {names.MEMORY_RECORD_COUNT: count})
            if self._operation.waited:
                spans.set_attributes(span, {names.LOCK_WAIT_SECONDS: self._operation.waited})
            if refusal is not None:
                turn = getattr(error, "turn", None)
                spans.set_attributes(span, {names.OUTCOME: refusal, names.OTHER_TURN: turn})
            elif isinstance(error, Exception):
                self._root.fail(span, error)
            elif error is not None:  # a cancellation, which is no failure
                spans.set_attributes(span, {names.OUTCOME: "cancelled"})
        finally:
            span.end()
