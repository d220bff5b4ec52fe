"""A compaction item stands for all before it: histories begin with the newest one."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Runner
from hypothesis import given
from hypothesis import strategies as st

from session_middleware import (
    history,
    last_items,
    last_turns,
    session_scope,
    token_budget,
    with_session_memory,
)
from session_middleware.history import Turn, apply_windows
from session_middleware.testing.models import assistant, call, model_of, scripted_agent
from tests.support.sessions import tool

COMPACTION = {"type": "compaction", "id": "cmp", "encrypted_content": "all of it"}
USER = {"role": "user", "content": "x" * 40}


def turn(number: int, *items: dict[str, Any]) -> Turn:
    """A turn of these items."""
    return Turn(number, list(items))


def shape(turns: list[Turn]) -> list[tuple[int, int]]:
    """The number of each turn, and how many items are left of it."""
    return [(each.turn, len(each.items)) for each in turns]


TURNS = [
    turn(1, USER, USER),
    turn(2, USER, COMPACTION, USER),
    turn(3, USER, USER),
    turn(4, USER),
]


@pytest.mark.parametrize(
    ("window", "left"),
    [
        (None, [(2, 2), (3, 2), (4, 1)]),
        (last_turns(4), [(2, 2), (3, 2), (4, 1)]),
        (last_turns(3), [(2, 2), (3, 2), (4, 1)]),
        (last_turns(1), [(2, 2), (4, 1)]),
        (last_turns(1, step=2), [(2, 2), (4, 1)]),
        (last_items(1), [(2, 2), (4, 1)]),
        (token_budget(20), [(2, 2), (4, 1)]),
        ([last_turns(2), last_items(2)], [(2, 2), (4, 1)]),
        (lambda turns: turns[:1], [(2, 2)]),
        (last_turns(0), []),
        (last_items(0), []),
    ],
)
def test_windows_keep_the_newest_compaction(window: Any, left: list[tuple[int, int]]) -> None:
    """Whatever they cut, it is kept with what follows it in its turn; what stands before goes."""
    assert shape(apply_windows(TURNS, window)) == left
    assert [len(each.items) for each in TURNS] == [2, 3, 2, 1]


def test_the_newest_of_several() -> None:
    """Of two compactions in one turn, or in two, only the newest counts."""
    turns = [turn(1, COMPACTION), turn(2, COMPACTION, USER, COMPACTION), turn(3, USER)]
    assert shape(apply_windows(turns, None)) == [(2, 1), (3, 1)]


def test_a_window_may_change_the_compaction() -> None:
    """What a window of the user's made of the turn is what is kept."""

    def shortened(turns: list[Turn]) -> list[Turn]:
        return [Turn(each.turn, each.items[:2]) for each in turns]

    assert shape(apply_windows(TURNS, shortened)) == [(2, 1), (3, 2), (4, 1)]


items = st.sampled_from([USER, COMPACTION, {"role": "assistant", "content": "y"}])


@given(
    st.lists(st.lists(items, min_size=1, max_size=4), max_size=6),
    st.sampled_from([None, last_turns(1), last_turns(2, step=3), last_items(2), token_budget(30)]),
)
def test_any_history(histories: list[list[dict[str, Any]]], window: Any) -> None:
    """At most one compaction is left, it comes first, and nothing is changed or made up."""
    turns = [turn(number, *items) for number, items in enumerate(histories, 1)]
    left = apply_windows(turns, window)
    flat = [item for each in left for item in each.items]
    held = any(history.holds_compaction(each.items) for each in turns)
    assert [history.holds_compaction([item]) for item in flat].count(True) == held
    assert not held or flat[0] == COMPACTION
    assert [each.turn for each in left] == sorted({each.turn for each in left})


WINDOWS = (None, last_turns(1), last_turns(1, step=2), last_items(1), token_budget(5))


@pytest.mark.parametrize("window", WINDOWS)
async def test_what_the_model_is_given(each_memory: Any, window: Any) -> None:
    """In a run the history begins with the compaction, however far the window is from it."""
    await each_memory.save_session("s", [USER, COMPACTION])
    agent = scripted_agent(*(assistant(str(number)) for number in range(5)))
    for number in range(5):
        async with session_scope("s", memory=each_memory, window=window):
            await Runner.run(agent, f"question {number}")
    for number, each in enumerate(model_of(agent).calls):
        kinds = [item.get("type") for item in each.input]
        assert kinds.count("compaction") == 1
        assert kinds[0] == "compaction"
        assert each.input[-1]["content"] == f"question {number}"
    assert (await each_memory.load_session("s"))[0] == USER


async def test_a_compaction_that_is_gone_is_not_missed(each_memory: Any) -> None:
    """Cleared, popped or saved over, it stands for nothing any more."""
    question = {"role": "user", "content": 'a text with "type": "compaction" in it'}
    await each_memory.save_session("s", [question, COMPACTION])
    view = each_memory.session("s")
    assert await view.pop_item() == COMPACTION
    agent = scripted_agent(*(assistant(str(number)) for number in range(3)))
    for number in range(3):
        async with session_scope("s", memory=each_memory, window=last_turns(1)):
            await Runner.run(agent, f"question {number}")
    assert len(model_of(agent).calls[2].input) == 3


async def test_a_compaction_of_a_turn_that_failed(each_memory: Any) -> None:
    """It was stored, and counts like any other."""
    looks: list[int] = []

    @with_session_memory(memory=each_memory, window=last_turns(1))
    async def chat(text: str, *, fails: Any = None) -> None:
        agent = scripted_agent(
            call("look"), assistant("done"), tools=[tool("look", lambda: looks.append(1))]
        )
        await Runner.run(agent, text)
        if fails is not None:
            await each_memory.append_to_session("s", [COMPACTION])
            raise fails

    with pytest.raises(LookupError):
        await chat("Hi", fails=LookupError(), session_id="s")
    agent = scripted_agent(*(assistant(str(number)) for number in range(3)))
    for number in range(3):
        async with session_scope("s", memory=each_memory, window=last_turns(1)):
            await Runner.run(agent, f"question {number}")
    for each in model_of(agent).calls:
        assert each.input[0]["type"] == "compaction"
