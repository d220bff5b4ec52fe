"""Turns, the windows that choose among them, and what a run that did not complete left behind."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware.errors import InvalidOption
from session_middleware.history import (
    MOST,
    LastItems,
    LastTurns,
    TokenBudget,
    Turn,
    apply_windows,
    digest,
    holds_output,
    last_items,
    last_turns,
    size_and_digest,
    split,
    text_of,
    token_budget,
    up_to_last_output,
)
from tests.support.histories import assistant, call, output, user


def turns_of(*sizes: int, first: int = 1) -> list[Turn]:
    """Turns numbered from ``first`` with that many items each."""
    return [Turn(first + at, [user()] * size) for at, size in enumerate(sizes)]


def numbers(turns: list[Turn]) -> list[int]:
    return [turn.turn for turn in turns]


@st.composite
def histories(draw: st.DrawFn) -> list[Turn]:
    """Turns with growing numbers (with gaps, as turns without items are left out) and sizes."""
    steps = draw(st.lists(st.integers(1, 4), max_size=12))
    turns, number = [], 0
    for step in steps:
        number += step
        turns.append(Turn(number, [user("x" * draw(st.integers(0, 30)))] * draw(st.integers(0, 5))))
    return turns


WINDOWS = st.one_of(
    st.builds(last_turns, st.integers(0, 8), st.integers(1, 6)),
    st.builds(last_items, st.integers(0, 12)),
    st.builds(token_budget, st.integers(0, 80)),
)


# --- windows -------------------------------------------------------------------------------


def test_last_turns_keeps_exactly_the_newest_n() -> None:
    """With a step of 1 the newest n turns are kept; fewer turns than n are all kept."""
    turns = turns_of(1, 1, 1, 1, 1)
    assert numbers(last_turns(2)(turns)) == [4, 5]
    assert numbers(last_turns(9)(turns)) == [1, 2, 3, 4, 5]
    assert last_turns(0)(turns) == []


def test_last_turns_counts_the_turns_there_are() -> None:
    """Turns left out of a history do not count: two of 3, 7, 9 are 7 and 9."""
    turns = [Turn(number, [user()]) for number in (3, 7, 9)]
    assert numbers(last_turns(2)(turns)) == [7, 9]


def test_the_cut_of_last_turns_moves_in_steps() -> None:
    """While a session grows turn by turn, the oldest turn kept changes once in ``step`` turns."""
    window = last_turns(4, step=5)
    oldest = [window(turns_of(*[1] * length))[0].turn for length in range(1, 19)]
    assert oldest == [1] * 7 + [5] * 5 + [10] * 5 + [15]


def test_no_window_asks_a_storage_for_more_than_it_can_count() -> None:
    """A number beyond all that a session can have stands for the largest of these."""
    huge = 10**30
    turns = last_turns(huge, huge)
    assert {turns.n, turns.step, last_items(huge).n, token_budget(huge).n} == {MOST}


@given(histories(), st.integers(1, 8), st.integers(1, 6))
def test_last_turns_cuts_at_a_multiple_of_its_step(turns: list[Turn], n: int, step: int) -> None:
    """The cut is the largest multiple of step up to the number of the n-th newest turn."""
    nth_newest = turns[-n].turn if len(turns) >= n else 0
    cut = max(number for number in range(nth_newest + 1) if number % step == 0)
    assert last_turns(n, step)(turns) == [turn for turn in turns if turn.turn >= cut]


def test_last_items_keeps_whole_turns() -> None:
    """A turn is kept whole or not at all, and the items together are at most n."""
    turns = turns_of(2, 3, 2)
    assert numbers(last_items(5)(turns)) == [2, 3]
    assert numbers(last_items(4)(turns)) == [3]
    assert numbers(last_items(7)(turns)) == [1, 2, 3]


def test_last_items_never_keeps_less_than_the_newest_turn() -> None:
    """A newest turn with more items than n is kept; only 0 gives no history."""
    turns = turns_of(1, 9)
    assert numbers(last_items(3)(turns)) == [2]
    assert last_items(0)(turns) == []


def test_last_items_leaves_no_gap() -> None:
    """Once a turn does not fit, no older one is kept, though it would fit."""
    assert numbers(last_items(3)(turns_of(1, 5, 1))) == [3]


def test_token_budget_counts_a_quarter_of_the_json_text_rounded_up() -> None:
    """Without a count, an item has a quarter of its JSON's characters as tokens, rounded up."""
    turns = [Turn(1, [user("älter")]), Turn(2, [user("abc")])]
    sizes = [math.ceil(len(json.dumps(turn.items[0], ensure_ascii=False)) / 4) for turn in turns]
    assert numbers(token_budget(sum(sizes))(turns)) == [1, 2]
    assert numbers(token_budget(sum(sizes) - 1)(turns)) == [2]
    assert numbers(token_budget(1)(turns)) == [2]
    assert token_budget(0)(turns) == []


