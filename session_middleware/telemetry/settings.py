"""The ``telemetry=`` option: what a user can say of telemetry, and how it is applied to an id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict
from weakref import WeakSet

from session_middleware.errors import InvalidOption
from session_middleware.telemetry import log, names

_failed_mappers: WeakSet[Callable[[str], str]] = WeakSet()


class TelemetrySettings(TypedDict, total=False):
    """The ``telemetry=`` option as a dict; ``Telemetry`` says what each entry means."""

    tracer_provider: Any
    meter_provider: Any
    session_id: Callable[[str], str] | None
    baggage: bool
    model_calls: bool | None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a user can say of telemetry; the ``telemetry=`` option.

        Telemetry(session_id=lambda raw: hashlib.sha256(raw.encode()).hexdigest()[:16])

    Attributes:
        tracer_provider, meter_provider: used instead of the global ones, which are looked up
            when a turn starts.
        session_id: maps the id before it is emitted (a hash, say), in spans, logs, baggage and
            the SDK trace. Where it raises or gives no text, nothing identifying is emitted.
        baggage: also put ``session.id`` into the OpenTelemetry baggage. It then travels with
            every outgoing call that propagates context, those to the model included.
        model_calls: give each model call a span with its tokens. None: unless a library that
            traces model calls has been imported, because tools would count the tokens twice.

    Raises:
        InvalidOption: a provider that provides nothing, or a mapper that cannot be called.
    """

    tracer_provider: Any = None
    meter_provider: Any = None
    session_id: Callable[[str], str] | None = None
    baggage: bool = False
    model_calls: bool | None = None

    def __post_init__(self) -> None:
        for option, method in (("tracer_provider", "get_tracer"), ("meter_provider", "get_meter")):
            provider = getattr(self, option)
            if provider is not None and not callable(getattr(provider, method, None)):
                raise InvalidOption(
                    f"Telemetry({option}=...) takes an OpenTelemetry provider with {method}(), "
                    f"not {type(provider).__name__}"
                )
        if self.session_id is not None and not callable(self.session_id):
            raise InvalidOption(
                "Telemetry(session_id=...) takes a function that maps the id before it is "
                f"emitted, not {type(self.session_id).__name__}"
            )


def emitted_id(settings: Telemetry, session_id: str) -> str | None:
    """The id as it may be shown; None where the user's mapper gave none. Never raises."""
    mapper = settings.session_id
    if mapper is None:
        return session_id
    try:
        mapped = mapper(session_id)
        if isinstance(mapped, str) and mapped:
            return mapped
        fault = f"it returned {type(mapped).__name__}" if mapped != "" else "it returned ''"
    except Exception as error:
        # The class only: the message may contain the id that must not be shown.
        fault = f"it raised {type(error).__name__}"
    _report_once(mapper, fault)
    return None


def _report_once(mapper: Callable[[str], str], fault: str) -> None:
    try:
        known = mapper in _failed_mappers
        _failed_mappers.add(mapper)
    except TypeError:  # it cannot be referenced weakly or hashed: said every time, then
        known = False
    if not known:
        try:
            log.emit(names.SESSION_ID_UNMAPPED, fault=fault)
        except Exception as error:
            log.swallowed("session_id", error)
