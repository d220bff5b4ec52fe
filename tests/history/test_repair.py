"""Faults of a history and their repair, item by item and for arbitrary histories."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware import repair as _repair
from session_middleware.history import Fault, Receipt, check, repair
from tests.support.histories import (
    ARBITRARY,
    Item,
    almost_good_histories,
    assistant,
    by,
    call,
    good_histories,
    output,
    program,
    program_output,
    reasoning,
    search,
    texts,
    user,
)

# --- properties ----------------------------------------------------------------------------


@given(ARBITRARY)
def test_a_repaired_history_has_no_faults(history: list[Any]) -> None:
    """Whatever a history was like, what repair returns is good, and repairing it does nothing."""
    repaired, _ = repair(history)
    assert check(repaired) == []
    again, receipt = repair(repaired)
    assert not receipt
    assert again == repaired


@given(ARBITRARY)
def test_no_message_is_lost_or_moved(history: list[Any]) -> None:
    """All text stays, word for word and in its order."""
    assert texts(repair(history)[0]) == texts(history)


@given(ARBITRARY)
def test_a_repair_is_deterministic_and_leaves_the_given_items_alone(history: list[Any]) -> None:
    """The same history is repaired the same way, and its items are not changed in place."""
    before = copy.deepcopy(history)
    assert repair(history) == repair(copy.deepcopy(history))
    assert history == before


@given(ARBITRARY)
def test_the_receipt_counts_the_faults(history: list[Any]) -> None:
    """Check and repair speak of the same faults, each at a position in the history."""
    faults = check(history)
    _, receipt = repair(history)
    assert sum(receipt.counts.values()) == len(faults)
    assert set(receipt.counts) == {fault.kind for fault in faults}
    assert faults == sorted(faults)
    assert all(0 <= fault.position < len(history) for fault in faults)


@given(st.one_of(good_histories(), ARBITRARY))
def test_a_good_history_comes_back_as_it_is(history: list[Any]) -> None:
    """Without a fault nothing is touched: the same objects in the same order."""
    repaired, receipt = repair(history)
    if not check(history):
        assert not receipt
        assert len(repaired) == len(history)
        assert all(one is other for one, other in zip(repaired, history, strict=True))


@given(good_histories())
def test_what_the_sdk_stores_has_no_faults(history: list[Item]) -> None:
    """Turns with reasoning, parallel calls, hosted calls, repeated message ids and approvals."""
    assert check(history) == []


@given(st.one_of(good_histories(), ARBITRARY, almost_good_histories()))
def test_the_quick_look_agrees_with_the_close_one(history: list[Any]) -> None:
    """With and without the quick pass a repair returns the same objects and finds the same."""
    quickly = repair(history), check(history)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_repair, "_is_plainly_good", lambda items: False)
        closely = repair(history), check(history)
    assert quickly == closely
    if _repair._is_plainly_good(history):
        assert check(history) == []
        assert all(map(operator.is_, quickly[0][0], closely[0][0]))


@given(good_histories())
def test_good_histories_need_only_the_quick_look(history: list[Item]) -> None:
    """The usual case is settled by one pass."""
    assert _repair._is_plainly_good(history)


# --- fault by fault ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "mended", "counts"),
    [
        pytest.param(
            [user(), "text", None, [call("a")], {"type": ["a"]}, call({"a": 1}), assistant()],
            [user(), assistant()],
            {"not_an_item": 5},
            id="entries that are no items are dropped",
        ),
        pytest.param(
            [output("a"), user(), {"type": "mcp_approval_response", "approval_request_id": "r"}],
            [user()],
            {"orphan_output": 2},
            id="an output without a call is dropped, and so is an approval without a request",
        ),
        pytest.param(
            [call("a"), {"type": "shell_call_output", "call_id": "a"}],
            [call("a")],
            {"orphan_output": 1},
            id="an output answers only calls of its own type",
        ),
        pytest.param(
            [call("a"), output("a", "first"), output("a", "second")],
            [call("a"), output("a", "first")],
            {"orphan_output": 1},
            id="a second output of one call is dropped",
        ),
        pytest.param(
            [reasoning() | by("p"), assistant()],
            [assistant()],
            {"lost_program": 1},
            id="reasoning of a program that is not there is dropped",
        ),
        pytest.param(
            [user(), output("a"), call("a"), assistant()],
            [user(), call("a"), output("a"), assistant()],
            {"misplaced_output": 1},
            id="an output before its call moves behind it",
        ),
        pytest.param(
            [output("a"), user(), call("a")],
            [user(), call("a")],
            {"orphan_output": 1},
            id="an output from before the question is not the answer to a call after it",
        ),
        pytest.param(
            [call("a"), user(), output("a"), assistant()],
            [call("a"), output("a"), user(), assistant()],
            {"misplaced_output": 1},
            id="an output after a user message moves up to its call",
        ),
        pytest.param(
            [call("a"), call("b"), reasoning(), assistant(), user(), output("b"), output("a")],
            [call("a"), call("b"), output("b"), output("a"), reasoning(), assistant(), user()],
            {"misplaced_output": 2},
            id="calls made at once stay together when their outputs move up",
        ),
        pytest.param(
            [user("A"), user("B"), call("a"), output("a"), call("b"), output("b")],
            [user("A"), user("B"), call("a"), output("a"), call("b"), output("b")],
            {},
            id="two questions in a row are no fault",
        ),
        pytest.param(
            [user(), reasoning("1"), reasoning("2"), user(), reasoning("3"), assistant()],
            [user(), user(), reasoning("3"), assistant()],
            {"dangling_reasoning": 2},
            id="reasoning that a user message follows is dropped",
        ),
        pytest.param(
            [user(), call("a"), reasoning("1"), output("a"), reasoning("2")],
            [user(), call("a"), output("a")],
            {"dangling_reasoning": 2},
            id="reasoning that an output or nothing follows is dropped",
        ),
        pytest.param(
            [reasoning(), output("a")],
            [],
            {"dangling_reasoning": 1, "orphan_output": 1},
            id="reasoning may dangle once an orphan is gone",
        ),
        pytest.param(
            [user(), reasoning(), call("a")],
            [user(), reasoning(), call("a")],
            {},
            id="a pending call and its reasoning are left to the SDK",
        ),
        pytest.param(
            [
                search("ws_1"),
                user(),
                search("ws_1"),
                reasoning("rs_1"),
                reasoning("rs_1"),
                search("w"),
            ],
            [
                search("ws_1"),
                user(),
                {"type": "web_search_call", "status": "completed"},
                reasoning("rs_1"),
                {"type": "reasoning", "summary": []},
                search("w"),
            ],
            {"repeated_id": 2},
            id="an item whose id was there before loses it",
        ),
        pytest.param(
            [assistant("1", id="msg_1"), assistant("2", id="msg_1"), assistant("3", id="m")] * 2,
            [
                assistant("1", id="msg_1"),
                assistant("2"),
                assistant("3", id="m"),
                assistant("1"),
                assistant("2"),
                assistant("3", id="m"),
            ],
            {"repeated_id": 3},
            id="of messages only the ids of the Responses API count",
        ),
        pytest.param(
            [{"type": "item_reference", "id": "x"}, {"id": "x"}, search("x")] * 1,
            [{"type": "item_reference", "id": "x"}, {"id": "x"}, search("x")],
            {},
            id="a reference is not the item it means",
        ),
        pytest.param(
            [program("p"), call("a", **by("p")), output("a", **by("p")), program_output("p")],
            [program("p"), call("a", **by("p")), output("a", **by("p")), program_output("p")],
            {},
            id="what a program called is good behind it",
        ),
        pytest.param(
            [
                user(),
                call("a", **by("p")),
                output("a", **by("p")),
                program("p"),
                search("w") | by("q"),
            ],
            [user(), program("p")],
            {"lost_program": 3},
            id="what was made by a program that is not before it is dropped",
        ),
        pytest.param(
            [program("p"), call("a", **by("p")), output("a"), call("b"), output("b", **by("p"))],
            [program("p"), call("a", **by("p")), output("a", **by("p")), call("b"), output("b")],
            {"wrong_caller": 2},
            id="an output is of the program that made its call",
        ),
        pytest.param(
            [{"type": "tool_search_output", "tools": []}, {"type": "tool_search_call"}],
            [{"type": "tool_search_call"}, {"type": "tool_search_output", "tools": []}],
            {"misplaced_output": 1},
            id="a hosted tool search has no ids and is paired by order",
        ),
    ],
)
def test_a_fault_and_its_repair(
    broken: list[Any], mended: list[Item], counts: dict[str, int]
) -> None:
    """Each kind of fault is mended in its one way, and the receipt says so."""
    repaired, receipt = repair(broken)
    assert repaired == mended
    assert receipt.counts == counts


def test_call_ids_that_repeat_in_every_run_become_distinct() -> None:
    """A provider that counts its calls from 1 in each run loses no call and no output."""
    turn = [user(), call("call_1"), call("call_2"), output("call_1", "x"), output("call_2", "y")]
    repaired, receipt = repair(turn + turn + [user(), call("call_3"), output("call_3")])
    assert [item["call_id"] for item in repaired if "call_id" in item] == [
        *("call_1_1", "call_2_1", "call_1_1", "call_2_1"),
        *("call_1_2", "call_2_2", "call_1_2", "call_2_2"),
        *("call_3", "call_3"),
    ]
    assert receipt.counts == {"repeated_call_id": 2}


def test_parallel_calls_of_one_id_are_answered_in_their_order() -> None:
    """Without ids to go by, the first output is the first call's."""
    repaired, _ = repair([call("", "f"), call("", "g"), output("", "of f"), output("", "of g")])
    assert [(item["call_id"], item.get("name") or item["output"]) for item in repaired] == [
        ("_1", "f"),
        ("_2", "g"),
        ("_1", "of f"),
        ("_2", "of g"),
    ]


