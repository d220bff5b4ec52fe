"""Turns as the core would tell them, seen through providers in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.context import Context, get_current

from session_middleware import with_session_memory
from session_middleware.telemetry import Telemetry, TurnTelemetry
from tests.support.markers import said_in


@pytest.fixture
def make_turn(otel: Any) -> Callable[..., TurnTelemetry]:
    """Make the telemetry of a turn that goes to ``otel``; not started."""

    def make(
        session_id: str = "user_alice",
        *,
        name: str = "chat",
        networked: bool = False,
        streaming: bool = False,
        mapper: Callable[[str], str] | None = None,
        baggage: bool = False,
    ) -> TurnTelemetry:
        settings = Telemetry(
            tracer_provider=otel.tracer_provider,
            meter_provider=otel.meter_provider,
            session_id=mapper,
            baggage=baggage,
        )
        backend = "redis" if networked else "sqlite"
        return TurnTelemetry(settings, name, session_id, backend, networked, streaming)

    return make


@pytest.fixture
def remember(memory: Any, otel: Any) -> Callable[..., Any]:
    """The decorator over one memory, with its telemetry in ``otel``."""

    def decorate(function: Any, **telemetry: Any) -> Any:
        settings = Telemetry(otel.tracer_provider, otel.meter_provider, **telemetry)
        return with_session_memory(function, memory=memory, telemetry=settings)

    return decorate


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """The log events of an application that has configured structlog, in order."""
    captured = structlog.testing.LogCapture()
    structlog.configure(processors=[captured], cache_logger_on_first_use=False)
    yield captured.entries
    structlog.reset_defaults()
    assert said_in(captured.entries) == []


@pytest.fixture(autouse=True)
def _the_context_is_left_as_it_was() -> Iterator[None]:
    before: Context = get_current()
    yield
    assert get_current() is before or get_current() == before
