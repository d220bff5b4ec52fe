"""Copied turns as the server stores them, and what it stores as copied turns. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from session_middleware.stores.managed_store import ParkedCopy, RunCopy, TurnCopy
from session_middleware.stores.records import KeptState, RunState
from session_middleware.stores.redis import reads
from session_middleware.stores.sql import calls_of, date_of, text_of
from session_middleware.stores.sql_copies import end_of


def copy_of_row(
    session_id: str, row: Sequence[Any], members: Sequence[bytes], calls: Sequence[bytes]
) -> TurnCopy:
    """A turn of the script ``copies``: its row, its items and its journal."""
    number, kept, end, output, states = row
    turn = from_json(kept)
    record = reads.record_of_row(session_id, (number, kept, end, output, 0), [], [])
    texts: dict[int, list[str]] = {}
    for member in members:
        text = member[reads.TEXT].decode("utf-8", "surrogateescape")
        texts.setdefault(int(member[reads.RUN]), []).append(text)
    runs = {int(run): described for run, described in turn["runs"].items()}
    return TurnCopy(
        record,
        turn.get("input"),
        tuple(
            RunCopy(run, runs[run]["state"], runs[run].get("input"), tuple(texts.get(run, ())))
            for run in sorted(runs)
        ),
        reads.entries_of(calls),
        _parked(turn, dict(zip(states[::2], states[1::2], strict=True))),
    )


def _parked(turn: Mapping[str, Any], states: Mapping[bytes, bytes]) -> tuple[ParkedCopy, ...]:
    aliases = turn.get("aliases") or {}
    copies = []
    for identity, is_open in sorted(turn["parks"].items()):
        kept = json.loads(states.get(identity.encode(), b"{}"))
        since = kept.get("since")
        copies.append(
            ParkedCopy(
                identity,
                aliases.get(identity),
                is_open,
                None if since is None else date_of(since),
                calls_of(kept.get("calls")),
                kept.get("state"),
            )
        )
    return tuple(copies)


def described(copies: Sequence[TurnCopy]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the script ``put_copies`` takes: a description of each turn, and the texts of all."""
    told, texts = [], []
    for copy in copies:
        parked = [each for each in copy.parked if _has_state(each)]
        told.append(
            {
                "turn": copy.record.turn,
                "items": [[run.run, len(run.texts)] for run in copy.runs],
                "calls": [reads.place_of(entry) for entry in copy.journal],
                "states": [each.identity for each in parked],
            }
        )
        output = copy.record.output_text
        texts += [
            json.dumps(_turn(copy)),
            reads.end_as_json(end_of(copy.record)),
            "" if output is None else json.dumps(output),
            *copy.texts,
            *(reads.entry_as_json(entry) for entry in copy.journal),
            *(_state(each) for each in parked),
        ]
    return told, texts


def _has_state(parked: ParkedCopy) -> bool:
    return bool(parked.since or parked.calls or parked.state)


def _state(parked: ParkedCopy) -> str:
    kept = KeptState(parked.identity, parked.calls, parked.state)
    return reads.state_as_json(parked.since, kept)


def _turn(copy: TurnCopy) -> dict[str, Any]:
    """The turn as the scripts keep it."""
    record = copy.record
    dates = [parked.since for parked in copy.parked if parked.open and parked.since is not None]
    newest = record.otel_trace_id
    values: dict[str, Any] = {
        "state": record.state,
        "started_at": text_of(record.started_at),
        "ended_at": None if record.ended_at is None else text_of(record.ended_at),
        "key": record.idempotency_key,
        "input": copy.input_digest,
        "trace": newest,
        "earlier": [each for each in record.otel_trace_ids if each != newest] or None,
        "traces": list(record.sdk_trace_ids) or None,
        "parked_at": str(round(min(dates).timestamp() * 1e6)) if dates else None,
        "aliases": {each.identity: each.alias_of for each in copy.parked if each.alias_of} or None,
        "runs": {str(run.run): _run(run) for run in copy.runs},
        "parks": {each.identity: each.open for each in copy.parked},
    }
    return {name: value for name, value in values.items() if value is not None}


def _run(run: RunCopy) -> dict[str, RunState | str]:
    if run.input_digest is None:
        return {"state": run.state}
    return {"state": run.state, "input": run.input_digest}
