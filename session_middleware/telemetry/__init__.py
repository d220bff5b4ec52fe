"""One turn, as tracing tools, metrics and logs see it.

Telemetry never sees a store and never decides anything: the core tells it what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a user can say of telemetry; the ``telemetry=`` option.

    Attributes:
        tracer_provider, meter_provider: used instead of the global ones.
        session_id: maps the id before it is emitted (a hash, say).
        baggage: also put ``session.id`` into the OpenTelemetry baggage.
    """

    tracer_provider: Any = None
    meter_provider: Any = None
    session_id: Callable[[str], str] | None = None
    baggage: bool = False


@dataclass(slots=True)
class Operation:
    """One operation on the memory while it runs; say how many records it touched."""

    count: int = 0


@dataclass(slots=True)
class TurnTelemetry:
    """Everything that is emitted for one turn. The core calls it; it never raises."""

    settings: Telemetry
    name: str
    session_id: str
    backend: str
    networked: bool = False
    streaming: bool = False
    otel_trace_id: str | None = field(default=None, init=False)

    @property
    def recording(self) -> bool:
        """Whether the root span records, so that a digest of the history is worth its cost."""
        return False

    def start(self) -> None:
        """The call has begun; the root span starts, under the OpenTelemetry span current here."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Make the root span current in this context; never across a yield to a consumer."""
        yield

    @contextmanager
    def operation(self, name: str) -> Iterator[Operation]:
        """Time and trace one memory operation.

        ``name`` is search_memory (load), create_memory (append), update_memory (replace) or
        delete_memory (discard, clear).
        """
        yield Operation()

    def taken(self, turn: int, waited: float) -> None:
        """The session was taken after ``waited`` seconds."""

    def contended(self, turn: int | None) -> None:
        """Another turn (that number, where known) holds the session, and this one waits or fails."""

    def history(self, items: int, size: int | None, digest: str | None) -> None:
        """A history of ``items`` items, ``size`` bytes, was handed to the SDK."""

    def trimmed(self, items: int) -> None:
        """A window left this many items out."""

    def repaired(self, receipt: object) -> None:
        """The history was repaired on its way to the model."""

    def trace_metadata(self) -> dict[str, str]:
        """What the SDK trace's metadata gets: session_id, and the OpenTelemetry trace id."""
        return {"session_id": self.session_id}

    def sdk_trace(self, trace_id: str, group_id: str | None) -> None:
        """A run of this turn belongs to that SDK trace."""

    def event(self, name: str, **fields: Any) -> None:
        """Log one of the package's events with the session's and the turn's keys."""

    def reported(self, kind: str, **fields: Any) -> None:
        """SessionRunHooks saw a model_call, tool_call or handoff of the run."""

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
        """The turn is over. The two callables give content; they are called on opt-in only."""
