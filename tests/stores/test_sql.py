"""The columns of a record and their values, which every SQL store shares."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone

import pytest

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.records import END_FIELDS, TurnEnd, TurnRecord
from session_middleware.stores.sql import (
    END_COLUMNS,
    RECORD_COLUMNS,
    end_values,
    joined_ids,
    moment_of,
    record_of,
    text_of,
)

MOMENT = datetime(2026, 3, 1, 12, 30, 0, 7, tzinfo=UTC)

ROW = {
    "turn": 3,
    "started_at": "2026-03-01 12:30:00.000007+00:00",
    "idempotency_key": "k",
    **end_values(
        TurnEnd(
            "completed",
            MOMENT,
            agent="a",
            sdk_trace_ids=("t1", "t2"),
            usage={"requests": 1},
            output_text="done",
        )
    ),
}


def test_every_field_of_a_record_has_a_column() -> None:
    """But for those that are counted or read from other tables."""
    elsewhere = {"session_id", "item_count", "runs", "calls", "items"}
    fields = {field.name for field in dataclasses.fields(TurnRecord)}
    assert set(RECORD_COLUMNS) == fields - elsewhere
    assert set(END_FIELDS) <= {field.name for field in dataclasses.fields(TurnEnd)}


def test_what_an_end_writes_is_what_a_record_reads() -> None:
    """Every column comes back as the value it was made of."""
    record = record_of("s", ROW, runs=2, items=[{"role": "user"}])
    assert set(ROW) == set(RECORD_COLUMNS)
    assert (record.turn, record.started_at, record.ended_at) == (3, MOMENT, MOMENT)
    assert (record.usage, record.sdk_trace_ids) == ({"requests": 1}, ("t1", "t2"))
    assert (record.item_count, record.runs, record.output_text) == (1, 2, "done")


@pytest.mark.parametrize("name", [name for name in END_COLUMNS if name != "sdk_trace_ids"])
def test_a_column_may_be_null(name: str) -> None:
    """NULL is None in the record."""
    record = record_of("s", {**ROW, name: None}, runs=0, items=[])
    assert getattr(record, name) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("started_at", "yesterday"),
        ("ended_at", ""),
        ("ended_at", 7),
        ("ended_at", "0001-01-01 00:00:00+14:00"),
        ("usage", "{"),
        ("usage", "[]"),
        ("usage", '{"requests": "many"}'),
        ("sdk_trace_ids", "t1"),
        ("sdk_trace_ids", '{"t1": 1}'),
        ("sdk_trace_ids", "[1]"),
    ],
)
def test_a_value_of_another_hand_is_named(name: str, value: object) -> None:
    """The error is the library's own, names the turn and the column, and shows no value."""
    with pytest.raises(MemoryUnavailable, match=f"turn 3 of session 's'.* its {name} ") as raised:
        record_of("s", {**ROW, name: value}, runs=0, items=[])
    assert "yesterday" not in str(raised.value)
    assert raised.value.__cause__ is not None


def test_trace_ids_add_up() -> None:
    """Each once, in the order in which they came; ids that cannot be read are left out."""
    assert joined_ids('["t1"]', ("t2", "t1", "t3")) == '["t1", "t2", "t3"]'
    assert joined_ids(None, ()) == "[]"
    assert joined_ids("not JSON", ("t2",)) == '["t2"]'


def test_a_moment_is_a_text_in_utc() -> None:
    """Moments of any zone are ordered as texts, to the microsecond, and come back equal."""
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5)))
    assert text_of(elsewhere) == text_of(MOMENT) == "2026-03-01 12:30:00.000007+00:00"
    assert moment_of(text_of(MOMENT)) == moment_of(elsewhere) == MOMENT
    assert text_of(MOMENT) < text_of(MOMENT + timedelta(microseconds=1))
