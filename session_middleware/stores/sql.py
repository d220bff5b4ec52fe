"""The columns of a turn's record, and their values: the same in every SQL store.

A field of a record is one line here at most: in ``records.END_FIELDS`` it gets its column, and in
``_WRITTEN`` and ``_READ`` its form if it is neither a text nor a number. No statements; those are
each store's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.records import (
    BEGINNING,
    END_FIELDS,
    CallRecord,
    Item,
    JournalEntry,
    KeptState,
    Manifest,
    PendingCall,
    TurnEnd,
    TurnRecord,
)

END_COLUMNS = ("state", "ended_at", "sdk_trace_ids", *END_FIELDS)
"""The columns of the table ``turn`` that the end of a turn writes."""

CALL_COLUMNS = tuple(column.name for column in fields(CallRecord))
"""The columns of a journal's table that tell of a call."""

JOURNAL_COLUMNS = ("run", "place", "item", "output", *CALL_COLUMNS)
"""The columns of a journal's table, without those that name the turn."""

RECORD_COLUMNS = ("turn", "started_at", "idempotency_key", *END_COLUMNS)
"""The columns of the table ``turn`` that a record is read from."""


def text_of(moment: datetime) -> str:
    """The moment as people, SQLite and Python read it: in UTC, to the microsecond, ordered."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")


def moment_of(value: str | datetime) -> datetime:
    """The moment of a column, which is a text or what a driver made of it, in UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment.astimezone(UTC)


def joined_ids(earlier: str | None, later: tuple[str, ...]) -> str:
    """The column ``sdk_trace_ids`` of a turn that had these and gets those; unreadable ones go."""
    try:
        had = _ids(earlier or "[]")
    except ValueError:
        had = ()
    return json.dumps(list(dict.fromkeys((*had, *later))))


def end_values(end: TurnEnd) -> dict[str, Any]:
    """The value of each of END_COLUMNS. ``sdk_trace_ids`` are those of this end alone."""
    values: dict[str, Any] = dict(zip(END_COLUMNS, _end_fields(end), strict=True))
    for name in _FORMED_AT_END:
        if values[name] is not None:
            values[name] = _WRITTEN[name](values[name])
    return values


def record_of(
    session_id: str,
    row: Mapping[str, Any],
    *,
    runs: int,
    items: list[Item],
    journal: Iterable[JournalEntry] = (),
) -> TurnRecord:
    """The record of a row with RECORD_COLUMNS by name.

    Raises:
        MemoryUnavailable: a column has a value that this package does not write.
    """
    values: dict[str, Any] = {}
    for name in RECORD_COLUMNS:
        try:
            values[name] = _form(_READ, name, row[name])
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise MemoryUnavailable(
                f"the record of turn {row['turn']} of session {session_id!r} cannot be read: its "
                f"{name} was changed by somebody else. Restore it from a backup, or clear the "
                "session"
            ) from error
    calls = tuple(entry.call for entry in journal if entry.call is not None)
    return TurnRecord(
        session_id, item_count=len(items), runs=runs, items=items, calls=calls, **values
    )


def journal_values(entry: JournalEntry) -> dict[str, Any]:
    """The value of each of JOURNAL_COLUMNS; those of the call are None where there is none."""
    call = entry.call
    values = {
        name: None if call is None else _form(_WRITTEN, name, getattr(call, name))
        for name in CALL_COLUMNS
    }
    own = {"run": entry.run, "place": entry.place, "item": entry.item, "output": entry.output}
    return {**own, **values}


def entry_of(row: Mapping[str, Any]) -> JournalEntry:
    """The journal entry of a row with JOURNAL_COLUMNS by name."""
    call = None
    if row["call_id"] is not None:
        call = CallRecord(**{name: _form(_READ, name, row[name]) for name in CALL_COLUMNS})
    return JournalEntry(row["run"], row["place"], call, row["item"], row["output"])


def kept_values(state: KeptState | None) -> tuple[str | None, str | None]:
    """The columns ``calls`` and ``state`` of a parked run."""
    return (None, None) if state is None else (calls_text(state.calls), state.text)


def calls_text(calls: Iterable[PendingCall]) -> str:
    """The column ``calls`` of a parked run."""
    return json.dumps([asdict(call) for call in calls])


def calls_of(text: str | None) -> tuple[PendingCall, ...]:
    """The calls in the column ``calls``; none where nobody can read it."""
    try:
        return tuple(PendingCall(**call) for call in json.loads(text or "[]"))
    except (ValueError, TypeError):
        return ()


def metadata_of(text: str | None) -> dict[str, Any]:
    """The column ``metadata`` of a session; empty where nobody can read it."""
    try:
        metadata = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def date_of(value: str | datetime | None) -> datetime:
    """The moment of a column that other programs write as well: in UTC, unless it says another."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value or "")
    except (ValueError, TypeError):
        return BEGINNING
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _form(forms: Mapping[str, Callable[[Any], Any]], name: str, value: Any) -> Any:
    return forms[name](value) if name in forms and value is not None else value


def _ids(text: str) -> tuple[str, ...]:
    ids = json.loads(text)
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise ValueError("not a list of ids")
    return tuple(ids)


def _usage(text: str) -> dict[str, int]:
    usage = json.loads(text)
    if not isinstance(usage, dict) or not all(isinstance(each, int) for each in usage.values()):
        raise ValueError("not an object of numbers")
    return usage


def _manifest(text: str) -> Manifest:
    manifest: Manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError("not an object")
    return manifest


_WRITTEN: dict[str, Callable[[Any], Any]] = {
    "started_at": text_of,
    "ended_at": text_of,
    "sdk_trace_ids": json.dumps,
    "usage": json.dumps,
    "manifest": json.dumps,
}
_FORMED_AT_END = [name for name in END_COLUMNS if name in _WRITTEN]
_end_fields = attrgetter(*END_COLUMNS)
_READ: dict[str, Callable[[Any], Any]] = {
    "started_at": moment_of,
    "ended_at": moment_of,
    "sdk_trace_ids": _ids,
    "usage": _usage,
    "manifest": _manifest,
}
