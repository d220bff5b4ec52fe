"""One turn as it is told to the outside: a root span, its children, metrics and log events.

The core says what happened; nothing here decides, stores, or raises. A failure of a provider or a
logger is swallowed once, at the seam, and logged at debug. Where the OpenTelemetry context says
``suppress_instrumentation`` when the turn starts, nothing is emitted for it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from opentelemetry.context import get_current
from opentelemetry.util.types import AttributeValue

from session_middleware.telemetry import content, log, names, spans
from session_middleware.telemetry.metrics import Instruments, instruments
from session_middleware.telemetry.operation import MemoryOperation, Operation
from session_middleware.telemetry.root import RootSpan
from session_middleware.telemetry.settings import Telemetry, emitted_id

Method = TypeVar("Method", bound=Callable[..., None])

_FAILED = frozenset({"failed", "abandoned"})


def _never_raises(method: Method) -> Method:
    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            log.swallowed(method.__name__, error)

    return guarded  # type: ignore[return-value]  # the same signature, by construction


@dataclass(slots=True)
class TurnTelemetry:
    """Everything that is emitted for one turn. The core calls it; it never raises.

    Attributes:
        name: what the turn is of: a function's qualified name, or a workflow's name.
        session_id: the id as the user gave it.
        backend: the kind of memory, a word of low cardinality.
        networked: the memory is reached over a network, so its operations are client calls.
        emitted_id: the id as it may be shown, in an SDK trace's group_id too; None where the
            user's mapper gave none.
        otel_trace_id: the root span's trace id (hex) from ``start()`` on, where there is a trace.
    """

    settings: Telemetry
    name: str
    session_id: str
    backend: str
    networked: bool = False
    streaming: bool = False
    otel_trace_id: str | None = field(default=None, init=False)
    emitted_id: str | None = field(init=False)
    _root: RootSpan = field(init=False, repr=False)
    _instruments: Instruments | None = field(default=None, init=False, repr=False)
    _counted: bool = field(default=False, init=False, repr=False)
    _started: float | None = field(default=None, init=False, repr=False)
    _ended: bool = field(default=False, init=False, repr=False)
    _ending: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _turn: int | None = field(default=None, init=False, repr=False)
    _sdk_trace_id: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.emitted_id = emitted_id(self.settings, self.session_id)
        self._root = RootSpan(self.settings, self.session_id, self.emitted_id)

    # --- its beginning -----------------------------------------------------------------------

    def start(self) -> None:
        """The call has begun; the root span starts, under the OpenTelemetry span current here."""
        if self._started is not None:
            return
        self._started = perf_counter()
        self._root.suppressed = spans.suppressed(get_current())
        if not self._root.suppressed:
            self._start_span()
            self._start_measuring()

    @_never_raises
    def _start_span(self) -> None:
        self._root.start(
            f"{names.TURN_SPAN} {self.name}",
            {
                names.OPENINFERENCE_SPAN_KIND: names.OPENINFERENCE_CHAIN,
                names.BACKEND: self.backend,
                names.STREAMING: self.streaming,
            },
        )
        self.otel_trace_id = self._root.trace_id

    @_never_raises
    def _start_measuring(self) -> None:
        self._instruments = instruments(self.settings.meter_provider)
        if self._instruments is not None:
            self._instruments.turn_active.add(1, self._labels())
            self._counted = True

    def _labels(self) -> dict[str, str]:
        return {names.BACKEND: self.backend}

    @property
    def recording(self) -> bool:
        """Whether the root span records, so that a digest of the history is worth its cost."""
        try:
            return self._root.recording
        except Exception as error:
            log.swallowed("recording", error)
            return False

    def attached(self) -> AbstractContextManager[None]:
        """Make the root span current in this context; never across a yield to a consumer.

        Inside the turn's own context, where a span of the user's may be current by now, it
        changes nothing.
        """
        return self._root.attached()

    # --- what happens in it ------------------------------------------------------------------

    def operation(self, name: str) -> AbstractContextManager[Operation]:
        """Time and trace one memory operation.

        ``name`` is search_memory (load), create_memory (append), update_memory (replace) or
        delete_memory (discard, clear). An error fails its span, and is recorded there; whether it
        is worth a log event is for the core to say.
        """
        return MemoryOperation(
            name,
            root=self._root,
            instruments=self._instruments,
            backend=self.backend,
            networked=self.networked,
        )

    @_never_raises
    def taken(self, turn: int, waited: float) -> None:
        """The session was taken after ``waited`` seconds. Logs turn_started."""
        self._turn = turn
        self.event(names.TURN_STARTED, name=self.name, waited=waited)
        if self._instruments is not None:
            self._instruments.lock_wait.record(waited, self._labels())
        self._root.set({names.TURN: turn, names.LOCK_WAIT_SECONDS: waited})

    @_never_raises
    def contended(self, turn: int | None) -> None:
        """Another turn (that number, where known) holds the session, and this one waits or fails.

        Logs lock_contended.
        """
        self.event(names.LOCK_CONTENDED, holder=turn)
        if self._instruments is not None:
            self._instruments.conflicts.add(1, self._labels())
        self._root.add_event(names.LOCK_CONTENDED, {names.HOLDER: turn})

    @_never_raises
    def history(self, items: int, size: int | None, digest: str | None) -> None:
        """A history of ``items`` items, ``size`` bytes, was handed to the SDK.

        Logs history_loaded.
        """
        self.event(names.HISTORY_LOADED, items=items, size=size)
        if self._instruments is not None:
            self._instruments.history_items.record(items, self._labels())
        self._root.set(
            {
                names.HISTORY_ITEM_COUNT: items,
                names.HISTORY_SIZE_BYTES: size,
                names.HISTORY_DIGEST: digest,
            }
        )

    @_never_raises
    def trimmed(self, items: int | None) -> None:
        """A window left this many items out. Logs history_trimmed; none are not worth a word.

        None says that older ones were left unread, so that nobody knows how many there are.
        """
        if items is not None and items <= 0:
            return
        self.event(names.HISTORY_TRIMMED, items=items)
        if self._instruments is not None:
            self._instruments.trims.add(1, self._labels())
        self._root.set({names.HISTORY_TRIMMED_COUNT: items})

    @_never_raises
    def repaired(self, receipt: object, *, corrupt: int = 0) -> None:
        """The history was repaired on its way to the model. Logs history_repaired.

        A falsy receipt says that nothing was mended; ``corrupt`` entries could not be read, and
        were left out.
        """
        if not receipt and not corrupt:
            return
        unread = [f"corrupt_entry: {corrupt}"] if corrupt else []
        repairs = ", ".join([*([str(receipt)] if receipt else []), *unread])
        self.event(names.HISTORY_REPAIRED, repairs=repairs)
        if self._instruments is not None:
            self._instruments.repairs.add(1, self._labels())
        self._root.set({names.HISTORY_REPAIRS_DONE: repairs})

    def trace_metadata(self) -> dict[str, str]:
        """What the SDK trace's metadata gets: session_id, turn, and the OpenTelemetry trace id.

        The id is ``emitted_id``; each is left out where there is none, as the turn's number is
        while a streamed run has still to take its session.
        """
        metadata = {
            "session_id": self.emitted_id,
            "turn": None if self._turn is None else str(self._turn),
            "otel_trace_id": self.otel_trace_id,
        }
        return {key: value for key, value in metadata.items() if value is not None}

    @_never_raises
    def sdk_trace(self, trace_id: str, group_id: str | None) -> None:
        """A run of this turn belongs to that SDK trace.

        The root span's attribute names the first; each further one is an event on it.
        """
        # With a mapper, a group id of the user's may well hold what the mapper hides.
        shown = group_id if self.settings.session_id is None else None
        attributes = {names.SDK_TRACE_ID: trace_id, names.SDK_GROUP_ID: shown}
        if self._sdk_trace_id is None:
            self._sdk_trace_id = trace_id
            self._root.set(attributes)
        elif trace_id != self._sdk_trace_id:
            self._root.add_event(names.SDK_TRACE_EVENT, attributes)

    @_never_raises
    def event(self, name: str, /, **fields: Any) -> None:
        """Log one of the package's events with the session's and the turn's keys.

        For those that no other method logs: items_saved, load_failed, save_failed,
        no_run_intercepted, outer_trace_group_mismatch. Fields hold neither content nor an id of
        the session.
        """
        if self._root.suppressed or not log.wanted(name):
            return
        if self.emitted_id is not None:
            fields["session_id"] = self.emitted_id
        if self._turn is not None:
            fields["turn"] = self._turn
        # Attached, so that the application's processors find the trace the event belongs to.
        with self._root.attached():
            log.emit(name, **fields)

    @_never_raises
    def reported(self, kind: str, /, **fields: Any) -> None:
        """SessionRunHooks saw a model_call, tool_call or handoff of the run.

        It becomes an event on the root span; fields are names and numbers, never content.
        """
        self._root.add_event(kind, {names.OWN_PREFIX + key: v for key, v in fields.items()})

    # --- its end -----------------------------------------------------------------------------

    def end(
        self,
        outcome: str,
        error: BaseException | None = None,
        *,
        new_items: int = 0,
        usage: dict[str, int] | None = None,
        input_text: Callable[[], str] | None = None,
        output_text: Callable[[], str] | None = None,
    ) -> None:
        """The turn is over; a second call does nothing. Logs turn_completed.

        ``outcome`` is the turn's state. Only failed and abandoned fail the span: a cancellation
        is an outcome, and an error beside any other outcome was handled. The two callables give
        content; they are called on opt-in only.
        """
        with self._ending:
            if self._started is None or self._ended:
                return
            self._ended = True
        if self._root.suppressed:
            return
        duration = perf_counter() - self._started
        failure = {names.ERROR_TYPE: spans.error_type(error)} if outcome in _FAILED else {}
        self._log_end(outcome, failure, duration, new_items)
        self._measure_end(outcome, failure, duration)
        self._capture(input_text, output_text)
        self._end_span(outcome, error, new_items, usage or {})

    @_never_raises
    def _log_end(
        self, outcome: str, failure: dict[str, str], duration: float, new_items: int
    ) -> None:
        fields: dict[str, Any] = {"outcome": outcome, "duration": duration, "new_items": new_items}
        if failure:
            fields["error_type"] = failure[names.ERROR_TYPE]
        self.event(names.TURN_COMPLETED, **fields)

    @_never_raises
    def _measure_end(self, outcome: str, failure: dict[str, str], duration: float) -> None:
        if self._instruments is None:
            return
        if self._counted:
            self._instruments.turn_active.add(-1, self._labels())
        attributes = {**self._labels(), names.OUTCOME: outcome, **failure}
        self._instruments.turn_duration.record(duration, attributes)

    @_never_raises
    def _capture(
        self, input_text: Callable[[], str] | None, output_text: Callable[[], str] | None
    ) -> None:
        if input_text is None and output_text is None:
            return
        capture = content.requested()
        to_span = capture.span and self.recording
        if not (to_span or capture.event):
            return
        texts = (input_text() if input_text else None, output_text() if output_text else None)
        if to_span:
            self._root.set(content.span_attributes(*texts))
        if capture.event:
            messages = content.message_attributes(*texts)
            content.emit_event(self._root.context(), {**self._root.identity, **messages})

    @_never_raises
    def _end_span(
        self, outcome: str, error: BaseException | None, new_items: int, usage: dict[str, int]
    ) -> None:
        attributes: dict[str, AttributeValue | None] = {
            names.OUTCOME: outcome,
            names.NEW_ITEM_COUNT: new_items,
            **{names.USAGE_PREFIX + key: value for key, value in usage.items()},
        }
        self._root.end(attributes, failed=outcome in _FAILED, error=error)