def test_token_budget_counts_with_the_given_function() -> None:
    """``count`` gets one item and returns its tokens."""
    turns = [Turn(number, [user("x" * number)]) for number in (1, 2, 3)]
    window = token_budget(5, count=lambda item: len(item["content"]))
    assert numbers(window(turns)) == [2, 3]


def test_token_budget_reads_no_further_than_it_must() -> None:
    """A long history costs no more than the turns that are looked at."""
    counted: list[str] = []

    def count(item: dict[str, Any]) -> int:
        counted.append(item["content"])
        return 1

    token_budget(2, count=count)([Turn(number, [user(str(number))]) for number in range(50)])
    assert counted == ["49", "48", "47"]


@given(histories(), WINDOWS)
def test_a_window_keeps_the_newest_end_in_order(turns: list[Turn], window: Any) -> None:
    """What a window keeps is the end of what it was given, the same objects in the same order."""
    given_turns = list(turns)
    kept = window(turns)
    assert turns == given_turns
    tail = turns[len(turns) - len(kept) :]
    assert len(kept) == len(tail)
    assert all(one is other for one, other in zip(kept, tail, strict=True))


@given(histories(), WINDOWS)
def test_a_window_is_idempotent(turns: list[Turn], window: Any) -> None:
    """Applied to its own result, a window changes nothing."""
    kept = window(turns)
    assert window(kept) == kept


@given(histories(), WINDOWS)
def test_a_window_keeps_the_newest_turn_unless_it_is_of_nothing(
    turns: list[Turn], window: Any
) -> None:
    """There is a history as soon as there is a turn; a window of 0 gives none."""
    assert bool(window(turns)) == (bool(turns) and window.n > 0)


def test_windows_are_values() -> None:
    """The factories make frozen values that compare equal, so that a store can read them."""
    assert last_turns(3) == LastTurns(3, 1)
    assert last_items(3) == LastItems(3)
    assert token_budget(3) == TokenBudget(3, None)
    assert len({last_turns(3), last_turns(3, step=2), LastTurns(3)}) == 2


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: last_turns(-1), "last_turns(n=20)"),
        (lambda: last_turns(True), "last_turns(n=20)"),
        (lambda: last_turns(2.0), "last_turns(n=20)"),  # type: ignore[arg-type]
        (lambda: last_turns(2, step=0), "last_turns(n=20, step=5)"),
        (lambda: last_turns(2, step="3"), "last_turns(n=20, step=5)"),  # type: ignore[arg-type]
        (lambda: last_items(-5), "last_items(n=100)"),
        (lambda: last_items(None), "last_items(n=100)"),  # type: ignore[arg-type]
        (lambda: token_budget(-1), "token_budget(n=8000)"),
        (lambda: token_budget("9"), "token_budget(n=8000)"),  # type: ignore[arg-type]
        (lambda: token_budget(9, count=4), "a function from one item"),  # type: ignore[arg-type]
        (lambda: LastTurns(-1), "last_turns(n=20)"),
        (lambda: LastItems(False), "last_items(n=100)"),
    ],
)
def test_a_wrong_number_fails_where_it_is_written(make: Any, hint: str) -> None:
    """Negative numbers, booleans and what is no number are refused, with a correct call shown."""
    with pytest.raises(InvalidOption) as raised:
        make()
    assert hint in str(raised.value)


def test_windows_are_applied_one_after_the_other() -> None:
    """None keeps all, one window is applied, and several are applied in their order."""
    turns = turns_of(2, 2, 2, 2)
    assert apply_windows(turns, None) == turns
    assert numbers(apply_windows(turns, last_turns(3))) == [2, 3, 4]
    assert numbers(apply_windows(turns, [last_turns(3), last_items(4)])) == [3, 4]
    assert apply_windows(turns, []) == turns


def test_a_window_of_the_users_may_do_as_it_likes_with_its_list() -> None:
    """A callable that empties the list it was given does not change the caller's."""
    turns = turns_of(1, 1)

    def drop_all(given_turns: list[Turn]) -> list[Turn]:
        given_turns.clear()
        return given_turns

    assert apply_windows(turns, drop_all) == []
    assert len(turns) == 2


