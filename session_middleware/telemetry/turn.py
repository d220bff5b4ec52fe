"""One turn as it is told to the outside: a root span, its children, metrics and log events.

The core says what happened; nothing here decides, stores, or raises. A failure of a provider or a
logger is swallowed once, at the seam, and logged at debug. Where the OpenTelemetry context says
``suppress_instrumentation`` when the turn starts, nothing is emitted for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from opentelemetry.context import get_current
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from session_middleware.telemetry import content, log, names, spans, usage
from session_middleware.telemetry.content import Said
from session_middleware.telemetry.gauges import Source
from session_middleware.telemetry.operation import REFUSALS, MemoryOperation, Operation
from session_middleware.telemetry.root import RootSpan
from session_middleware.telemetry.settings import Telemetry, emitted_id
from session_middleware.telemetry.turn_metrics import TurnMetrics
from session_middleware.telemetry.wait import Wait

_FAILED = frozenset({"failed", "abandoned"})
_REFUSED = frozenset(REFUSALS.values())


@dataclass(eq=False, slots=True)
class TurnTelemetry:
    """Everything that is emitted for one turn. The core calls it; it never raises.

    Attributes:
        name: what the turn is of: a function's qualified name, or a workflow's name.
        session_id: the id as the user gave it.
        backend: the kind of memory, a word of low cardinality.
        networked: the memory is reached over a network, so its operations are client calls.
        emitted_id: the id as it may be shown, in an SDK trace's group_id too; None where the
            user's mapper gave none.
        figures: gives what tells the figures of the memory that a dashboard shows, if it has any.
        redacts: what is stored is redacted; then the texts of foreign errors are never shown.
        otel_trace_id: the root span's trace id (hex) from ``start()`` on, where the trace is
            sampled, so that the id leads somewhere.
    """

    settings: Telemetry
    name: str
    session_id: str
    backend: str
    networked: bool = False
    streaming: bool = False
    redacts: bool = False
    figures: Callable[[], Source | None] | None = field(default=None, repr=False)
    otel_trace_id: str | None = field(default=None, init=False)
    emitted_id: str | None = field(init=False)
    _root: RootSpan = field(init=False, repr=False)
    _metrics: TurnMetrics = field(init=False, repr=False)
    _wait: Wait = field(init=False, repr=False)
    _started: float | None = field(default=None, init=False, repr=False)
    _said_once: set[str] = field(default_factory=set, init=False, repr=False)
    _ended: bool = field(default=False, init=False, repr=False)
    _ending: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _turn: int | None = field(default=None, init=False, repr=False)
    _sdk_trace_id: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.emitted_id = emitted_id(self.settings, self.session_id)
        self._root = RootSpan(
            self.settings, self.session_id, self.emitted_id, withholds=self.redacts
        )
        self._metrics = TurnMetrics(self.backend)
        self._wait = Wait(self._root, self._metrics, self.backend)

    # --- its beginning -----------------------------------------------------------------------

    def start(self) -> None:
        """The call has begun; the root span starts, under the OpenTelemetry span current here."""
        if self._started is not None:
            return
        self._started = perf_counter()
        self._root.suppressed = spans.suppressed(get_current())
        if not self._root.suppressed:
            self._start_span()
            self._metrics.start(self.settings.meter_provider, self.figures)
            self._metrics.count_as("running")

    @log.never_raises
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

    @property
    def recording(self) -> bool:
        """Whether the root span records, so that a digest of the history is worth its cost."""
        try:
            return self._root.recording
        except Exception as error:
            log.swallowed("recording", error)
            return False

    @property
    def traced(self) -> bool:
        """Whether a provider made the root span, so that events and spans below it are of use."""
        return self._root.traced

    def attached(self) -> AbstractContextManager[None]:
        """Make the root span current in this context; never across a yield to a consumer.

        Inside the turn's own context, where a span of the user's may be current by now, it
        changes nothing.
        """
        return self._root.attached()

    # --- what happens in it ------------------------------------------------------------------

    def operation(self, name: str, *, again: bool = False) -> AbstractContextManager[Operation]:
        """Time and trace one memory operation.

        An error fails its span, and is recorded there; whether it is worth a log event is for the
        core to say. A refusal (SessionBusy, TurnInProgress, DuplicateTurn) fails nothing.

        Args:
            name: acquire_session, search_memory (load), create_memory (append), update_memory
                (replace), delete_memory (discard, clear), upsert_memory (the journal of tool
                calls) or end_turn.
            again: the operation was refused before: its span is kept only if it is not refused.
        """
        return MemoryOperation(
            name,
            root=self._root,
            metrics=self._metrics,
            backend=self.backend,
            networked=self.networked,
            again=again,
        )

    def waiting(self) -> AbstractContextManager[None]:
        """Count the time of this block as waiting for other turns; several blocks add up."""
        return self._wait

    @log.never_raises
    def acquired(self, turn: int, *, took_over: int | None = None) -> None:
        """The session was acquired. Logs turn_started.

        ``took_over`` is the turn whose lease had expired; session_taken_over is logged for it.
        """
        self._turn = turn
        self._end_wait("acquired")
        self._metrics.count_as("running")
        self.event(names.TURN_STARTED, turn_name=self.name, waited=round(self._wait.seconds, 6))
        attributes = {
            names.TURN: turn,
            names.LOCK_WAIT_SECONDS: self._wait.seconds,
            names.TOOK_OVER: took_over,
        }
        self._root.set(attributes)
        if took_over is not None:
            self.event(names.SESSION_TAKEN_OVER, other_turn=took_over)
            self._metrics.took_over()

    @log.never_raises
    def _end_wait(self, outcome: str) -> None:
        self._wait.end(outcome)

    @log.never_raises
    def contended(self, turn: int | None, *, here: bool = False, waits: bool = True) -> None:
        """Another turn (that number, where known) holds the session. Logs lock_contended.

        Args:
            here: a turn of this process, as when somebody sends two messages in a row.
            waits: this turn waits for it; else it is refused.
        """
        if waits:
            self._wait.holder, self._wait.waits = turn, True
            self._metrics.count_as("waiting")
        if self._wait.contended:  # once a turn, however often it asks
            return
        self._wait.contended = True
        level: names.Level | None = "debug" if here or not waits else None
        self.event(names.LOCK_CONTENDED, level, other_turn=turn)
        self._metrics.contended()
        self._root.add_event(names.LOCK_CONTENDED, {names.OTHER_TURN: turn})

    @log.never_raises
    def resumed(self, links: list[tuple[str, str]]) -> None:
        """The turn goes on where earlier ones were parked: link their roots (trace, span; hex)."""
        for trace_id, span_id in links:
            self._root.link(trace_id, span_id)

    @property
    def root_ids(self) -> tuple[str, str] | None:
        """The root span's trace and span id (hex), where its trace is sampled."""
        return self._root.ids

    @log.never_raises
    def history(self, items: int, size: int | None, digest: str | None) -> None:
        """A history of ``items`` items, ``size`` bytes, was handed to the SDK.

        Logs history_loaded.
        """
        self.event(names.HISTORY_LOADED, items=items, size=size)
        self._metrics.history(items)
        self._root.set(
            {
                names.HISTORY_ITEM_COUNT: items,
                names.HISTORY_SIZE_BYTES: size,
                names.HISTORY_DIGEST: digest,
            }
        )

    @log.never_raises
    def trimmed(self, items: int | None) -> None:
        """A window left this many items out. Logs history_trimmed; none are not worth a word.

        None says that older ones were left unread, so that nobody knows how many there are.
        """
        if items is not None and items <= 0:
            return
        self.event(names.HISTORY_TRIMMED, items=items)
        self._metrics.trimmed()
        self._root.set({names.HISTORY_TRIMMED_COUNT: items})

    @log.never_raises
    def repaired(self, counts: Mapping[Any, int], *, corrupt: int = 0) -> None:
        """The history was repaired on its way to the model. Logs history_repaired.

        Args:
            counts: how many faults of each kind were mended.
            corrupt: entries that could not be read, and were left out.
        """
        done = {**dict(sorted(counts.items())), **({"corrupt_entry": corrupt} if corrupt else {})}
        if not done:
            return
        repairs = ", ".join(f"{kind}: {count}" for kind, count in done.items())
        self.event(names.HISTORY_REPAIRED, repairs=repairs)
        self._metrics.repaired(done)
        self._root.set({names.HISTORY_REPAIRS_DONE: repairs})

    @log.never_raises
    def unknown(self, calls: int) -> None:
        """Tool calls of an earlier attempt began, and no end is known. Logs calls_unknown."""
        self.event(names.CALLS_ARE_UNKNOWN, calls=calls)
        self._metrics.unknown(calls)

    def trace_metadata(self) -> dict[str, str]:
        """What the SDK trace's metadata gets: session_id, turn, and the OpenTelemetry trace id.

        The id is ``emitted_id``; each is left out where there is none, as the turn's number is
        while a streamed run has still to acquire its session.
        """
        metadata = {
            "session_id": self.emitted_id,
            "turn": None if self._turn is None else str(self._turn),
            "otel_trace_id": self.otel_trace_id,
        }
        return {key: value for key, value in metadata.items() if value is not None}

    @log.never_raises
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

    @log.never_raises
    def event(self, name: str, level: names.Level | None = None, /, **fields: Any) -> None:
        """Log one of the package's events with the session's and the turn's keys.

        For those that no other method logs: items_saved, load_failed, save_failed,
        no_run_intercepted, outer_trace_group_mismatch. Fields hold neither content nor an id of
        the session. ``level`` is used instead of the event's own.
        """
        if self._root.suppressed or not log.wanted(name, level):
            return
        keys = {"session_id": self.emitted_id, "turn": self._turn}
        known = {key: value for key, value in keys.items() if value is not None}
        # Attached, so that the record, and the application's processors, find the event's trace.
        with self._root.attached():
            log.emit(name, level, **known, **fields)

    def event_once(self, name: str, /, **fields: Any) -> None:
        """Log one of the package's events the first time that it happens in the turn."""
        if name not in self._said_once:
            self._said_once.add(name)
            self.event(name, **fields)

    @log.never_raises
    def reported(self, kind: str, /, **fields: Any) -> None:
        """SessionRunHooks saw a model_call, tool_call or handoff of the run.

        It becomes an event on the root span; fields are names and numbers, never content.
        """
        self._root.add_event(kind, {names.OWN_PREFIX + key: v for key, v in fields.items()})

    @log.never_raises
    def model_call(self, began: int, model: str | None, spent: Mapping[str, int]) -> None:
        """A model has answered; gives the call a span, unless another library traces those.

        Args:
            began: in nanoseconds since 1970.
            model: its name, where it is known.
            spent: requests and tokens.
        """
        told = self.settings.model_calls
        if not self._root.traced or not (usage.wants_spans() if told is None else told):
            return
        name, attributes = usage.span_of(model, spent)
        span = self._root.child(name, SpanKind.CLIENT, attributes, began)
        if span is not None:
            span.end()

    # --- its end -----------------------------------------------------------------------------

    def end(
        self,
        outcome: str,
        error: BaseException | None = None,
        *,
        new_items: int = 0,
        usage: Mapping[str, int] | None = None,
        said: Callable[[], Said] | None = None,
    ) -> None:
        """The turn is over; a second call does nothing. Logs turn_completed.

        ``outcome`` is the turn's state; or ``forgotten`` where it went on without its memory; or
        ``duplicate``, ``in_progress`` or ``busy`` where another turn came first, which ``error``
        names. Failed and abandoned fail the span, as does giving up after a wait. A cancellation
        is an outcome, and an error beside any other outcome was handled. ``said`` gives content;
        it is called on opt-in only.
        """
        with self._ending:
            if self._started is None or self._ended:
                return
            self._ended = True
        if self._root.suppressed:
            return
        duration = perf_counter() - self._started
        failed = outcome in _FAILED or (outcome == "busy" and self._metrics.state == "waiting")
        failure = {names.ERROR_TYPE: spans.error_type(error)} if failed else {}
        other = getattr(error, "turn", None) if outcome in _REFUSED else None
        self._log_end(outcome, failure, duration, new_items, other)
        self._end_wait(outcome)
        self._metrics.ended(outcome, failure, duration)
        self._capture(said)
        last = {
            names.OUTCOME: outcome,
            names.OTHER_TURN: other,
            names.NEW_ITEM_COUNT: new_items,
            **{names.USAGE_PREFIX + name: count for name, count in (usage or {}).items()},
        }
        self._end_span(last, failed, error)

    @log.never_raises
    def _log_end(
        self,
        outcome: str,
        failure: dict[str, str],
        duration: float,
        new_items: int,
        other: int | None,
    ) -> None:
        fields: dict[str, Any] = {
            "outcome": outcome,
            "duration": round(duration, 6),
            "waited": round(self._wait.seconds, 6),
            "new_items": new_items,
        }
        if other is not None:
            fields["other_turn"] = other
        if failure:
            fields["error_type"] = failure[names.ERROR_TYPE]
        troubles = failure or outcome == "forgotten"
        self.event(names.TURN_COMPLETED, "warning" if troubles else None, **fields)

    @log.never_raises
    def _capture(self, said: Callable[[], Said] | None) -> None:
        if said is None:
            return
        capture = content.requested()
        to_span = capture.span and self.recording
        if not (to_span or capture.event):
            return
        what = said()
        if to_span:
            self._root.set(content.attributes_of(what, plain=True))
        if capture.event:
            messages = content.attributes_of(what, plain=False)
            content.emit_event(self._root.context(), {**self._root.identity, **messages})

    @log.never_raises
    def _end_span(
        self,
        attributes: Mapping[str, AttributeValue | None],
        failed: bool,
        error: BaseException | None,
    ) -> None:
        self._root.end(attributes, failed=failed, error=error)
