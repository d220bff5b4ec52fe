"""Assertions on a session pass where it holds what is asserted, and otherwise show all of it."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Runner

from session_middleware import InMemorySessionMemory, SessionMemory, with_session_memory
from session_middleware.testing import (
    assert_no_session,
    assert_session,
    assistant,
    call,
    failure,
    local_agent,
    scripted_agent,
)
from tests.support.approvals import paying
from tests.support.histories import assistant as said
from tests.support.histories import call as called
from tests.support.histories import output, user
from tests.support.sessions import counted
from tests.support.six_methods import SixMethods


@pytest.fixture
async def talked(each_memory: Any) -> Any:
    """A memory with one turn of Alice's that used a tool, and one that failed."""
    run = with_session_memory(Runner.run, memory=each_memory)
    agent = scripted_agent(
        call("note", call_id="c1"), assistant("Noted."), failure(), tools=[counted("note", [])]
    )
    await run(agent, "Take a note", session_id="alice")
    with pytest.raises(RuntimeError, match="the model is down"):
        await run(agent, "And another", session_id="alice")
    return each_memory


async def test_what_a_session_holds(talked: Any) -> None:
    """Texts, letters, items and states are compared, and what was read is returned."""
    held = await assert_session(
        talked,
        "alice",
        texts=["Take a note", "Noted.", "And another"],
        letters="U C O A U",
        states=["completed", "failed"],
    )
    assert held.items[0] == {"role": "user", "content": "Take a note"}
    assert [record.turn for record in held.records] == [1, 2]
    await assert_session(talked, "alice", items=held.items)


async def failed(memory: SessionMemory, session_id: str = "alice", **expected: Any) -> str:
    with pytest.raises(AssertionError) as failure:
        await assert_session(memory, session_id, **expected)
    return str(failure.value)


async def test_the_message_shows_the_session(talked: Any) -> None:
    """Other texts than expected: both lists, and every item of every turn in one line."""
    assert await failed(talked, texts=["Take a note", "Done."]) == "\n".join(
        [
            "other texts than expected",
            "  expected ['Take a note', 'Done.']",
            "  got      ['Take a note', 'Noted.', 'And another']",
            "session 'alice' holds 5 items: U C O A U",
            "  turn 1, completed",
            "    U  Take a note",
            "    C  note({})",
            "    O  note done",
            "    A  Noted.",
            "  turn 2, failed (RuntimeError)",
            "    U  And another",
        ]
    )


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        (
            {"letters": "U A"},
            "other letters than expected\n  expected 'U A'\n  got      'U C O A U'",
        ),
        (
            {"states": ["completed"]},
            "other states of turns than expected\n  expected ['completed']",
        ),
        ({"items": []}, "other items than expected\n--- expected\n+++ got\n@@ -1 +1,"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_each_expectation_can_fail(talked: Any, expected: Any, says: str) -> None:
    """Whatever is not as expected is named first."""
    assert (await failed(talked, **expected)).startswith(says)


async def test_a_session_that_is_not_there(talked: Any) -> None:
    """The message names the sessions that are there; none there is an assertion of its own."""
    assert await failed(talked, "bob") == "there is no session 'bob'; there are: 'alice'"
    assert await failed(InMemorySessionMemory()) == "there is no session 'alice'; there are: none"
    await assert_no_session(talked, "bob")
    with pytest.raises(AssertionError, match="there must be no session 'alice'\nsession 'alice'"):
        await assert_no_session(talked, "alice")


@pytest.mark.parametrize(
    ("items", "fault"),
    [
        ([user(), output("c1")], "item 1: orphan_output"),
        ([user(), called("c1"), said()], "No tool output found for function call c1."),
        ([user(), {"type": "reasoning", "id": "r", "summary": []}, user()], "dangling_reasoning"),
    ],
)
async def test_a_history_that_a_provider_refuses(each_memory: Any, items: Any, fault: str) -> None:
    """Without its validity the rest can still be asserted."""
    await each_memory.save_session("alice", items)
    assert fault in await failed(each_memory)
    await assert_session(each_memory, "alice", items=items, valid=False)


async def test_a_call_that_waits_for_a_person_is_valid(each_memory: Any) -> None:
    """A parked turn has a call without an output."""
    await with_session_memory(Runner.run, memory=each_memory)(paying([]), "Pay", session_id="alice")
    await assert_session(each_memory, "alice", letters="U C", states=["awaiting_approval"])


async def test_a_memory_without_turns() -> None:
    """Its items are compared and shown; it has no states."""
    memory = SixMethods()
    await with_session_memory(Runner.run, memory=memory)(local_agent(), "Hi", session_id="alice")
    held = await assert_session(memory, "alice", letters="U A")
    assert held.records == []
    assert "session 'alice' holds 2 items: U A\n  U  Hi" in await failed(memory, letters="U")
