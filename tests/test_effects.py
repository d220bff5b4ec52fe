"""What a run that is made again is given of the calls of the attempt before."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware.effects import (
    UNKNOWN_TEXT,
    base_of,
    continuation,
    key_of,
    may_rerun,
    output_for,
    unknown_calls,
    without_stored,
)
from session_middleware.history import check
from session_middleware.pairs import CALL_OUTPUTS
from session_middleware.stores.records import CallRecord, JournalEntry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USER = {"role": "user", "content": "Charge me"}


def call(name: str = "charge", call_id: str = "c1", kind: str = "function_call") -> dict[str, Any]:
    return {"type": kind, "call_id": call_id, "name": name, "arguments": '{"n": 1}'}


def output(text: str = "ok", call_id: str = "c1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def entry(place: int, item: dict[str, Any], answer: dict[str, Any] | None = None) -> JournalEntry:
    record = None
    if "call_id" in item:
        state: Any = "unknown" if answer is None else "done"
        record = CallRecord(item["call_id"], item.get("name", "tool"), "key", state, NOW)
    text = None if answer is None else json.dumps(answer)
    return JournalEntry(1, place, record, json.dumps(item), text)


def test_a_call_that_ended_keeps_its_output_and_an_unknown_one_is_told() -> None:
    """The response comes first, then the outputs; the text for an unknown call has no content."""
    reasoning = {"type": "reasoning", "id": "r", "summary": []}
    entries = [
        entry(0, reasoning),
        entry(1, call("mail", "c1"), output("sent", "c1")),
        entry(2, call("charge", "c2")),
    ]
    items = continuation(entries, "tell", None)
    assert items == [
        reasoning,
        call("mail", "c1"),
        call("charge", "c2"),
        output("sent", "c1"),
        output(UNKNOWN_TEXT, "c2"),
    ]
    assert check([USER, *items]) == []


def test_a_call_that_may_run_again_is_left_for_the_model_to_make_again() -> None:
    """With no call left, nothing of the response is: the run begins anew."""
    entries = [entry(0, call("mail", "c1"), output("sent", "c1")), entry(1, call("charge", "c2"))]
    assert continuation(entries, "rerun", None) == [call("mail", "c1"), output("sent", "c1")]
    assert continuation(entries, "tell", {"charge"}) == [call("mail", "c1"), output("sent", "c1")]
    assert continuation(entries[1:], "rerun", None) == []


def test_calls_that_nobody_allowed_to_run_again_are_unknown() -> None:
    """A call with an output is known, and so is one that ``rerun`` names."""
    entries = [entry(0, call("mail", "c1"), output("sent", "c1")), entry(1, call("charge", "c2"))]
    assert [one.name for one in unknown_calls(entries, "raise", None)] == ["charge"]
    assert unknown_calls(entries, "raise", ["charge"]) == []
    assert unknown_calls(entries, "raise", lambda name: name == "charge") == []
    assert may_rerun("charge", "rerun", None)


def test_an_entry_whose_item_was_stored_is_not_told_again() -> None:
    """The items of a batch that the SDK handed over take the journal's place."""
    stored = replace(entry(0, call()), item=None)
    assert continuation([stored], "tell", None) == []


def test_what_is_stored_is_not_stored_again() -> None:
    """A call is known by its id, reasoning by its own, other items as a whole."""
    thought, other = ({"type": "reasoning", "id": f"rs_{n}", "summary": []} for n in (1, 2))
    nameless = {"type": "reasoning", "summary": []}
    made = [thought, nameless, call(call_id="c1"), call(call_id="c2"), output(call_id="c2")]
    assert without_stored(made, [USER]) == made
    assert without_stored(made, [USER, other, call(call_id="c1")]) == [thought, nameless, *made[3:]]
    assert without_stored(made, [{**thought, "status": None}, nameless]) == made[2:]


@pytest.mark.parametrize("kind", sorted(CALL_OUTPUTS))
def test_each_kind_of_call_is_told_in_its_own_kind_of_output(kind: str) -> None:
    """Some calls have no output that could be a text: these are left out.

    Every output is one that repair leaves at its call.
    """
    answer = output_for(call(kind=kind), "text")
    if kind in ("computer_call", "tool_search_call", "program"):
        assert answer is None
    else:
        assert answer is not None
        assert answer["type"] == CALL_OUTPUTS[kind]
        assert "text" in json.dumps(answer)
        assert check([call(kind=kind), answer]) == []


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.randoms())
def test_a_key_does_not_depend_on_the_order_of_the_arguments(
    arguments: dict[str, Any], random: Any
) -> None:
    """A provider that writes equal arguments in another order or spacing means the same call."""
    names = list(arguments)
    random.shuffle(names)
    shuffled = json.dumps({name: arguments[name] for name in names}, indent=1)
    assert base_of("t", json.dumps(arguments)) == base_of("t", shuffled)


def test_keys_differ_by_turn_tool_arguments_and_ordinal() -> None:
    """Arguments that are no JSON count as they are."""
    keys = {
        key_of(scope, base_of(name, arguments), ordinal)
        for scope in ("s1", "s2")
        for name in ("a", "b")
        for arguments in ("{}", '{"n": 1}', "no json")
        for ordinal in (0, 1)
    }
    assert len(keys) == 24
    assert all(len(key) == 32 for key in keys)
