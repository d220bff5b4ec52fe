"""Our tables against the SDK's own types, and repaired histories through the SDK's own hands.

These tests read modules of the SDK that are not public: they are the early warning that a new
version knows types of items which this package does not.
"""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest
import typing_extensions
from agents import Agent, RunConfig, Runner
from agents.memory import SessionABC
from agents.models.fake_id import FAKE_RESPONSES_ID
from agents.run_config import CallModelData, ModelInputData
from agents.run_internal.items import (
    _TOOL_CALL_TO_OUTPUT_TYPE,
    deduplicate_input_items_preferring_latest,
)
from agents.run_internal.session_persistence import prepare_input_with_session
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from agents.tool import function_tool
from hypothesis import example, given
from openai.types.responses import ResponseOutputItem
from openai.types.responses.response_input_item_param import ResponseInputItemParam

from session_middleware.history import check, repair
from session_middleware.pairs import CALL_OUTPUTS
from session_middleware.repair import PLACEHOLDER_ID
from tests.support.histories import ARBITRARY, good_histories, texts

ANSWERS_ITSELF = {
    "file_search_call",
    "web_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_call",
    "mcp_list_tools",
}
"""Hosted tools: the item holds its own output."""

STANDS_ALONE = {
    "message",
    "reasoning",
    "compaction",
    "compaction_trigger",
    "additional_tools",
    "configuration_update",
    "item_reference",
}
APPROVAL = {"mcp_approval_request", "mcp_approval_response"}


def input_types() -> dict[str, Any]:
    """Every type of input item of the installed ``openai`` package, and its fields."""
    types: dict[str, Any] = {}
    for variant in get_args(ResponseInputItemParam):
        hints = typing_extensions.get_type_hints(variant)
        for name in _literals(hints["type"]):
            types.setdefault(name, {}).update(hints)
    return types


def output_types() -> set[str]:
    """Every type of item that a model's response may have."""
    variants = get_args(get_args(ResponseOutputItem)[0])
    return {name for each in variants for name in _literals(each.model_fields["type"].annotation)}


def _literals(hint: Any) -> set[str]:
    values = get_args(hint)
    return {
        v for value in values for v in ({value} if isinstance(value, str) else _literals(value))
    }


# --- tables --------------------------------------------------------------------------------


def test_every_type_of_item_is_known() -> None:
    """A type that a new SDK brings is first to be sorted: pair, hosted, approval, or alone."""
    known = {*CALL_OUTPUTS, *CALL_OUTPUTS.values(), *ANSWERS_ITSELF, *STANDS_ALONE, *APPROVAL}
    there = {*input_types(), *output_types()}
    assert there - known == set(), (
        f"unknown item types {sorted(there - known)}: see whether they come in pairs; "
        "if so put them into CALL_OUTPUTS, else name them at the top of this test"
    )
    assert known - there == set(), f"item types that are gone: {sorted(known - there)}"


def test_calls_and_outputs_are_paired_as_the_sdk_pairs_them() -> None:
    """The SDK prunes calls by this table; another one here would leave outputs without calls."""
    assert CALL_OUTPUTS == _TOOL_CALL_TO_OUTPUT_TYPE


def test_the_halves_of_a_pair_are_tied_by_call_id() -> None:
    """Every call and output has a call_id, except that the SDK adds it to local shell outputs."""
    types = input_types()
    without = {
        name for pair in CALL_OUTPUTS.items() for name in pair if "call_id" not in types[name]
    }
    assert without == {"local_shell_call_output"}
    assert "approval_request_id" in types["mcp_approval_response"]


def test_nothing_that_stands_alone_has_a_call_id() -> None:
    """A call id on another type would be a sign of a pair that is not in the table."""
    types = input_types()
    assert [name for name in ANSWERS_ITSELF | STANDS_ALONE if "call_id" in types[name]] == []


def test_the_placeholder_id_is_the_sdks() -> None:
    """It is not an id, so it may repeat."""
    assert PLACEHOLDER_ID == FAKE_RESPONSES_ID


# --- the SDK's preparation of a repaired history -------------------------------------------


class Given(SessionABC):
    """A session that has this history and keeps nothing; repaired when it is asked for."""

    def __init__(self, history: list[Any]) -> None:
        self.session_id = "s"
        self.history = history

    async def get_items(self, limit: int | None = None) -> list[Any]:
        return repair(self.history)[0]

    async def add_items(self, items: list[Any]) -> None:
        self.history += items

    async def pop_item(self) -> Any:
        raise AssertionError("not reached")

    async def clear_session(self) -> None:
        raise AssertionError("not reached")


