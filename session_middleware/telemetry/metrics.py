"""The instruments, made once per meter provider. No attribute here may be of high cardinality."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, cast

from session_middleware.telemetry import names
from session_middleware.telemetry.gauges import Gauges
from session_middleware.telemetry.providers import PerProvider

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider, UpDownCounter

# The SDK's default buckets begin at 5 s and would put every storage operation into the first.
# A turn waits for its session for 60 s unless told otherwise: all reach well beyond that.
_TURN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STORAGE_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 120),
)
_WAIT_SECONDS = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ITEMS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


_METRICS = "opentelemetry.metrics"


@cache
def package_version() -> str:
    """The version under which spans and metrics are emitted."""
    try:
        return version(names.DISTRIBUTION)
    except PackageNotFoundError:  # the package lies on the path without being installed
        return ""


@dataclass(frozen=True, eq=False, slots=True)
class Instruments:
    """The instruments of one meter provider."""

    turn_duration: Histogram
    turn_active: UpDownCounter
    operation_duration: Histogram
    lock_wait: Histogram
    conflicts: Counter
    takeovers: Counter
    unknown_calls: Counter
    history_items: Histogram
    repairs: Counter
    trims: Counter
    gauges: Gauges


_made: PerProvider[Instruments] = PerProvider()


def instruments(provider: MeterProvider | None) -> Instruments | None:
    """The instruments of this provider, or of the global one as it is now; None: nobody measures.

    That is so as long as the application has set no provider, and the API's own stands there. One
    that has not even imported the API has set none, unless it is to be found by the environment.
    """
    if provider is None:
        named = os.environ.get("OTEL_PYTHON_METER_PROVIDER")
        if named is None and _METRICS not in sys.modules:
            return None
        provider = cast("MeterProvider", import_module(_METRICS).get_meter_provider())
    if type(provider).__module__.startswith(_METRICS):
        return None
    # Kept, because a provider remembers every meter and instrument it is asked for.
    made = _made.get(provider)
    if made is None:
        made = _make(provider.get_meter(names.SCOPE, package_version()))
        _made.keep(provider, made)
    return made


def _make(meter: Meter) -> Instruments:
    return Instruments(
        turn_duration=_histogram(
            meter, names.TURN_DURATION, "s", "Duration of a turn.", _TURN_SECONDS
        ),
        turn_active=meter.create_up_down_counter(
            names.TURN_ACTIVE, "{turn}", "Turns that wait for their session, or hold it."
        ),
        operation_duration=_histogram(
            meter,
            names.OPERATION_DURATION,
            "s",
            "Duration of one operation on the memory.",
            _STORAGE_SECONDS,
        ),
        lock_wait=_histogram(
            meter,
            names.LOCK_WAIT_DURATION,
            "s",
            "How long a turn waited for other turns of its session, storage not included.",
            _WAIT_SECONDS,
        ),
        conflicts=meter.create_counter(
            names.LOCK_CONFLICTS, "{conflict}", "Turns that found their session held by another."
        ),
        takeovers=meter.create_counter(
            names.LOCK_TAKEOVERS, "{turn}", "Turns abandoned because their lease had expired."
        ),
        unknown_calls=meter.create_counter(
            names.CALLS_UNKNOWN, "{call}", "Tool calls that began and of which no end is known."
        ),
        history_items=_histogram(
            meter, names.HISTORY_ITEMS, "{item}", "Items of a history given to the model.", _ITEMS
        ),
        repairs=meter.create_counter(
            names.HISTORY_REPAIRS, "{repair}", "Faults of histories that were mended on their way."
        ),
        trims=meter.create_counter(
            names.HISTORY_TRIMS, "{trim}", "Histories of which a window left something out."
        ),
        gauges=Gauges(meter),
    )


def _histogram(
    meter: Any, name: str, unit: str, description: str, boundaries: Sequence[float]
) -> Histogram:
    histogram: Histogram = meter.create_histogram(
        name, unit, description, explicit_bucket_boundaries_advisory=boundaries
    )
    return histogram