@pytest.mark.parametrize(
    "window", [7, [last_turns(1), 7], "last", lambda turns: None, lambda turns: [user()]]
)
def test_what_is_no_window_is_refused(window: Any) -> None:
    """A value that cannot be called, or returns no turns, is an InvalidOption that says so."""
    with pytest.raises(InvalidOption, match="window"):
        apply_windows(turns_of(1), window)


# --- flat histories ------------------------------------------------------------------------


def test_a_user_message_after_something_else_begins_a_turn() -> None:
    """Two user messages in a row are one question; what precedes the first is a turn too."""
    system = {"role": "system", "content": "s"}
    items = [system, user("1"), user("2"), assistant(), user("3"), call("c"), output("c")]
    assert split(items) == [
        [system],
        [user("1"), user("2"), assistant()],
        [user("3"), call("c"), output("c")],
    ]
    assert split([]) == []


@given(
    st.lists(
        st.one_of(
            st.sampled_from([user(), {**user(), "type": "message"}, assistant(), call("c")]),
            st.sampled_from(
                [None, "junk", 7, [], {}, {"role": "user", "type": "additional_tools"}]
            ),
        ),
        max_size=15,
    )
)
def test_turns_joined_again_are_the_flat_history(items: list[Any]) -> None:
    """No item is lost, copied or moved by splitting, whatever the entries are."""
    turns = split(items)
    joined = [item for turn in turns for item in turn]
    assert len(joined) == len(items)
    assert all(one is other for one, other in zip(joined, items, strict=True))
    assert all(turns)
    assert all(turn[0].get("role") == "user" for turn in turns[1:])


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(item: dict[str, Any]) -> None:
    """The same JSON has the same digest; another list of items has another."""
    assert digest([item]) == digest([dict(reversed(item.items()))])
    assert digest([item]) != digest([item, item])


def test_the_text_of_an_item_can_always_be_encoded() -> None:
    """Characters are kept as they are; only a lone surrogate is written as an escape."""
    assert text_of(user("ä")) == '{"role": "user", "content": "ä"}'
    assert text_of(user("\ud800")) == '{"role": "user", "content": "\\ud800"}'


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_a_history_has_the_digest_of_its_json(one: list[str], other: list[str]) -> None:
    """Equal lists have equal digests; no two lists share one by where their items end."""
    both = [[user(text) for text in texts] for texts in (one, other)]
    sizes, digests = zip(*map(size_and_digest, both), strict=True)
    assert (digests[0] == digests[1]) == (one == other)
    text = json.dumps(both[0], ensure_ascii=False, separators=(",", ":")).encode()
    assert (sizes[0], digests[0]) == (len(text), hashlib.sha256(text).hexdigest())


def test_a_lone_surrogate_has_a_digest() -> None:
    """It is written as the escape that JSON has for it."""
    text = b'[{"role":"user","content":"\\ud800"}]'
    assert size_and_digest([user("\ud800")]) == (len(text), hashlib.sha256(text).hexdigest())


# --- what a run that did not complete left behind ------------------------------------------


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([], 0),
        ([user()], 0),
        ([user(), call("c")], 0),
        ([user(), call("c"), output("c")], 3),
        ([user(), call("c"), output("c"), assistant()], 3),
        ([user(), call("c"), call("d"), output("c")], 4),
        ([user(), {"type": "tool_search_call"}, {"type": "tool_search_output"}, call("c")], 3),
        ([user(), {"type": "mcp_call", "id": "m", "output": "sent"}, assistant()], 2),
        ([user(), {"type": "mcp_call", "id": "m", "output": None}, assistant()], 0),
        ([user(), {"type": "web_search_call", "id": "w", "status": "completed"}], 0),
        ([None, "junk", {"type": ["function_call_output"]}], 0),
    ],
)
def test_a_run_is_continued_after_its_last_tool_output(items: list[Any], kept: int) -> None:
    """What a tool has done is kept with everything before it; without an output nothing is."""
    assert up_to_last_output(items) == kept
    assert holds_output(items) == (kept > 0)


@given(st.lists(st.sampled_from([user(), assistant(), call("c"), output("c")]), max_size=10))
def test_nothing_after_what_is_kept_is_a_tool_output(items: list[Any]) -> None:
    """Every output lies within the kept items, and the last of them is one."""
    kept = up_to_last_output(items)
    assert not holds_output(items[kept:])
    assert kept == 0 or holds_output(items[kept - 1 : kept])