def torn(items: list[Any]) -> list[Any]:
    """Outputs without their call before them, and calls that no output follows."""
    opened: dict[Any, list[Any]] = {}
    lonely: list[Any] = []
    call_types = {output: call for call, output in CALL_OUTPUTS.items()}
    for item in items:
        kind = item.get("type")
        key = (call_types.get(kind, kind), item.get("call_id"))
        if kind in CALL_OUTPUTS:
            opened.setdefault(key, []).append(item)
        elif kind in call_types:
            if opened.get(key):
                opened[key].pop()
            else:
                lonely.append(item)
    return lonely + [call for calls in opened.values() for call in calls]


def prepare(history: list[Any]) -> list[Any]:
    """What the SDK sends to the model for a new message after this history."""
    prepared, _ = asyncio.run(prepare_input_with_session("new", Given(history), None))
    assert isinstance(prepared, list)
    return list(prepared)


@given(ARBITRARY)
def test_the_sdk_keeps_every_item_of_a_repaired_history_apart(history: list[Any]) -> None:
    """The SDK's de-duplication finds nothing to merge: no pair is split, no item swallowed."""
    repaired, _ = repair(history)
    # Two references to one stored item may become one: nothing is lost with it.
    kept: list[Any] = [item for item in repaired if item.get("type") or item.get("role")]
    assert deduplicate_input_items_preferring_latest(kept) == kept


@given(ARBITRARY)
def test_what_reaches_the_model_is_paired_and_has_all_text(history: list[Any]) -> None:
    """After the SDK has pruned pending calls, each output has its call and each call its output."""
    prepared = prepare(history)
    pending_hosted = [i for i in torn(prepared) if i["type"] == "shell_call" and "caller" in i]
    assert torn(prepared) == pending_hosted  # the SDK itself lets these wait inside a program
    assert texts(prepared) == [*texts(history), ("user", "new")]


@example(
    [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"id": "msg_1"},
        {"role": "user", "content": "again"},
        {"id": "msg_1"},
    ]
)
@given(ARBITRARY)
def test_no_reasoning_reaches_the_model_without_what_it_led_to(history: list[Any]) -> None:
    """With the pending calls gone, no reasoning is left in front of nothing."""
    prepared = prepare(history)
    dangling = [fault for fault in check(prepared) if fault.kind == "dangling_reasoning"]
    assert dangling == []


@given(good_histories())
def test_the_sdk_gets_a_good_history_as_it_was_stored(history: list[Any]) -> None:
    """But for a call that waits for an approval, the model sees every item of a good history."""
    waits = bool(history) and history[-1].get("call_id") == "pending"
    seen = history[:-2] if waits else history  # without the call and what led to it
    assert prepare(history) == [*seen, {"role": "user", "content": "new"}]


# --- a provider that counts its calls from 1 in every run ----------------------------------


def repaired_input(data: CallModelData[Any]) -> ModelInputData:
    """Repair once more what the model is about to get: history, and the run so far."""
    items: Any = repair(data.model_data.input)[0]
    return ModelInputData(input=items, instructions=data.model_data.instructions)


ALSO_BEFORE_EACH_CALL = RunConfig(call_model_input_filter=repaired_input)


@pytest.mark.parametrize(
    ("turns", "config"),
    [
        (3, None),
        (4, None),
        (2, ALSO_BEFORE_EACH_CALL),
        (4, ALSO_BEFORE_EACH_CALL),
    ],
)
async def test_a_run_sees_all_pairs_of_a_provider_that_repeats_its_call_ids(
    turns: int, config: RunConfig | None
) -> None:
    """Every call and output of the runs before reaches the model, also while it calls again."""
    count = iter(range(1, 100))

    @function_tool
    def tick() -> str:
        """Count."""
        return f"tick {next(count)}"

    model = ScriptedModel(
        [
            ModelStep(output=[item])
            for _ in range(turns)
            for item in (function_call("tick", {}, call_id="call_1"), assistant_message("ok"))
        ]
    )
    agent = Agent(name="counter", model=model, tools=[tick])
    session = Given([])
    for turn in range(turns):
        await Runner.run(agent, f"question {turn}", session=session, run_config=config)

    last: Any = model.calls[-1].input
    assert torn(last) == []
    assert [item["output"] for item in last if item.get("type") == "function_call_output"] == [
        f"tick {number}" for number in range(1, turns + 1)
    ]
    assert texts(last)[0::2] == [("user", f"question {turn}") for turn in range(turns)]
