"""Records as a page tells them: words, times, sizes, trouble. Pure; nothing here is HTML."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from session_middleware import SessionInfo, TurnRecord
from session_middleware.pairs import CALL_OUTPUTS, is_output
from session_middleware.stores.managed_store import NewestTurn
from session_middleware.stores.records import Item
from session_middleware.words import duration, harmless, size

SHORT = 1_200
"""Characters of an item that a page shows; the rest is a page of its own."""

LONG_WAIT = 3600.0
"""Seconds after which an approval that waits counts as trouble."""

_DATA_URL = re.compile(r"data:([\w.+/-]{1,80})?(?:;[\w=.-]{1,80})*,", re.IGNORECASE)


# --- items -----------------------------------------------------------------------------------


Mark: TypeAlias = Literal["", "left out", "came later", "changed"]


@dataclass(frozen=True, slots=True)
class Told:
    """An item as a page shows it.

    Attributes:
        kind: user, assistant, system, call, output, reasoning or other.
        name: of a tool, or the item's type.
        text: its words, at most SHORT characters.
        cut: how many characters are not shown.
        mark: how it differs from what is stored, or from what the model was given; "" for not.
    """

    kind: str
    name: str
    text: str
    cut: int = 0
    mark: Mark = ""


def told(item: Item, mark: Mark = "") -> Told:
    """The item as a page shows it."""
    kind, name, text = _parts(item)
    text = harmless(text)
    return Told(kind, harmless(name), text[:SHORT], max(0, len(text) - SHORT), mark)


def _parts(item: Item) -> tuple[str, str, str]:
    kind = str(item.get("type") or "message")
    if kind == "message" or "role" in item:
        role = str(item.get("role"))
        return role if role in ("user", "assistant") else "system", role, _words(item)
    if kind in CALL_OUTPUTS:
        arguments = item.get("arguments", item.get("input", item.get("action")))
        return "call", str(item.get("name") or kind), _plain(arguments)
    if is_output(item):
        return "output", kind, _plain(item.get("output"))
    if kind == "reasoning":
        return "reasoning", kind, _words({"content": item.get("summary")})
    return "other", kind, _plain(item)


def _words(item: Item) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(filter(None, map(_part, parts)))


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return _plain(part)
    if isinstance(part.get("text"), str):
        return str(part["text"])
    for name in ("image_url", "file_data", "data", "file_url"):
        if isinstance(part.get(name), str):
            return _binary(str(part.get("type")), part[name])
    return _plain(part)


def _binary(kind: str, value: str) -> str:
    found = _DATA_URL.match(value)
    if found is None:
        return f"[{kind}: {value[:200]}]"
    return f"[{kind}: {found[1] or 'data'}, {size(len(value) - found.end())} encoded]"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _DATA_URL.sub(lambda found: f"[{found[1] or 'data'}]", text)


def compared(
    stored: Sequence[Item], own: int, given: Sequence[Item]
) -> tuple[list[Told], list[Told]]:
    """Both sides, each item with how it differs from the other side.

    Args:
        own: how many of the stored ones, the last, are of the turn itself.
    """
    keys = [json.dumps(item, sort_keys=True, default=str) for item in stored]
    others = [json.dumps(item, sort_keys=True, default=str) for item in given]
    left, right, before = Counter(keys), Counter(others), len(stored) - own
    return (
        [
            told(item, "" if right[key] else "came later" if place >= before else "left out")
            for place, (item, key) in enumerate(zip(stored, keys, strict=True))
        ],
        [
            told(item, "" if left[key] else "changed")
            for item, key in zip(given, others, strict=True)
        ],
    )


# --- turns and sessions ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trouble:
    """What somebody should look at.

    Attributes:
        word: what it is called.
        why: what it means, and what to do.
    """

    word: str
    why: str


_STATES = {
    "failed": "its newest turn failed; what it stored is there",
    "abandoned": "its newest turn died with its process; another attempt goes on from it",
}


def troubles_of(info: SessionInfo, newest: NewestTurn | None, now: datetime) -> list[Trouble]:
    """What is wrong with a session, as its newest turn and its newest items tell it."""
    found = []
    if info.state in _STATES:
        found.append(Trouble(info.state, _STATES[info.state]))
    if newest is None:
        return found
    record = newest.record
    if info.state == "awaiting_approval":
        since = record.ended_at or record.started_at
        if (now - since).total_seconds() > LONG_WAIT:
            found.append(Trouble("waiting long", f"an approval waits since {since:%Y-%m-%d %H:%M}"))
    if newest.unreadable:
        found.append(
            Trouble(
                "unreadable items",
                f"{newest.unreadable} of its newest items cannot be read, and no model is given "
                "them: session-middleware doctor looks at all items, and says what to do",
            )
        )
    return found + turn_troubles(record)


def turn_troubles(record: TurnRecord) -> list[Trouble]:
    """What is wrong with a turn, besides its state."""
    found = []
    unknown = [call.name for call in record.calls if call.state == "unknown"]
    if unknown:
        names = ", ".join(map(harmless, unknown))
        found.append(Trouble("effect unknown", f"{names} began, and nobody saw the end"))
    runs = (record.manifest or {}).get("runs", {})
    repairs: Counter[str] = Counter()
    for run in runs.values():
        repairs.update(run.get("repairs", {}))
    if repairs:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(repairs.items()))
        found.append(Trouble("repaired", f"the history had faults: {kinds}"))
    if record.forgotten:
        found.append(Trouble("forgotten", "the memory was gone, and does not have all of it"))
    return found


@dataclass(frozen=True, slots=True)
class ToldTurn:
    """A turn as a page shows it."""

    record: TurnRecord
    items: list[Told]
    lasted: str
    waited: str
    tokens: int
    troubles: list[Trouble]
    corrupt: int
    calls: list[dict[str, str]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)


def told_turn(record: TurnRecord, stored: int) -> ToldTurn:
    """The turn as a page shows it.

    Args:
        stored: how many items the storage has of it, those that cannot be read included.
    """
    ended = record.ended_at
    usage, waited = record.usage or {}, record.waited or 0.0
    calls = [
        {
            "name": harmless(call.name),
            "state": call.state,
            "key": call.key,
            "id": harmless(call.call_id),
        }
        for call in record.calls
    ]
    return ToldTurn(
        record,
        [told(item) for item in record.items],
        "" if ended is None else duration((ended - record.started_at).total_seconds()),
        duration(waited) if waited >= 0.001 else "",
        int(usage.get("total_tokens", 0)),
        turn_troubles(record),
        stored - len(record.items),
        calls,
        model_calls(record),
        [*record.otel_trace_ids, *record.sdk_trace_ids],
    )


def model_calls(record: TurnRecord) -> list[dict[str, Any]]:
    """Each model call whose input can be told, as its run, its number and what it was given."""
    runs = (record.manifest or {}).get("runs", {})
    return [
        {"run": int(run), "call": number, "items": count}
        for run in sorted(runs, key=int)
        for number, count in enumerate(runs[run].get("calls", []), start=1)
    ]


def left_out(record: TurnRecord) -> int | None:
    """How many older turns the window left out, as far as the record tells; None: unknown."""
    for run in (record.manifest or {}).get("runs", {}).values():
        turns = run.get("turns")
        if turns:
            return int(turns[0][0]) - 1
    return None