def test_a_call_that_was_given_up_does_not_take_the_output_of_a_later_one() -> None:
    """Of two calls with one id the output belongs to the one of its own turn."""
    repaired, _ = repair(
        [user(), call("c", "given up"), user(), call("c", "answered"), output("c")]
    )
    assert [item.get("call_id") for item in repaired] == [None, "c_1", None, "c_2", "c_2"]


def test_a_fresh_call_id_is_no_other_fresh_one() -> None:
    """Not even where one id is exactly what another, longer one is shortened to."""
    long = [call("x" * 64), output("x" * 64)]
    shortened = repair(long * 2)[0][0]["call_id"].removesuffix("_1")
    repaired, _ = repair([*long * 2, *[call(shortened), output(shortened)] * 2])
    assert len({item["call_id"] for item in repaired}) == 4
    assert check(repaired) == []


def test_a_fresh_call_id_is_free_and_not_too_long() -> None:
    """A new id is none that the history has, and no longer than the API accepts."""
    long = "c" * 64
    pairs = [call("a"), output("a"), call("a_1"), output("a_1"), call(long), output(long)]
    repaired, _ = repair([*pairs, user(), call("a"), output("a"), call(long), output(long)])
    ids = [
        item["call_id"]
        for item in repaired
        if item["type" if "type" in item else "role"] == "function_call"
    ]
    assert ids[0:2] == ["a_2", "a_1"]
    assert ids[3] == "a_3"
    assert len(set(ids)) == len(ids)
    assert all(len(call_id) <= 64 for call_id in ids)


