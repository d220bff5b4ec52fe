"""The metrics of a turn, and that no attribute of theirs grows with the number of sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from session_middleware.telemetry import TurnTelemetry

MakeTurn = Callable[..., TurnTelemetry]


def a_whole_turn(turn: TurnTelemetry) -> None:
    turn.start()
    with turn.waiting():
        turn.contended(None)
    turn.acquired(1)
    with turn.operation("search_memory"):
        pass
    turn.history(30, None, None)
    turn.trimmed(4)
    turn.trimmed(0)
    turn.repaired({"orphan_output": 1})
    turn.repaired({})
    with pytest.raises(OSError, match="disk"), turn.operation("create_memory"):
        raise OSError("disk")
    turn.end("failed", OSError("disk"))


def test_a_turn_is_measured(make_turn: MakeTurn, otel: Any) -> None:
    """Durations and counts of one turn, with low-cardinality attributes."""
    a_whole_turn(make_turn())
    metrics = otel.metrics

    def one(name: str) -> tuple[Any, dict[str, Any]]:
        (point,) = metrics[f"session_middleware.{name}"]
        return point, dict(point.attributes)

    backend = {"session_middleware.backend": "sqlite"}
    duration, attributes = one("turn.duration")
    assert (duration.count, attributes) == (
        1,
        {**backend, "session_middleware.outcome": "failed", "error.type": "OSError"},
    )
    waited, attributes = one("lock.wait.duration")
    assert (waited.count, attributes) == (1, {**backend, "session_middleware.outcome": "acquired"})
    items, attributes = one("history.items")
    assert (items.sum, attributes) == (30, backend)
    for counter in ("lock.conflicts", "history.trims"):
        point, attributes = one(counter)
        assert (point.value, attributes) == (1, backend)
    point, attributes = one("history.repairs")
    kind = {"session_middleware.repair.kind": "orphan_output"}
    assert (point.value, attributes) == (1, {**backend, **kind})
    operations = metrics["session_middleware.memory.operation.duration"]
    assert [(point.count, dict(point.attributes)) for point in operations] == [
        (1, {**backend, "gen_ai.operation.name": "search_memory"}),
        (1, {**backend, "gen_ai.operation.name": "create_memory", "error.type": "OSError"}),
    ]


def test_active_turns_go_up_and_down(make_turn: MakeTurn, otel: Any) -> None:
    """A turn is active from its start to its end, however it ends."""

    def active() -> list[int]:
        return [point.value for point in otel.metrics["session_middleware.turn.active"]]

    first, second = make_turn(), make_turn()
    first.start()
    second.start()
    assert active() == [2]
    first.end("cancelled")
    assert active() == [1]
    second.end("completed")
    assert active() == [0]


def test_many_sessions_make_no_more_series(make_turn: MakeTurn, otel: Any) -> None:
    """The number of series is the same for one session and for a hundred."""
    a_whole_turn(make_turn("first"))
    series = {name: len(points) for name, points in otel.metrics.items()}
    for number in range(100):
        a_whole_turn(make_turn(f"session-{number}"))
    assert {name: len(points) for name, points in otel.metrics.items()} == series
    assert "session-" not in str(otel.metrics)


def test_units_are_seconds_and_the_buckets_fit_them(make_turn: MakeTurn, otel: Any) -> None:
    """A storage operation of a millisecond and one of a second fall into different buckets."""
    a_whole_turn(make_turn())
    data = otel.reader.get_metrics_data()
    metrics = {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    operation = metrics["session_middleware.memory.operation.duration"]
    assert operation.unit == metrics["session_middleware.turn.duration"].unit == "s"
    bounds = operation.data.data_points[0].explicit_bounds
    assert any(0.001 <= bound < 1 for bound in bounds)
