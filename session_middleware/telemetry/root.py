"""The root span of a turn: where it hangs, what context it makes, how it and its children fail.

Knows nothing of metrics, logs or a turn's course. What is asked of a provider may raise; the
callers see to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import NamedTuple

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach, get_current, set_value
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from session_middleware import _current
from session_middleware.errors import SessionMemoryError
from session_middleware.telemetry import content, log, names, spans
from session_middleware.telemetry.settings import Telemetry


class Attachment(NamedTuple):
    """What undoes ``RootSpan.attach``: of the OpenTelemetry context, and of the root in force."""

    context: Token[Context]
    root: Token[_current.Scope]


class RootSpan:
    """One turn's root span, from ``start`` to ``end``; it may end in another thread or task.

    Attributes:
        suppressed: the context it was started in asks for no telemetry; then there is no span.
        trace_id: its trace's id (hex), where the trace is sampled.
    """

    __slots__ = (
        "_emitted_id",
        "_recorded",
        "_session_id",
        "_settings",
        "_span",
        "_tracer",
        "_withholds",
        "suppressed",
        "trace_id",
    )

    def __init__(
        self,
        settings: Telemetry,
        session_id: str | None,
        emitted_id: str | None,
        *,
        withholds: bool = False,
    ) -> None:
        self._settings = settings
        self._withholds = withholds
        self._session_id = session_id
        self._emitted_id = emitted_id
        self._tracer: Tracer | None = None
        self._span: Span | None = None
        self._recorded: list[BaseException] = []
        self.suppressed = False
        self.trace_id: str | None = None

    @property
    def recording(self) -> bool:
        """Whether what is set on the span is kept."""
        return self._span is not None and self._span.is_recording()

    @property
    def traced(self) -> bool:
        """Whether a provider made the span, so that children and attributes may be of use."""
        return self._tracer is not None

    @property
    def identity(self) -> dict[str, str]:
        """Both keys of the session, for a span; none where the id must not be shown."""
        if self._emitted_id is None:
            return {}
        return {names.SESSION_ID: self._emitted_id, names.CONVERSATION_ID: self._emitted_id}

    def start(self, name: str, attributes: Mapping[str, AttributeValue]) -> None:
        """Start the span under the one that is current here; without a provider, none."""
        given = self._settings.tracer_provider
        if not (spans.provided(given) or trace.get_current_span().get_span_context().is_valid):
            return
        tracer = spans.tracer(self._settings.tracer_provider)
        span = tracer.start_span(name, None, SpanKind.INTERNAL, {**self.identity, **attributes})
        context = span.get_span_context()
        if context.is_valid:  # otherwise nobody traces here, and nobody is asked again
            self._tracer, self._span = tracer, span
            if context.trace_flags.sampled:  # else the id leads nowhere
                self.trace_id = trace.format_trace_id(context.trace_id)

    def start_without_span(self) -> None:
        """Let children start, although there is no span: they hang under the current one."""
        self._tracer = spans.tracer(self._settings.tracer_provider)

    @property
    def ids(self) -> tuple[str, str] | None:
        """Its trace and span id (hex), where the trace is sampled."""
        if self._span is None or self.trace_id is None:
            return None
        return self.trace_id, trace.format_span_id(self._span.get_span_context().span_id)

    def link(self, trace_id: str, span_id: str) -> None:
        """Link a span of an earlier trace (ids in hex)."""
        if self._span is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            ids = int(trace_id, 16), int(span_id, 16)
            self._span.add_link(trace.SpanContext(*ids, is_remote=True, trace_flags=flags))

    def child(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue],
        start_time: int | None = None,
    ) -> Span | None:
        """Start a span under the current one, where that belongs to the turn, else under this.

        None where the turn is not ``traced``. ``start_time`` is in nanoseconds since 1970; default
        now.
        """
        if self._tracer is None:
            return None
        marked = {**self.identity, **attributes}
        return self._tracer.start_span(name, self.context(), kind, marked, (), start_time)

    def context(self) -> Context:
        """The current context with the turn in it; the very same one if it is there already."""
        context = get_current()
        if self.suppressed or self.is_in_force():
            return context
        if self._span is not None:
            context = trace.set_span_in_context(self._span, context)
        if self._emitted_id is not None:
            context = set_value(names.SESSION_ID, self._emitted_id, context)
            if self._settings.baggage:
                context = baggage.set_baggage(names.SESSION_ID, self._emitted_id, context)
        return context

    def is_in_force(self) -> bool:
        """Whether the current context is the turn's own, or made from it.

        It is not where a coroutine is closed by the collector of garbage, in whatever context
        that happens to run; nothing of ours is to be detached there.
        """
        return _current.current_root() is self

    def attach(self, context: Context) -> Attachment:
        """Make ``context``, which was made from ``context()``, the current one."""
        return Attachment(attach(context), _current.put_root(self))

    def detach(self, attachment: Attachment) -> None:
        """Undo ``attach``, unless this is another context by now."""
        if self.is_in_force():
            _current.reset_root(attachment.root)
            detach(attachment.context)

    def attached(self) -> AbstractContextManager[None]:
        """Make ``context()`` the current one for the extent of a block."""
        return _Attached(self)

    def set(self, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Set those attributes that have a value."""
        if self._span is not None:
            spans.set_attributes(self._span, attributes)

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Add an event with those attributes that have a value."""
        if self._span is not None and self._span.is_recording():
            given = {key: value for key, value in attributes.items() if value is not None}
            self._span.add_event(name, given)

    def fail(self, span: Span, error: BaseException | None) -> None:
        """Fail a span of the turn, and record the error on it unless another has it already."""
        if not span.is_recording():
            return
        spans.fail(span, spans.error_type(error))
        if error is None or any(
            cause is known for cause in spans.causes(error) for known in self._recorded
        ):
            return
        self._recorded.append(error)
        spans.record(span, error, self._message(error))

    def end(
        self,
        attributes: Mapping[str, AttributeValue | None],
        *,
        failed: bool = False,
        error: BaseException | None = None,
    ) -> None:
        """End the span with these last attributes, and as failed if it is."""
        if self._span is None:
            return
        try:
            self.set(attributes)
            if failed:
                self.fail(self._span, error)
        finally:
            self._span.end()
            self._recorded.clear()  # errors hold their frames, and through them much else

    def _message(self, error: BaseException) -> str | None:
        """The error's text if it may be shown: our errors hold no content, others may.

        Those are not shown where content is redacted, as nobody can redact them.
        """
        shows_content = content.requested().span and not self._withholds
        if not (isinstance(error, SessionMemoryError) or shows_content):
            return None
        text = str(error)
        if self._session_id is None:  # it may name any of several sessions
            return text if self._settings.session_id is None else None
        if self._emitted_id != self._session_id:
            text = text.replace(self._session_id, self._emitted_id or "...")
        return text


class _Attached(AbstractContextManager[None]):
    """A turn's context for the extent of a block; inside the turn's own context, nothing."""

    __slots__ = ("_attachment", "_root")

    def __init__(self, root: RootSpan) -> None:
        self._root = root
        self._attachment: Attachment | None = None

    def __enter__(self) -> None:
        try:
            context = self._root.context()
            if context is not get_current():
                self._attachment = self._root.attach(context)
        except Exception as error:
            log.swallowed("attached", error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._attachment is not None:
            self._root.detach(self._attachment)