def test_what_a_program_made_follows_its_new_name() -> None:
    """Items of a repeated program name the one they stand behind."""
    turn = [program("p"), call("a", **by("p")), output("a", **by("p")), program_output("p"), user()]
    repaired, _ = repair(turn + turn)
    callers = [item["caller"]["caller_id"] for item in repaired if "caller" in item]
    assert callers == ["p_1", "p_1", "p_2", "p_2"]
    programs = [
        item["call_id"] for item in repaired if item.get("type") in ("program", "program_output")
    ]
    assert programs == ["p_1", "p_1", "p_2", "p_2"]


def test_an_approval_follows_its_request() -> None:
    """The response and the hosted call of a repeated request name the one they stand behind."""
    turn = [
        {"type": "mcp_approval_request", "id": "r"},
        {"type": "mcp_approval_response", "approval_request_id": "r", "approve": True},
        {"type": "mcp_call", "approval_request_id": "r", "output": "sent"},
    ]
    repaired, _ = repair(turn + turn)
    assert [item.get("approval_request_id") or item["id"] for item in repaired] == (
        ["r_1"] * 3 + ["r_2"] * 3
    )


def test_faults_are_listed_with_their_positions() -> None:
    """A fault says where in the history it is and what is wrong."""
    history = [user(), None, reasoning(), user(), output("a"), call("b"), call("b")]
    assert check(history) == [
        Fault(1, "not_an_item"),
        Fault(2, "dangling_reasoning"),
        Fault(4, "orphan_output"),
        Fault(6, "repeated_call_id"),
    ]


def test_a_receipt_says_what_was_done_and_nothing_of_the_content() -> None:
    """An empty receipt is false; a full one reads as counts."""
    _, receipt = repair([output("secret", "secret"), reasoning("secret"), output("secret")])
    assert receipt
    assert str(receipt) == "dangling_reasoning: 1, orphan_output: 2"
    assert not Receipt()
    assert str(Receipt()) == ""
