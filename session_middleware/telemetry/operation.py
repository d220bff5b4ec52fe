"""One operation on the memory: a span and a duration. It sees no store and no item."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.trace import Span, SpanKind

from session_middleware.telemetry import log, names, spans
from session_middleware.telemetry.metrics import Instruments
from session_middleware.telemetry.root import RootSpan


@dataclass(slots=True)
class Operation:
    """One operation on the memory while it runs; say how many records it touched.

    Attributes:
        count: how many records it returned, stored, changed or removed, or tried to; set it
            before the block ends.
    """

    count: int = 0


class MemoryOperation(AbstractContextManager[Operation]):
    """Times and traces the block it surrounds, and never raises of its own.

    Its span is current inside, so that spans of a database client are its children. It hangs under
    the span that is current, where that belongs to the turn: what a run stores is seen under the
    run.
    """

    __slots__ = (
        "_backend",
        "_instruments",
        "_kind",
        "_name",
        "_operation",
        "_root",
        "_silent",
        "_span",
        "_started",
        "_token",
    )

    def __init__(
        self,
        name: str,
        *,
        root: RootSpan,
        instruments: Instruments | None,
        backend: str,
        networked: bool,
    ) -> None:
        self._name = name
        self._root = root
        self._instruments = instruments
        self._backend = backend
        self._kind = SpanKind.CLIENT if networked else SpanKind.INTERNAL
        self._operation = Operation()
        self._span: Span | None = None
        self._token: Any = None
        self._silent = False
        self._started = 0.0

    def __enter__(self) -> Operation:
        self._started = perf_counter()
        try:
            self._silent = self._root.suppressed or spans.suppressed(get_current())
            if not self._silent:
                self._start_span()
        except Exception as error:
            log.swallowed(self._name, error)
        return self._operation

    def _start_span(self) -> None:
        self._span = self._root.child(
            self._name,
            self._kind,
            {
                names.OPERATION_NAME: self._name,
                names.MEMORY_STORE_ID: self._backend,
                names.BACKEND: self._backend,
            },
        )
        if self._span is not None:
            self._token = attach(trace.set_span_in_context(self._span, self._root.context()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        duration = perf_counter() - self._started
        if self._token is not None and self._root.is_in_force():
            detach(self._token)
        if self._silent:
            return
        for step in (self._measure, self._end_span):
            try:
                step(duration, error)
            except Exception as fault:
                log.swallowed(self._name, fault)

    def _measure(self, duration: float, error: BaseException | None) -> None:
        if self._instruments is None:
            return
        attributes = {names.OPERATION_NAME: self._name, names.BACKEND: self._backend}
        if isinstance(error, Exception):
            attributes[names.ERROR_TYPE] = spans.error_type(error)
        self._instruments.operation_duration.record(duration, attributes)

    def _end_span(self, duration: float, error: BaseException | None) -> None:
        span = self._span
        if span is None:
            return
        try:
            if error is None or self._operation.count:
                count = self._operation.count
                spans.set_attributes(span, {names.MEMORY_RECORD_COUNT: count})
            if isinstance(error, Exception):
                self._root.fail(span, error)
            elif error is not None:  # a cancellation, which is no failure
                spans.set_attributes(span, {names.OUTCOME: "cancelled"})
        finally:
            span.end()
