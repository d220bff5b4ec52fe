"""What the server's answers mean: items, turns and records. Pure functions.

A member of a session's items is its place, "turn/run/position " with numbers of a fixed width,
and the item's text.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from session_middleware.history import Turn, behind_compaction, holds_output
from session_middleware.stores.items import decode_items, decode_joined
from session_middleware.stores.managed_store import NewestTurn
from session_middleware.stores.records import (
    END_FIELDS,
    CarriedRun,
    Item,
    JournalEntry,
    KeptState,
    Loaded,
    Manifest,
    TurnEnd,
    TurnRecord,
)
from session_middleware.stores.rules import Obstacle, Outcome
from session_middleware.stores.sql import (
    RECORD_COLUMNS,
    end_values,
    entry_of,
    joined_ids,
    journal_values,
    kept_values,
    moment_of,
    record_of,
    text_of,
)

TURN = slice(0, 10)
RUN = slice(11, 17)
TEXT = slice(27, None)


def members_without(
    members: Sequence[bytes], hide: tuple[int, Collection[int]] | None
) -> Sequence[bytes]:
    """The members but for those of the hidden runs of a turn."""
    if hide is None or not hide[1]:
        return members
    hidden = {b"%010d/%06d" % (hide[0], run) for run in hide[1]}
    return [member for member in members if member[:17] not in hidden]


def items_of(members: Sequence[bytes]) -> list[Item]:
    """The items that can be read."""
    texts = [member[TEXT] for member in members]
    items = decode_joined(b",".join(texts), len(texts))
    if items is not None:
        return items
    return [item for item in decode_items(_decoded(texts))[0] if item is not None]


def loaded(
    complete: int,
    members: Sequence[bytes],
    compacted: Sequence[bytes],
    hide: tuple[int, Collection[int]] | None,
    texts: bool,
) -> Loaded:
    """A history: the members of a window, and of older turns that may hold a compaction item."""
    turns, corrupt = turns_of(members_without(members, hide), texts)
    older, _ = turns_of(members_without(compacted, hide), texts)
    return Loaded(behind_compaction(older, turns), complete == 1, corrupt)


def turns_of(members: Sequence[bytes], texts: bool = False) -> tuple[list[Turn], int]:
    """The members turn by turn, and how many of them cannot be read."""
    corrupt = 0
    stored = [member[TEXT] for member in members]
    items = decode_joined(b",".join(stored), len(stored))
    if items is None:
        decoded, corrupt = decode_items(_decoded(stored))
        members = [m for m, item in zip(members, decoded, strict=True) if item is not None]
        items = [item for item in decoded if item is not None]
    numbers = [member[TURN] for member in members]
    turns, first = [], 0
    while first < len(numbers):
        after = bisect_right(numbers, numbers[first], first)
        own = _decoded([m[TEXT] for m in members[first:after]]) if texts else None
        turns.append(Turn(int(numbers[first]), items[first:after], own))
        first = after
    return turns, corrupt


def _decoded(texts: Sequence[bytes]) -> list[str]:
    return [text.decode("utf-8", "surrogateescape") for text in texts]


_BY_SCRIPTS = {"output_text", "otel_trace_id"}


def end_as_json(end: TurnEnd) -> str:
    """What the server stores of an end without reading it; scripts have places for the rest."""
    values = end_values(end)
    return json.dumps({name: values[name] for name in END_FIELDS if name not in _BY_SCRIPTS})


def manifest_in(end: bytes) -> Manifest | None:
    """The manifest in a stored end."""
    text = json.loads(end or b"{}").get("manifest")
    manifest: Manifest | None = None if text is None else json.loads(text)
    return manifest


def state_as_json(since: datetime | None, kept: KeptState | None) -> str:
    """What is stored of a parked run beside its name."""
    calls, text = kept_values(kept)
    moment = None if since is None else text_of(since)
    return json.dumps({"since": moment, "calls": calls, "state": text})


def entry_as_json(entry: JournalEntry) -> str:
    """An entry of a journal as the server stores it."""
    return json.dumps(journal_values(entry))


def place_of(entry: JournalEntry) -> dict[str, int]:
    """Where an entry of a journal belongs."""
    return {"run": entry.run, "place": entry.place}


def entries_of(members: Sequence[bytes]) -> tuple[JournalEntry, ...]:
    """The entries of a journal, in order."""
    return tuple(entry_of(json.loads(member[TEXT])) for member in members)


def by_turn(members: Sequence[bytes]) -> dict[int, list[bytes]]:
    """The members of each turn."""
    turns: dict[int, list[bytes]] = {}
    for member in members:
        turns.setdefault(int(member[TURN]), []).append(member)
    return turns


def record_of_row(
    session_id: str, row: Sequence[Any], items: list[Item], calls: Sequence[bytes]
) -> TurnRecord:
    """The record of a turn: its number, what scripts keep of it, its end and its output."""
    number, kept, end, output, dead = row
    turn = from_json(kept)
    columns: dict[str, Any] = {
        **dict.fromkeys(RECORD_COLUMNS),
        "turn": number,
        "state": "abandoned" if dead and turn["state"] == "running" else turn["state"],
        "started_at": turn["started_at"],
        "ended_at": turn.get("ended_at"),
        "idempotency_key": turn.get("key"),
        "sdk_trace_ids": joined_ids(None, tuple(turn.get("traces", ()))),
        **(from_json(end) if end else {}),
        "otel_trace_id": turn.get("trace"),
        "output_text": None if output is None else json.loads(output),
    }
    return record_of(
        session_id, columns, runs=len(turn["runs"]), items=items, journal=entries_of(calls)
    )


def newest_turn(
    session_id: str, row: Sequence[Any], calls: Sequence[bytes], texts: Sequence[bytes]
) -> NewestTurn:
    """The newest turn of a session, as a list tells it."""
    record = record_of_row(session_id, row, [], calls)
    return NewestTurn(record, decode_items(_decoded(texts))[1])


def carried_of(runs: Mapping[str, Any], moved: Sequence[bytes]) -> tuple[CarriedRun, ...]:
    """The runs of an earlier attempt, whose items lie in the new turn now."""
    carried = []
    for run in sorted(map(int, runs)):
        described = runs[str(run)]
        if described["state"] != "replaced":
            items = items_of([m for m in moved if int(m[RUN]) == run])
            carried.append(CarriedRun(run, described.get("input"), len(items), holds_output(items)))
    return tuple(carried)


def obstacle_of(session_id: str, answer: Sequence[Any]) -> Obstacle:
    """The turn that is in the way, as the script tells of it."""
    if len(answer) == 1:  # nobody holds it: others wait for it, or its parked runs are gone
        return Obstacle(session_id)
    outcome, number, kept, _end, _output, members, until, now = answer
    turn = from_json(kept)
    items: list[Item] = []
    ends = wait = None
    if Outcome(outcome.decode()).is_duplicate:
        items = items_of(members)
    elif turn["state"] == "running":
        ends = datetime.fromtimestamp(int(until) / 1000, UTC)
        wait = (int(until) - int(now)) / 1000
    return Obstacle(
        session_id,
        turn=number,
        since=moment_of(turn["started_at"]),
        until=ends,
        retry_after=wait,
        items=items,
    )
