"""The journal of a turn: keys, attempts and states of its calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from session_middleware._sdk.tools import ModelCall
from session_middleware._turns.journal import Journal, scope_of
from session_middleware.stores.records import JournalEntry


def model_call(call_id: str = "c1", name: str = "charge", arguments: str = "{}") -> ModelCall:
    return ModelCall(call_id, name, arguments)


def begun(journal: Journal, *calls: ModelCall | None, run: int = 1) -> list[JournalEntry]:
    return journal.respond(run, calls, [json.dumps({"call": str(one)}) for one in calls])


@pytest.fixture
def journal() -> Journal:
    made = Journal()
    made.begin(scope_of("s", "k", 1))
    return made


def call_items(*call_ids: str) -> list[dict[str, Any]]:
    return [{"type": "function_call", "call_id": call_id} for call_id in call_ids]


def outputs(*call_ids: str) -> list[dict[str, Any]]:
    return [{"type": "function_call_output", "call_id": call_id} for call_id in call_ids]


def keys(entries: list[JournalEntry]) -> list[str]:
    return [entry.call.key for entry in entries if entry.call is not None]


def test_equal_calls_of_a_turn_have_keys_of_their_own(journal: Journal) -> None:
    """Two equal calls are two effects, whether in one response or in two."""
    first, second = keys(begun(journal, model_call("c1"), model_call("c2")))
    (third,) = keys(begun(journal, model_call("c3")))
    assert len({first, second, third}) == 3


def test_a_turn_that_is_made_again_gives_the_same_keys() -> None:
    """By its idempotency key, whatever the number of the turn and the ids of the calls."""
    made = []
    for turn, call_id in ((1, "a"), (7, "b")):
        journal = Journal()
        journal.begin(scope_of("s", "k", turn))
        made.append(keys(begun(journal, model_call(call_id), model_call(call_id + "2"))))
    assert made[0] == made[1]


def test_turns_without_a_key_differ_by_their_number() -> None:
    """Without an idempotency key another turn is another effect."""
    assert scope_of("s", None, 1) != scope_of("s", None, 2)
    assert scope_of("s", "1", 1) != scope_of("s", None, 1)


def test_a_repeated_unknown_call_takes_its_key_and_counts_the_attempt(journal: Journal) -> None:
    """Also where an equal call that ended stands before it."""
    done, unknown = begun(journal, model_call("c1"), model_call("c2"))
    ended = journal.end(1, "c1", "{}")
    assert ended is not None
    again = Journal()
    again.begin(scope_of("s", "k", 2), [ended, unknown])
    repeated, another = begun(again, model_call("x1"), model_call("x2"), run=2)
    assert unknown.call is not None
    assert keys([repeated]) == keys([unknown])
    assert repeated.call is not None
    assert repeated.call.attempt == 2
    assert another.call is not None
    assert another.call.attempt == 1
    assert another.call.key not in keys([done, unknown])


def test_what_began_in_an_earlier_attempt_is_unknown(journal: Journal) -> None:
    """Nobody saw its end."""
    (entry,) = begun(journal, model_call())
    again = Journal()
    again.begin(scope_of("s", "k", 2), [entry])
    found = again.find("c1")
    assert found is not None
    assert found.state == "unknown"


@pytest.mark.parametrize(("raised", "state"), [(True, "failed"), (False, "unknown")])
def test_a_run_that_stops_settles_its_calls(journal: Journal, raised: bool, state: Any) -> None:
    """Only those that had not ended; a cancelled tool is unknown, one that raised has failed."""
    begun(journal, model_call("c1"), model_call("c2", "mail"))
    journal.end(1, "c2", "{}")
    journal.stop(1, raised=raised)
    assert [entry.call.state for entry in journal.left(1) if entry.call] == [state, "done"]


def test_of_several_tools_at_work_nobody_knows_which_raised(journal: Journal) -> None:
    """The SDK cancels the others, whose outcomes are unknown."""
    begun(journal, model_call("c1"), model_call("c2", "mail"))
    journal.stop(1, raised=True)
    states = [entry.call.state for entry in journal.left(1) if entry.call]
    assert states == ["unknown", "unknown"]


def test_items_that_were_handed_over_take_the_entries_place(journal: Journal) -> None:
    """A pair that was handed over leaves no text; the call of a tool that raised keeps its own."""
    begun(journal, None, model_call("c1"), model_call("c2", "mail"))
    journal.end(1, "c2", '{"output": 1}')
    changed = journal.handed_over(1, [*call_items("c2"), *outputs("c2")])
    assert [entry.call and entry.call.call_id for entry in changed] == [None, "c2"]
    assert {(entry.item, entry.output) for entry in changed} == {(None, None)}
    assert [entry.call.call_id for entry in journal.left(1) if entry.call] == ["c1"]


def test_a_call_that_waits_for_approval_never_began(journal: Journal) -> None:
    """It is handed over without an output, and begins when the run is resumed."""
    begun(journal, model_call("c1"), model_call("c2", "mail"))
    journal.end(1, "c2", "{}")
    journal.handed_over(1, [*call_items("c1", "c2"), *outputs("c2")])
    assert [entry.call.call_id for entry in journal.entries(texts=False) if entry.call] == ["c2"]
    assert journal.start(2, model_call("c1"), "{}") is not None
    assert journal.start(2, model_call("c1"), "{}") is None


def test_calls_inside_an_agent_as_tool_have_keys_derived_from_the_outer_call(
    journal: Journal,
) -> None:
    """Equal inner calls differ; the same inner call keeps its key."""
    first = journal.inner("outer", model_call("i1"))
    second = journal.inner("outer", model_call("i2"))
    assert first != second
    assert journal.inner("outer", model_call("i1")) == first
    assert journal.inner("other", model_call("i1")) != first


def test_entries_without_texts_are_calls_only(journal: Journal) -> None:
    """A record tells the calls and no word of theirs."""
    begun(journal, None, model_call())
    (entry,) = journal.entries(texts=False)
    assert entry.item is None
    assert len(journal.entries(texts=True)) == 2


def test_a_journal_that_begins_anew_knows_nothing_of_before(journal: Journal) -> None:
    """As a turn whose acquiring was tried again: keys are given as for the first time."""
    assert not journal
    (first,) = begun(journal, model_call())
    assert journal
    journal.stop(1, raised=False)
    journal.begin(scope_of("s", "k", 1))
    assert not journal
    (again,) = begun(journal, model_call("x1"))
    assert keys([again]) == keys([first])
    assert again.call is not None
    assert again.call.attempt == 1


def test_keys_stay_the_same_in_later_versions() -> None:
    """A provider that was given a key is given the same one when the turn is made again."""
    journal = Journal()
    journal.begin(scope_of("säule", "schlüssel", 3))
    entries = begun(journal, model_call("c1", "zahlen", '{"für": "Ä"}'))
    entries += begun(journal, model_call("c2", "zahlen", '{"für": "Ä"}'))
    assert keys(entries) == [
        "0f62cc68b11e76f17fad74f2436fd0d5",
        "b3bf22c8006761e76a2296e628faaee6",
    ]


def test_a_run_that_stops_settles_no_other_runs_calls(journal: Journal) -> None:
    """And only a call that failed has an end."""
    begun(journal, model_call("c1"))
    begun(journal, model_call("c2", "mail"), run=2)
    journal.stop(2, raised=True)
    states = {run: journal.left(run)[0].call for run in (1, 2)}
    assert [(call.state, call.ended_at is None) for call in states.values() if call] == [
        ("begun", True),
        ("failed", False),
    ]
    journal.stop(1, raised=False)
    (left,) = journal.left(1)
    assert left.call is not None
    assert (left.call.state, left.call.ended_at) == ("unknown", None)


def test_a_call_whose_output_is_stored_is_not_left(journal: Journal) -> None:
    """Another process may have stored it; what stands beside the calls is left."""
    begun(journal, None, model_call("c1"), model_call("c2", "mail"))
    left = journal.left(1, [*call_items("c1", "c2"), *outputs("c1")])
    assert [entry.call and entry.call.call_id for entry in left] == [None, "c2"]


def test_what_the_model_was_told_has_no_text_any_more(journal: Journal) -> None:
    """Of this run alone; a call that it was not told of keeps its text."""
    begun(journal, None, model_call("c1"), model_call("c2", "mail"))
    begun(journal, None, model_call("c1"), run=2)
    journal.told(1, {"c1"})
    assert [entry.call and entry.call.call_id for entry in journal.left(1)] == ["c2"]
    assert len(journal.left(2)) == 2
    assert journal.find("c1") is not None


def test_the_newest_call_of_an_id_is_found(journal: Journal) -> None:
    """Whatever other calls there are; none, if the id is unknown."""
    begun(journal, model_call("c1"), None, model_call("c2", "mail"))
    begun(journal, model_call("c1", "ship"), run=2)
    found = [journal.find(call_id) for call_id in ("c1", "c2", "c3")]
    assert [call and call.name for call in found] == ["ship", "mail", None]


def test_only_a_call_that_is_at_work_ends(journal: Journal) -> None:
    """Once; and none that this run has not begun."""
    begun(journal, model_call("c1"))
    assert journal.end(2, "c1", "{}") is None
    assert journal.end(1, "c2", "{}") is None
    assert journal.end(1, "c1", "{}") is not None
    assert journal.end(1, "c1", "{}") is None


def test_another_runs_items_change_no_entry(journal: Journal) -> None:
    """An entry whose text has gone already is not changed again either."""
    begun(journal, None, model_call("c1"))
    assert journal.handed_over(2, [*call_items("c1"), *outputs("c1")]) == []
    assert len(journal.handed_over(1, [*call_items("c1"), *outputs("c1")])) == 2
    assert journal.handed_over(1, [*call_items("c1"), *outputs("c1")]) == []
