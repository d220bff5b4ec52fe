"""Items become texts and come back exactly; what no store may keep is refused by name."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections import OrderedDict, namedtuple
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_middleware.conformance.samples import (
    AWKWARD_VALUES,
    depth_of,
    exactly,
    faulty_items,
    nested,
)
from session_middleware.errors import InvalidItem
from session_middleware.stores import items as encoding
from session_middleware.stores.items import (
    MAX_DEPTH,
    decode_items,
    encode_in_steps,
    encode_items,
    require_dicts,
)

texts = st.text(st.characters(codec="utf-8"))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(texts, json_values, max_size=5)


def there_and_back(item: Any) -> Any:
    decoded, corrupt = decode_items(encode_items([item]))
    assert corrupt == 0
    return decoded[0]


def at_the_bottom_of_the_stack(frames_left: int, work: Any) -> Any:
    """Call ``work`` with few frames left below the recursion limit."""

    def descend(depth: int) -> Any:
        return work() if depth <= 0 else descend(depth - 1)

    used, frame = 0, sys._getframe()
    while frame is not None:
        used, frame = used + 1, frame.f_back
    return descend(sys.getrecursionlimit() - used - frames_left)


@settings(max_examples=60, deadline=None)
@given(st.lists(json_objects, max_size=5))
def test_any_json_object_comes_back_exactly(items: list[dict[str, Any]]) -> None:
    """Types, signs, the order of keys and every character are kept."""
    decoded, corrupt = decode_items(encode_items(items))
    assert corrupt == 0
    assert exactly(decoded) == exactly(items)


@pytest.mark.parametrize("value", AWKWARD_VALUES, ids=ascii)
def test_an_easily_damaged_value_comes_back_exactly(value: Any) -> None:
    """Each of the values that some JSON storage changes is kept."""
    assert exactly(there_and_back({"content": value})) == exactly({"content": value})


@pytest.mark.parametrize("fault", faulty_items(), ids=lambda fault: type(fault).__name__)
def test_what_is_no_json_object_is_named_by_its_position(fault: Any) -> None:
    """The error says which item it was, and shows nothing of what is in it."""
    with pytest.raises(InvalidItem) as raised:
        encode_items([{"role": "user"}, {"role": "assistant"}, fault])
    assert raised.value.position == 2
    assert "item 2 cannot be stored" in str(raised.value)
    assert "an integer key" not in str(raised.value)


@pytest.mark.parametrize("no_list", ["text", b"bytes", {"role": "user"}, None, iter([])])
def test_items_come_in_a_list(no_list: Any) -> None:
    """A single item, a string or an iterator in place of the list is refused."""
    with pytest.raises(InvalidItem, match="items must come in a list"):
        encode_items(no_list)


def test_a_tuple_comes_back_as_a_list() -> None:
    """JSON has no tuples: a tuple, named or not, is stored as the list that JSON makes of it."""
    point = namedtuple("point", "x y")
    assert there_and_back({"at": (1, (2,), point(3, 4))}) == {"at": [1, [2], [3, 4]]}


def test_subclasses_come_back_as_json_types() -> None:
    """Enumerations of strings and ordered dicts are stored as strings and objects."""
    role = StrEnum("role", {"USER": "user"})
    item = OrderedDict([("role", role.USER), ("content", OrderedDict(b=1, a=2))])
    assert exactly(there_and_back(item)) == exactly({"role": "user", "content": {"b": 1, "a": 2}})


def test_an_integer_of_too_many_digits_is_refused() -> None:
    """An integer that Python would not write as text is an InvalidItem, never a crash later."""
    with pytest.raises(InvalidItem):
        encode_items([{"n": 10**5000}])


# --- surrogates ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfffb", "\udc00\ud800", "\N{WHITE SMILING FACE}\ud83d"]
)
def test_a_lone_surrogate_survives(text: str) -> None:
    """It is written as an escape, so the text itself can be stored anywhere."""
    (stored,) = encode_items([{"content": text, text: 1}])
    stored.encode("utf-8")
    assert there_and_back({"content": text, text: 1}) == {"content": text, text: 1}


def test_a_character_in_two_surrogates_is_refused() -> None:
    """It would come back as another string, the one character."""
    with pytest.raises(InvalidItem, match="two surrogates"):
        encode_items([{"content": "\ud83d\ude00"}])
    assert there_and_back({"content": "\U0001f600"}) == {"content": "\U0001f600"}


# --- nesting -------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH])
def test_nesting_up_to_the_limit_comes_back(depth: int) -> None:
    """Items of every depth that is accepted are read again, alone and in a list."""
    item = nested(depth)
    assert depth_of(there_and_back(item)) == depth
    decoded, corrupt = decode_items(encode_items([{"role": "user"}, item]))
    assert (decoded[0], depth_of(decoded[1]), corrupt) == ({"role": "user"}, depth, 0)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 600, 890, 5_000])
def test_deeper_nesting_is_refused(depth: int) -> None:
    """A run with such an item would die, so it is an InvalidItem when it is stored."""
    with pytest.raises(InvalidItem, match=f"at most {MAX_DEPTH} deep"):
        encode_items([nested(depth)])


def test_deeper_nesting_of_other_writers_is_left_out() -> None:
    """Text that is nested deeper is counted as corrupt, so that the session's runs go on."""
    for depth in (MAX_DEPTH + 1, 890):
        text = '{"in":' * (depth - 1) + "{}" + "}" * (depth - 1)
        assert decode_items(['{"role":"user"}', text]) == ([{"role": "user"}, None], 1)


