"""Copied turns as the rows of an SQL store: the values of their columns, and what rows come to.

No statements; those are each store's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from session_middleware.stores.managed_store import ParkedCopy, TurnCopy
from session_middleware.stores.records import TurnEnd, TurnRecord
from session_middleware.stores.sql import (
    END_COLUMNS,
    calls_of,
    calls_text,
    date_of,
    end_values,
    joined_ids,
    text_of,
)

TURN_COLUMNS = ("turn", "started_at", "idempotency_key", "input_digest", *END_COLUMNS)
"""The columns of the table ``turn`` that a copy has."""

PARKED_COLUMNS = ("turn", "identity", "alias_of", "open", "since", "calls", "state")
"""The columns of the table ``park``, without the one that names the session."""


def turn_values(copy: TurnCopy) -> dict[str, Any]:
    """The value of each of TURN_COLUMNS."""
    record = copy.record
    return {
        **end_values(end_of(record)),
        "turn": record.turn,
        "started_at": text_of(record.started_at),
        "ended_at": None if record.ended_at is None else text_of(record.ended_at),
        "idempotency_key": record.idempotency_key,
        "input_digest": copy.input_digest,
        "sdk_trace_ids": joined_ids(None, record.sdk_trace_ids),
    }


def end_of(record: TurnRecord) -> TurnEnd:
    """The end that the record tells of, as far as a row has it."""
    names = [name for name in END_COLUMNS if name not in ("ended_at", "sdk_trace_ids")]
    told = {name: getattr(record, name) for name in names}
    return TurnEnd(ended_at=record.ended_at or record.started_at, **told)


def parked_values(turn: int, parked: ParkedCopy) -> dict[str, Any]:
    """The value of each of PARKED_COLUMNS."""
    return {
        "turn": turn,
        "identity": parked.identity,
        "alias_of": parked.alias_of,
        "open": parked.open,
        "since": None if parked.since is None else text_of(parked.since),
        "calls": calls_text(parked.calls) if parked.calls else None,
        "state": parked.state,
    }


def parked_of(row: Mapping[str, Any]) -> ParkedCopy:
    """The copy of a parked run from a row with PARKED_COLUMNS by name."""
    return ParkedCopy(
        row["identity"],
        row["alias_of"],
        bool(row["open"]),
        None if row["since"] is None else date_of(row["since"]),
        calls_of(row["calls"]),
        row["state"],
    )
