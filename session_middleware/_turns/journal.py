"""The journal of a turn: which calls its tools were run for, and what became of each.

Bookkeeping only, safe for threads: it makes the entries that a memory keeps and the keys that
tools are given. It neither stores nor awaits anything.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias

from session_middleware._sdk.tools import ModelCall
from session_middleware.effects import base_of, key_of
from session_middleware.pairs import answered_in, calls_in
from session_middleware.stores.records import CallRecord, CallState, Item, JournalEntry

CallScope: TypeAlias = tuple[str | int, ...]
"""What names a turn in the keys of its calls."""


class Journal:
    """The calls of one turn, in the order in which the model made them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[int, int], JournalEntry] = {}
        self._earlier: dict[str, CallRecord] = {}  # by key: how the newest attempt at it ended
        self._inner: dict[tuple[str, str], str] = {}
        self._scope: CallScope = ()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def begin(self, scope: CallScope, carried: Iterable[JournalEntry] = ()) -> None:
        """The turn has its session.

        Args:
            scope: names the turn in the keys of its calls.
            carried: the entries of earlier attempts; what began there and did not end is unknown.
        """
        with self._lock:
            self._scope = scope
            self._entries.clear()
            self._earlier.clear()
            for entry in carried:
                call = entry.call
                if call is not None and call.state == "begun":
                    call = replace(call, state="unknown")
                    entry = replace(entry, call=call)
                self._entries[entry.run, entry.place] = entry
                if call is not None:
                    self._earlier[call.key] = call

    def respond(
        self, run: int, calls: Sequence[ModelCall | None], texts: Sequence[str | None]
    ) -> list[JournalEntry]:
        """The model has answered with calls for tools; returns the entries to be kept.

        Args:
            calls: for each item of the response the call that it is; None for any other item.
            texts: each item as JSON; None where it must not be stored.
        """
        with self._lock:
            new = []
            for call, text in zip(calls, texts, strict=True):
                record = None if call is None else self._call(call)
                new.append(JournalEntry(run, self._next_place(run), record, text))
                self._entries[run, new[-1].place] = new[-1]
            return new

    def start(self, run: int, call: ModelCall, text: str | None) -> JournalEntry | None:
        """A tool is about to run for this call; returns an entry to be kept, if it is a new one.

        The call of a run that waited for approval is new: nothing had begun while it waited.
        """
        with self._lock:
            if self._find(run, call.call_id) is not None:
                return None
            entry = JournalEntry(run, self._next_place(run), self._call(call), text)
            self._entries[run, entry.place] = entry
            return entry

    def withdraw(self, entries: Iterable[JournalEntry]) -> None:
        """These new entries could not be kept, so no tool of theirs begins."""
        with self._lock:
            for entry in entries:
                self._entries.pop((entry.run, entry.place), None)

    def end(self, run: int, call_id: str, output: str | None) -> JournalEntry | None:
        """The tool has returned; returns the entry as it is to be kept from now on."""
        with self._lock:
            entry = self._find(run, call_id)
            if entry is None or entry.call is None:
                return None
            done = replace(entry.call, state="done", ended_at=datetime.now(UTC))
            entry = replace(entry, call=done, output=output)
            self._entries[entry.run, entry.place] = entry
            return entry

    def handed_over(self, run: int, items: Iterable[Item]) -> list[JournalEntry]:
        """The SDK has handed over these items; returns the entries whose texts are to go.

        A call that was handed over without an output, such as one that waits for approval, never
        began: it leaves the journal.
        """
        if not self._entries:
            return []
        given = list(items)
        answered, calls = answered_in(given), calls_in(given).keys()
        with self._lock:
            changed = []
            for place, entry in list(self._entries.items()):
                if entry.run != run or entry.item is None:
                    continue
                call_id = None if entry.call is None else entry.call.call_id
                if call_id is None or call_id in answered or call_id in calls:
                    entry = replace(entry, item=None, output=None)
                    self._entries[place] = entry
                    if call_id is not None and call_id not in answered:
                        del self._entries[place]
                    changed.append(entry)
            return changed

    def stop(self, run: int, *, raised: bool) -> None:
        """The run did not complete: its calls that did not end are unknown.

        Where the run raised while one tool alone was at work, that call failed.
        """
        with self._lock:
            begun = [
                entry
                for entry in self._entries.values()
                if entry.run == run and entry.call is not None and entry.call.state == "begun"
            ]
            state: CallState = "failed" if raised and len(begun) == 1 else "unknown"
            now = datetime.now(UTC)
            for place, entry in self._entries.items():
                call = entry.call
                if entry.run == run and call is not None and call.state == "begun":
                    call = replace(call, state=state, ended_at=now if state == "failed" else None)
                    self._entries[place] = replace(entry, call=call)
                    self._earlier[call.key] = call

    def left(self, run: int, stored: Iterable[Item] = ()) -> list[JournalEntry]:
        """The entries of a run that the SDK has not handed over.

        Args:
            stored: the run's items as they lie in the memory, where another process stored them.
        """
        answered = answered_in(stored)
        with self._lock:
            return [
                entry
                for (of, _), entry in sorted(self._entries.items())
                if of == run
                and entry.item is not None
                and (entry.call is None or entry.call.call_id not in answered)
            ]

    def told(self, run: int, calls: Collection[str]) -> None:
        """The model is told of these calls of a run; their texts are items now."""
        with self._lock:
            for place, entry in list(self._entries.items()):
                if entry.run != run or entry.item is None:
                    continue
                if entry.call is None or entry.call.call_id in calls:
                    self._entries[place] = replace(entry, item=None, output=None)

    def find(self, call_id: str) -> CallRecord | None:
        """The newest call with this id."""
        with self._lock:
            for entry in reversed(self._entries.values()):
                if entry.call is not None and entry.call.call_id == call_id:
                    return entry.call
            return None

    def inner(self, outer: str, call: ModelCall) -> str:
        """The key of a call that an agent makes which is itself used as a tool.

        Args:
            outer: the key of the call that the agent is run for.
        """
        with self._lock:
            known = self._inner.get((outer, call.call_id))
            if known is not None:
                return known
            base = base_of(call.name, call.arguments)
            used = {key for (of, _), key in self._inner.items() if of == outer}
            ordinal = 0
            while (key := key_of(outer, base, ordinal)) in used:
                ordinal += 1
            self._inner[outer, call.call_id] = key
            return key

    def entries(self, *, texts: bool) -> tuple[JournalEntry, ...]:
        """All entries that are calls, in order; without texts if the memory is not to keep them."""
        with self._lock:
            return tuple(
                entry if texts else replace(entry, item=None, output=None)
                for _, entry in sorted(self._entries.items())
                if entry.call is not None or texts
            )

    def _next_place(self, run: int) -> int:
        return 1 + max((place for of, place in self._entries if of == run), default=-1)

    def _find(self, run: int, call_id: str) -> JournalEntry | None:
        for (of, _), entry in reversed(self._entries.items()):
            if of == run and entry.call is not None and entry.call.call_id == call_id:
                return entry if entry.call.state == "begun" else None
        return None

    def _call(self, call: ModelCall) -> CallRecord:
        """The record of a call that begins now, under the key that it has in this turn.

        It is a new key, unless an equal call is unknown or failed: then the model, or the run
        that is made again, repeats that one.
        """
        scope = json.dumps(self._scope, ensure_ascii=True)
        base = base_of(call.name, call.arguments)
        used = {entry.call.key for entry in self._entries.values() if entry.call is not None}
        used |= self._earlier.keys()
        ordinal, attempt = 0, 1
        while (key := key_of(scope, base, ordinal)) in used:
            earlier = self._earlier.get(key)
            if earlier is not None and earlier.state in ("unknown", "failed"):
                attempt = earlier.attempt + 1
                del self._earlier[key]
                break
            ordinal += 1
        return CallRecord(call.call_id, call.name, key, "begun", datetime.now(UTC), attempt=attempt)


def scope_of(
    session_id: str, idempotency_key: str | None, turn: int, began: object = None
) -> CallScope:
    """What names a turn in the keys of its calls: the same when the turn is made again.

    Args:
        began: when it began, which tells it from the turn of that number that the session had
            before it was deleted.
    """
    if idempotency_key is not None:
        return session_id, "key", idempotency_key
    return session_id, "turn", turn, str(began)