class Dumped:
    """An object of a library's that has a dict to offer, as pydantic's models do."""

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"content": "hidden words"}


class Turned:
    """An item of a run's result, as the SDK's RunItem."""

    def to_input_item(self) -> dict[str, Any]:
        return {"content": "hidden words"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Dumped(), r"got Dumped: pass its \.model_dump\(exclude_unset=True\)"),
        ({"role": "user", "content": [Dumped()]}, r"got Dumped: pass its \.model_dump"),
        (Turned(), r"got Turned: pass its \.to_input_item\(\)"),
        ([{"role": "user"}], "a dict .a JSON object., got list"),
        ("hidden words", "got str"),
        ({"n": float("nan")}, "got NaN"),
    ],
)
def test_the_error_says_how_to_make_an_item(value: Any, words: str) -> None:
    """A model or a result's item is named by its class, with the call that makes it an item."""
    with pytest.raises(InvalidItem, match=words) as raised:
        encode_items([{"role": "user"}, value])
    assert raised.value.position == 1
    assert "hidden" not in str(raised.value)


def test_the_callers_stack_does_not_matter() -> None:
    """Called with few frames left, items are stored and read all the same."""
    item = nested(MAX_DEPTH)
    (text,) = at_the_bottom_of_the_stack(60, lambda: encode_items([item]))
    ((decoded,), corrupt) = at_the_bottom_of_the_stack(60, lambda: decode_items([text]))
    assert corrupt == 0
    assert depth_of(decoded) == MAX_DEPTH


# --- reading what was damaged --------------------------------------------------------------


def test_a_corrupt_text_is_counted_and_costs_no_other() -> None:
    """What is no JSON object is None in its place; the texts around it are read."""
    good = '{"role":"user"}'
    damaged = ['{"role":', "", "null", "[1]", '"text"', "7", '{"a":1},{"b":2}', "\udcff"]
    for bad in damaged:
        assert decode_items([good, bad, good]) == (
            [{"role": "user"}, None, {"role": "user"}],
            1,
        )
    assert decode_items(damaged) == ([None] * len(damaged), len(damaged))
    assert decode_items([]) == ([], 0)


def test_texts_of_other_writers_are_read() -> None:
    """White space, escapes and NaN, as other programs write them, are no fault."""
    (first, second), corrupt = decode_items(['\n {"a" : "\\u00e4\\ud83d\\ude00"} ', '{"a":NaN}'])
    assert corrupt == 0
    assert first == {"a": "ä\U0001f600"}
    assert second is not None
    assert math.isnan(second["a"])
    assert json.loads('{"a":"\\u00e4\\ud83d\\ude00"}') == first


# --- in steps ------------------------------------------------------------------------------


class Others:
    """A task beside the one that encodes: how often it got its turn."""

    def __init__(self) -> None:
        self.turns = 0

    async def __call__(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


@pytest.mark.parametrize(("step", "turns"), [(200, 4), (10_000, 1)])
async def test_other_tasks_go_on_while_many_items_are_encoded(
    step: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each item counts with its text and a cost of its own; the texts are the same."""
    monkeypatch.setattr(encoding, "_STEP", step)
    items = [{"role": "user", "content": f"{number}"} for number in range(8)]
    others = Others()
    beside = asyncio.ensure_future(others())
    await asyncio.sleep(0)
    assert await encode_in_steps(items) == encode_items(items)
    beside.cancel()
    assert others.turns == turns


async def test_a_caller_may_change_its_list_while_it_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is encoded is the list as it was given."""
    monkeypatch.setattr(encoding, "_STEP", 0)
    items = [{"role": "user", "content": f"{number}"} for number in range(3)]
    expected = encode_items(items)
    encoded = asyncio.ensure_future(encode_in_steps(items))
    await asyncio.sleep(0)
    items.clear()
    assert await encoded == expected


async def test_what_cannot_be_stored_is_refused_in_steps_as_well() -> None:
    """With the position of the first such item; anything but a list is none of items."""
    for fault in faulty_items():
        with pytest.raises(InvalidItem) as raised:
            await encode_in_steps([{"role": "user"}, fault, fault])
        assert raised.value.position == 1
    for no_list in ("text", b"bytes", bytearray(), {"role": "user"}, None):
        with pytest.raises(InvalidItem, match="in a list"):
            await encode_in_steps(no_list)  # type: ignore[arg-type]


def test_only_dicts_pass_where_dicts_are_required() -> None:
    """The first other one is named by its position."""
    require_dicts([])
    require_dicts([{}, {"role": "user"}])
    with pytest.raises(InvalidItem) as raised:
        require_dicts([{}, "text", 1])
    assert raised.value.position == 1
