"""Sessions as lines of JSON: how a copied turn is written and read again. Pure but for the lines.

The first line names the format, and the last one tells the number of sessions. A session is a line
of its own, a line for each turn, and an end line with their number and digest. So half a session is
never taken for a whole one, nor half an export. An
item stands in a line character for character as it is stored; one that is no JSON, which another
program wrote, stands there as a string.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from session_middleware.errors import InvalidItem, InvalidOption, InvalidSessionId
from session_middleware.memory import check_session_id
from session_middleware.stores.items import decode_items, encode_items
from session_middleware.stores.managed_store import ParkedCopy, RunCopy, SessionInfo, TurnCopy
from session_middleware.stores.records import (
    END_FIELDS,
    CallRecord,
    JournalEntry,
    PendingCall,
    TurnRecord,
)

FORMAT = "session_middleware"
VERSION = 1

_RECORD = ("turn", "state", "started_at", "ended_at", "idempotency_key", "sdk_trace_ids", "runs")
_MOMENTS = ("started_at", "ended_at", "since")


def first_line() -> str:
    """The line that an export begins with."""
    return _line({"format": FORMAT, "version": VERSION})


def last_line(sessions: int) -> str:
    """The line that an export of so many sessions ends with."""
    return _line({"sessions": sessions})


def session_line(info: SessionInfo, fence: int) -> str:
    """The line that a session begins with."""
    return _line(
        {
            "session": info.session_id,
            "created_at": info.created_at.isoformat(),
            "updated_at": info.updated_at.isoformat(),
            "title": info.title,
            "metadata": info.metadata,
            "fence": fence,
        }
    )


class Digest:
    """The digest of a session's turns as lines, made line by line."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.turns = 0

    def line(self, copy: TurnCopy) -> str:
        """The line of this turn, which is added to the digest."""
        line = _turn_line(copy)
        self.turns += 1
        self._hash.update(line.encode("utf-8", "surrogatepass"))
        return line

    def end_line(self) -> str:
        """The line that the session ends with."""
        return _line({"end": self.turns, "sha256": self._hash.hexdigest()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Digest):
            return NotImplemented
        return self.end_line() == other.end_line()

    __hash__ = None  # type: ignore[assignment] # it grows


def digest_of(copies: Iterable[TurnCopy]) -> Digest:
    """The digest of these turns."""
    digest = Digest()
    for copy in copies:
        digest.line(copy)
    return digest


def forked(copy: TurnCopy, session_id: str) -> TurnCopy:
    """The turn as another session has it: what waits for approval there is not to be had here."""
    record = replace(copy.record, session_id=session_id)
    if record.state == "awaiting_approval":
        record = replace(record, state="cancelled")
    runs = tuple(
        replace(run, state="cancelled") if run.state == "awaiting_approval" else run
        for run in copy.runs
    )
    return replace(copy, record=record, runs=runs, parked=())


def renamed(line: str, new_id: Callable[[str], str]) -> str:
    """The line with the id of its session changed, where it is one that names a session."""
    if not line.startswith('{"session": '):
        return line
    try:
        value = json.loads(line)
    except ValueError:  # whoever reads it says which line it is
        return line
    return _line({**value, "session": new_id(value["session"])})


# --- writing -----------------------------------------------------------------------------------


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _turn_line(copy: TurnCopy) -> str:
    record = copy.record
    told = {name: _written(getattr(record, name)) for name in (*_RECORD, *END_FIELDS)}
    told["input_digest"] = copy.input_digest
    told["journal"] = [_entry(entry) for entry in copy.journal]
    told["parked"] = [_parked(parked) for parked in copy.parked]
    body = json.dumps({"record": told}, ensure_ascii=False)
    runs = ", ".join(
        f'{{"run": {run.run}, "state": {json.dumps(run.state)}, '
        f'"input_digest": {json.dumps(run.input_digest)}, '
        f'"items": [{", ".join(map(_embedded, run.texts))}]}}'
        for run in copy.runs
    )
    return f'{body[:-1]}, "runs": [{runs}]}}\n'


def _embedded(text: str) -> str:
    """The item's text where reading and writing it gives the same again, else a string of it."""
    (item,), _ = decode_items([text])
    try:
        same = item is not None and encode_items([item]) == [text]
    except InvalidItem:
        same = False
    return text if same else json.dumps(text)


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def _entry(entry: JournalEntry) -> dict[str, Any]:
    call = entry.call
    told = None
    if call is not None:
        told = {each.name: _written(getattr(call, each.name)) for each in fields(call)}
    return {
        "run": entry.run,
        "place": entry.place,
        "call": told,
        "item": entry.item,
        "output": entry.output,
    }


def _parked(parked: ParkedCopy) -> dict[str, Any]:
    return {
        "identity": parked.identity,
        "alias_of": parked.alias_of,
        "open": parked.open,
        "since": _written(parked.since),
        "calls": [
            {each.name: getattr(call, each.name) for each in fields(call)} for call in parked.calls
        ],
        "state": parked.state,
    }


# --- reading -----------------------------------------------------------------------------------


@dataclass(slots=True)
class ReadSession:
    """A session as an export has it.

    Attributes:
        fence: of the memory that it is from.
    """

    info: SessionInfo
    fence: int
    turns: list[TurnCopy] = field(default_factory=list, repr=False)


async def sessions_in(lines: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[ReadSession]:
    """Yield the sessions of these lines, each when its end line was read and fits.

    Raises:
        InvalidOption: naming the number of the line that cannot be read.
    """
    session: ReadSession | None = None
    digest, number = Digest(), 0
    sessions: int | None = None  # since the first line of the export; None: before it
    async for line in each(lines):
        number += 1
        if not line.strip():
            continue
        value = _object(line, number)
        if sessions is None or "format" in value:
            _check_format(value, number)
            sessions = 0
        elif "session" in value and session is None:
            session, digest = _reading(_session, value, number), Digest()
        elif "record" in value and session is not None:
            copy = _reading(_turn, (session.info.session_id, value), number)
            digest.line(copy)
            session.turns.append(copy)
        elif "end" in value and session is not None:
            if _object(digest.end_line(), number) != value:
                raise _fault(number, "the session above it is not whole, or was changed")
            yield session
            session, sessions = None, sessions + 1
        elif value == {"sessions": sessions} and session is None:
            sessions = None
        else:
            raise _fault(number, "it is not a line that can stand here")
    _check_whole(session, sessions, number)


async def each(lines: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    """The lines, one by one."""
    if isinstance(lines, (str, bytes)):
        raise InvalidOption("lines must be an open file or another iterable of lines, got a text")
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line


def _check_whole(session: ReadSession | None, sessions: int | None, number: int) -> None:
    if session is not None:
        raise _fault(number, "the file ends in the middle of a session")
    if sessions is not None or number == 0:
        raise _fault(number + 1, "it is not there; the export was cut off")


def _object(line: str | bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise _fault(number, "it is no JSON; was the file cut off?") from None
    if not isinstance(value, dict):
        raise _fault(number, "it must be a JSON object")
    return value


def _check_format(value: dict[str, Any], number: int) -> None:
    if value.get("format") != FORMAT or not isinstance(value.get("version"), int):
        raise _fault(number, "the file is no export of this package")
    if value["version"] > VERSION:
        raise _fault(
            number,
            f"the export has version {value['version']}, and this package reads up to {VERSION}: "
            "upgrade session-middleware",
        )


def _reading(read: Any, value: Any, number: int) -> Any:
    try:
        return read(value)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidItem, InvalidSessionId):
        raise _fault(number, "it lacks something, or has a value that is not of its kind") from None


def _fault(number: int, why: str) -> InvalidOption:
    return InvalidOption(f"line {number} of the export cannot be read: {why}")


def _session(value: dict[str, Any]) -> ReadSession:
    if not isinstance(value["metadata"], dict) or not isinstance(value["fence"], int):
        raise TypeError("metadata")
    info = SessionInfo(
        check_session_id(value["session"]),
        datetime.fromisoformat(value["created_at"]),
        datetime.fromisoformat(value["updated_at"]),
        title=value["title"],
        metadata=value["metadata"],
    )
    return ReadSession(info, value["fence"])


def _turn(given: tuple[str, dict[str, Any]]) -> TurnCopy:
    session_id, value = given
    told = value["record"]
    known = {name: told.get(name) for name in END_FIELDS}
    record = TurnRecord(
        session_id=session_id,
        **{name: _read(name, told[name]) for name in _RECORD},
        **known,
        item_count=sum(len(run["items"]) for run in value["runs"]),
    )
    return TurnCopy(
        record,
        told["input_digest"],
        tuple(_run(run) for run in value["runs"]),
        tuple(_read_entry(entry) for entry in told["journal"]),
        tuple(_read_parked(parked) for parked in told["parked"]),
    )


def _run(run: dict[str, Any]) -> RunCopy:
    texts = tuple(
        item if isinstance(item, str) else encode_items([item])[0] for item in run["items"]
    )
    return RunCopy(run["run"], run["state"], run["input_digest"], texts)


def _read_parked(parked: dict[str, Any]) -> ParkedCopy:
    calls = tuple(PendingCall(**call) for call in parked["calls"])
    since = _read("since", parked["since"])
    return ParkedCopy(**{**parked, "since": since, "calls": calls})


def _read_entry(entry: dict[str, Any]) -> JournalEntry:
    call = entry["call"]
    if call is not None:
        call = CallRecord(**{name: _read(name, value) for name, value in call.items()})
    return JournalEntry(entry["run"], entry["place"], call, entry["item"], entry["output"])


def _read(name: str, value: Any) -> Any:
    if name in _MOMENTS and value is not None:
        return datetime.fromisoformat(value)
    return tuple(value) if isinstance(value, list) else value
