"""redact: what is stored of an item, and that calls and outputs stay pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from agents import RunState

from session_middleware import InMemorySessionMemory, InvalidItem
from session_middleware.history import check
from session_middleware.testing.models import (
    assistant,
    call,
    calls,
    local_agent,
    model_of,
    scripted_agent,
)
from tests.support.sessions import METHODS, carried_out, counted, letters, stored, text_of, tool

both_ways = pytest.mark.parametrize("method", METHODS)


def without(kind: str, name: str | None = None) -> Callable[[dict[str, Any]], Any]:
    """Leave out the items of a letter; with a name only those of that tool."""

    def redact(item: dict[str, Any]) -> Any:
        hit = letters([item]) == kind and (name is None or name in json.dumps(item))
        return None if hit else item

    return redact


@both_ways
async def test_items_are_changed_in_the_storage_only(each_memory: Any, method: str) -> None:
    """What the model sees in this run is as it was said; the next run sees what was stored."""

    def masked(item: dict[str, Any]) -> dict[str, Any]:
        if item.get("role") == "user":
            item["content"] = item["content"].replace("my card", "****")
        for part in item["content"] if item.get("role") == "assistant" else ():
            part["text"] = part["text"].replace("my card", "****")  # in place, deep inside
        return item

    agent = scripted_agent(call("look"), assistant("my card"), tools=[tool("look", lambda: "x")])
    result = await carried_out(
        method, agent, "Mine is my card", each_memory, decoration={"redact": masked}
    )
    assert result.final_output == "my card"
    assert "my card" in str(model_of(agent).calls[-1].input)
    assert "my card" in str(result.to_input_list())
    assert "my card" not in str(await each_memory.load_session("s"))
    assert await stored(each_memory) == "U C O A"
    assert [turn.output_text for turn in await each_memory.turns("s")] == ["****"]


@both_ways
@pytest.mark.parametrize("kind", ["C", "O"])
async def test_both_halves_of_a_pair_or_neither(each_memory: Any, method: str, kind: str) -> None:
    """Leaving out a call leaves out its output, and the other way round; other pairs stay."""
    agent = scripted_agent(
        calls(("look", {}), ("pay", {})),
        assistant("done"),
        tools=[tool("look", lambda: "look done"), tool("pay", lambda: "pay done")],
    )
    redact = without(kind, "pay")
    await carried_out(method, agent, "Go", each_memory, decoration={"redact": redact})
    assert await stored(each_memory) == "U C O A"
    assert "pay" not in str(await each_memory.load_session("s"))


@both_ways
@pytest.mark.parametrize("serialise", [False, True], ids=["live", "serialised"])
@pytest.mark.parametrize(
    ("redact", "parked", "resumed"),
    [
        (without("C"), "U", "U A"),
        (without("O"), "U C", "U C O A"),
        (lambda item: None if "call_id" in item else item, "U", "U A"),
        (without("U"), "C", "C O A"),
        (lambda item: None, "", ""),
        (
            lambda item: {**item, "arguments": "{}"} if "arguments" in item else item,
            "U C",
            "U C O A",
        ),
    ],
    ids=["calls", "outputs", "both", "users", "all", "arguments"],
)
async def test_approvals(
    each_memory: Any, method: str, serialise: bool, redact: Any, parked: str, resumed: str
) -> None:
    """A call that was stored while it waited gets its output, withheld if need be."""
    counts: list[str] = []
    agent = scripted_agent(
        call("pay"), assistant("paid"), tools=[counted("pay", counts, needs_approval=True)]
    )
    options = {"decoration": {"redact": redact}}
    result = await carried_out(method, agent, "Pay", each_memory, **options)
    assert await stored(each_memory) == parked
    state = result.to_state()
    if serialise:
        state = await RunState.from_json(agent, state.to_json())
    state.approve(state.get_interruptions()[0])
    result = await carried_out(method, agent, state, each_memory, **options)
    assert (result.final_output, counts) == ("paid", ["pay"])
    assert await stored(each_memory) == resumed
    items = await each_memory.load_session("s")
    assert check(items) == []
    if "O" in parked + resumed and redact(items[2]) is None:
        assert text_of(items[2]) == "[redacted]"


@both_ways
async def test_what_redact_gives_is_checked(method: str) -> None:
    """Something else than an item or None is InvalidItem, naming the position."""
    memory = InMemorySessionMemory()
    with pytest.raises(InvalidItem, match="redact gave a str") as raised:
        await carried_out(
            method, local_agent(), "Hi", memory, decoration={"redact": lambda item: "nothing"}
        )
    assert raised.value.position == 0
    assert await stored(memory) == ""


async def test_redact_that_raises() -> None:
    """Its own error ends the run: nothing unredacted is stored."""
    memory = InMemorySessionMemory()

    def fails(item: dict[str, Any]) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await carried_out("run", local_agent(), "Hi", memory, decoration={"redact": fails})
    assert await stored(memory) == ""
