"""How a state is resumed after an earlier resume of it that did not complete."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from session_middleware._turns.resume import StateFacts, plan, unanswered
from session_middleware.effects import UNKNOWN_TEXT
from session_middleware.stores.records import CallRecord, JournalEntry

USER = {"role": "user", "content": "refund"}


def call(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "pay", "arguments": "{}"}


def output(call_id: str, text: Any = "paid") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def entry(call_id: str, answer: Any = None) -> JournalEntry:
    state: Any = "unknown" if answer is None else "done"
    record = CallRecord(call_id, "pay", "key", state, datetime(2026, 1, 1, tzinfo=UTC))
    return JournalEntry(2, 0, record, None, None if answer is None else json.dumps(answer))


def facts(*pending: str, known: tuple[str, ...] = (), answered: tuple[str, ...] = ()) -> StateFacts:
    return StateFacts(pending, frozenset({*pending, *known}), frozenset(answered))


def test_a_first_resume_is_left_to_the_sdk() -> None:
    """Nothing has happened since the run was parked."""
    stored = [USER, call("a"), call("b"), output("b")]
    assert plan(facts("a", known=("b",), answered=("b",)), stored, [], "tell", None).way == "resume"


def test_a_run_whose_calls_are_not_stored_yet_is_left_to_the_sdk() -> None:
    """A guardrail may hold back all but the input until the run is over."""
    assert plan(facts("a"), [USER], [], "tell", None).way == "resume"


def test_a_state_that_knows_all_outputs_is_left_to_the_sdk() -> None:
    """The live state of a resume that failed after its tools."""
    stored = [USER, call("a"), output("a")]
    assert plan(facts(known=("a",), answered=("a",)), stored, [], "tell", None).way == "resume"


def test_a_state_older_than_the_stored_outputs_continues_behind_them() -> None:
    """Its approved tool ran in an earlier resume."""
    made = plan(facts("a"), [USER, call("a"), output("a")], [], "tell", None)
    assert (made.way, made.items) == ("continue", [])


def test_an_output_that_only_the_journal_has_is_stored_first() -> None:
    """The process stopped between the tool's end and the hand-over."""
    made = plan(facts("a"), [USER, call("a")], [entry("a", output("a"))], "tell", None)
    assert (made.way, made.items) == ("continue", [output("a")])


def test_a_call_that_did_not_end_is_told() -> None:
    """Unless the tool may run again: then the state is resumed as it is."""
    stored = [USER, call("a")]
    made = plan(facts("a"), stored, [entry("a")], "tell", None)
    assert (made.way, made.items) == ("continue", [output("a", UNKNOWN_TEXT)])
    assert [one.call_id for one in made.unknown] == ["a"]
    assert plan(facts("a"), stored, [entry("a")], "rerun", None).way == "resume"
    assert plan(facts("a"), stored, [entry("a")], "tell", ["pay"]).way == "resume"


def test_calls_that_are_left_run_and_the_others_are_settled() -> None:
    """One of two approved calls ended before; an output that is no text is given as JSON."""
    stored = [USER, call("a"), call("b")]
    made = plan(facts("a", "b"), stored, [entry("a", output("a", [{"x": 1}]))], "tell", None)
    assert (made.way, made.outputs) == ("settle", {"a": '[{"x": 1}]'})
    made = plan(facts("a", "b"), [*stored, output("b")], [entry("a")], "rerun", None)
    assert (made.way, made.outputs) == ("settle", {"b": "paid"})


def test_a_turn_that_went_on_continues_where_it_was() -> None:
    """The earlier resume had called the model again, whose calls the state does not know."""
    stored = [USER, call("a"), output("a"), call("c"), output("c")]
    assert plan(facts("a"), stored, [], "tell", None).way == "continue"
    done = facts(known=("a",), answered=("a",))
    journal = [entry("a", output("a")), entry("c", output("c"))]
    assert plan(done, stored, journal, "tell", None).way == "continue"


def test_other_runs_of_the_turn_do_not_count() -> None:
    """Two runs of one turn may wait at the same time; each is resumed by itself."""
    stored = [USER, call("a"), USER, call("b"), output("b")]
    other = [replace(entry("b", output("b")), run=3), replace(entry("d"), run=3)]
    assert plan(facts("a"), stored, other, "tell", None).way == "resume"


def test_the_outer_call_of_a_nested_agent_counts_as_one() -> None:
    """The pending call is not among the turn's; the call of the agent used as a tool is."""
    stored = [USER, call("outer")]
    state = facts("inner", known=("outer",))
    assert plan(state, stored, [], "tell", None).way == "resume"
    made = plan(state, stored, [entry("outer")], "tell", None)
    assert (made.way, made.items) == ("continue", [output("outer", UNKNOWN_TEXT)])
    assert [item["call_id"] for item in unanswered(stored, ["inner"])] == ["outer"]
    both = facts("inner", "a", known=("outer",))
    made = plan(both, [USER, call("outer"), call("a")], [entry("outer")], "tell", None)
    assert (made.way, made.outputs["inner"]) == ("settle", UNKNOWN_TEXT)
