"""Beside other tracing libraries: one trace per turn, with their spans in it, and no complaint.

Each library has an environment of its own, in which ``scenario.py`` makes turns of three sessions
at once: Alice's (a tool, an approval), Bob's (streams), and Carol's inside a trace of the SDK that
the application began.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.environments import LIBRARIES, output_of, python_with

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]  # most of it goes into installing

KEYS = ("session.id", "gen_ai.conversation.id")


@dataclass
class Seen:
    """What was exported where one library was installed."""

    library: str
    spans: list[dict[str, Any]]
    sdk_traces: list[dict[str, Any]]
    stored: dict[str, int]
    complaints: list[str]

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The root spans of turns."""
        return [span for span in self.ours if span["name"].startswith("session_turn ")]

    @property
    def ours(self) -> list[dict[str, Any]]:
        """Every span of this package."""
        return [span for span in self.spans if span["scope"] == "session_middleware"]

    def within(self, turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every span under this one."""
        for span in self.spans:
            if span["parent"] == turn["id"]:
                yield span
                yield from self.within(span)

    def turn(self, session_id: str, number: int, outcome: str = "completed") -> dict[str, Any]:
        """The root of one turn."""
        (found,) = [turn for turn in self.turns if told(turn) == (session_id, number, outcome)]
        return found


def told(turn: dict[str, Any]) -> tuple[Any, ...]:
    """Session, number and outcome of a turn."""
    keys = ("session.id", "session_middleware.turn", "session_middleware.outcome")
    return tuple(turn["attributes"][key] for key in keys)


@pytest.fixture(scope="module", params=LIBRARIES)
def seen(request: pytest.FixtureRequest) -> Seen:
    """The scenario, beside one library after the other."""
    library: str = request.param
    python = python_with(library, LIBRARIES[library])
    printed = output_of(python, Path(__file__).with_name("scenario.py"), library)
    reported = json.loads(printed)
    print(f"{LIBRARIES[library]} {reported.pop('version')}")
    return Seen(library, **reported)


def test_every_turn_is_told_once(seen: Seen) -> None:
    """Each turn has one root; one that waited for approval has a second, where it went on."""
    assert Counter(map(told, seen.turns)) == Counter(
        [
            ("alice", 1, "completed"),
            ("alice", 2, "awaiting_approval"),
            ("alice", 2, "completed"),
            ("bob", 1, "completed"),
            ("bob", 2, "completed"),
            ("carol", 1, "completed"),
            ("carol", 2, "completed"),
        ]
    )
    assert {span["status"] for span in seen.ours} == {"UNSET"}


def test_no_operation_is_told_twice(seen: Seen) -> None:
    """One load a turn, two where it is resumed; as many records stored as the memory has."""
    stored: Counter[str] = Counter()
    loads: Counter[str] = Counter()
    for span in seen.ours:
        session_id = span["attributes"]["session.id"]
        if span["name"] in ("create_memory", "acquire_session", "end_turn"):
            stored[session_id] += span["attributes"].get("gen_ai.memory.record.count", 0)
        elif span["name"] == "search_memory" and span["parent"] is not None:  # in a turn
            loads[session_id] += 1
    assert stored == seen.stored
    assert loads == {"alice": 4, "bob": 2, "carol": 2}


def test_a_turn_is_one_trace(seen: Seen) -> None:
    """The root of a turn is the root of its trace, and all else in that trace is under it."""
    turns = [turn for turn in seen.turns if told(turn)[0] != "carol"]
    assert len({turn["trace"] for turn in turns}) == len(turns)
    for turn in turns:
        assert turn["parent"] is None
        in_trace = {span["id"] for span in seen.spans if span["trace"] == turn["trace"]}
        assert in_trace - {turn["id"]} == {span["id"] for span in seen.within(turn)}


def test_their_spans_are_in_the_turns_trace(seen: Seen) -> None:
    """What the library traces of a run hangs under the turn, streamed or not, resumed or not."""
    traced = {
        told(turn)
        for turn in seen.turns
        if any(span["scope"] != "session_middleware" for span in seen.within(turn))
    }
    expected = {told(turn) for turn in seen.turns if told(turn)[0] != "carol"}
    if seen.library == "openinference":
        # It traces nothing of a run that is resumed in the same process, with us or without.
        expected -= {("alice", 2, "completed")}
    assert {turn for turn in traced if turn[0] != "carol"} == expected


def test_the_session_is_on_every_span(seen: Seen) -> None:
    """Both keys are on all of ours, and with SessionSpanProcessor on all of theirs in a turn."""
    for turn in seen.turns:
        session_id = told(turn)[0]
        for span in (turn, *seen.within(turn)):
            found = [span["attributes"].get(key) for key in KEYS]
            if session_id == "carol" and span["scope"] != "session_middleware":
                # What a library says itself is left alone, such as the group as conversation.
                assert found[0] == "carol"
                assert found[1] in ("carol", "thread-7")
            else:
                assert found == [session_id, session_id]


def test_the_sdks_traces_have_the_session_as_their_group(seen: Seen) -> None:
    """group_id and metadata name the session and the turn's trace; an outer trace is unchanged."""
    groups = Counter(trace["group_id"] for trace in seen.sdk_traces)
    assert groups == {"alice": 2, "bob": 2, "thread-7": 1}
    turns = {turn["trace"]: told(turn)[0] for turn in seen.turns}
    for trace in seen.sdk_traces:
        metadata = trace.get("metadata") or {}
        if trace["group_id"] == "thread-7":
            assert metadata == {}
        else:
            assert metadata["session_id"] == trace["group_id"]
            assert turns[metadata["otel_trace_id"]] == trace["group_id"]


def test_inside_a_trace_of_the_applications(seen: Seen) -> None:
    """The turns hang under the library's span of it, where the library makes that the current."""
    outside = [
        span
        for span in seen.spans
        if span["parent"] is None and span["scope"] != "session_middleware"
    ]
    (conversation,) = outside
    parents = {seen.turn("carol", number)["parent"] for number in (1, 2)}
    elsewhere = seen.library in ("openinference", "traceloop")  # the runs, without their turns
    assert parents == ({None} if elsewhere else {conversation["id"]})


def test_nobody_complains(seen: Seen) -> None:
    """No library logs a warning or an error, none warns: contexts end where they began."""
    assert seen.complaints == []
