"""What holds at sizes and under a load that no other test has; the long form runs with -m long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, ModelResponse, Runner
from agents.models.interface import Model
from agents.testing import assistant_message
from agents.usage import Usage

from session_middleware import SQLiteSessionMemory, last_items, with_session_memory
from tests.benchmarks.very_long import fill

# --- many conversations at once, cancelled at random ---------------------------------------


class Echo(Model):
    """Answers with the message it was asked, after a moment in which it may be cancelled."""

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        given = kwargs.get("input") or args[1]
        text = given[-1]["content"]
        await asyncio.sleep(0)
        message = assistant_message(f"answer to {text}", item_id=f"msg_{text}")
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise NotImplementedError("nothing is streamed here")


def text_of(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else content[0]["text"]


async def converse(run: Any, agent: Agent[Any], session_id: str, turns: int) -> list[int]:
    """Ask so many questions, cancel every third or so, and return those that were answered."""
    chance = random.Random(session_id)
    answered = []
    for number in range(turns):
        asked = asyncio.ensure_future(run(agent, f"{session_id}:{number}", session_id=session_id))
        if chance.random() < 0.35:
            await asyncio.wait((asked,), timeout=chance.expovariate(200))
            asked.cancel()
        await asyncio.wait((asked,))
        if not asked.cancelled():
            assert asked.result().final_output == f"answer to {session_id}:{number}"
            answered.append(number)
    return answered


def check_history(history: list[dict[str, Any]], session_id: str, answered: list[int]) -> int:
    """Every answered question once, in order, with its answer; of the others no torn piece.

    Returns how many of the questions that were cancelled left something.
    """
    texts = [text_of(item) for item in history]
    found: list[int] = []
    with_answer: list[int] = []
    for text in texts:
        number = int(text.rpartition(":")[2])
        if text == f"{session_id}:{number}":
            found.append(number)
        else:
            assert text == f"answer to {session_id}:{number}"
            assert found[-1] == number, "an answer stands under another question"
            with_answer.append(number)
    assert found == sorted(set(found))
    assert with_answer == sorted(set(with_answer))
    assert set(answered) <= set(with_answer)
    return len(set(found) - set(answered))


async def _many_conversations(path: Path, sessions: int, turns: int) -> None:
    agent = Agent(name="Echo", model=Echo())
    names = [f"user-{at}" for at in range(sessions)]
    async with SQLiteSessionMemory(path) as memory:
        run = with_session_memory(Runner.run, memory=memory, window=last_items(8))
        answered = dict(
            zip(
                names,
                await asyncio.gather(*(converse(run, agent, name, turns) for name in names)),
                strict=True,
            )
        )
    assert 0 < sum(map(len, answered.values())) < sessions * turns  # some were cancelled
    async with SQLiteSessionMemory(path) as reopened:
        for name in names:
            check_history(await reopened.load_session(name), name, answered[name])
            states = [record.state for record in await reopened.turns(name)]
            assert set(states) <= {"completed", "cancelled"}
            assert states.count("completed") >= len(answered[name])


async def test_histories_hold_what_was_acknowledged(tmp_path: Path) -> None:
    """8 conversations at once, cancelled at random: nothing is lost, doubled or torn."""
    await _many_conversations(tmp_path / "some.db", sessions=8, turns=12)


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_64_histories_of_500_turns_hold_what_was_acknowledged(tmp_path: Path) -> None:
    """64 conversations of 500 turns at once, cancelled at random: nothing lost, doubled, torn."""
    await _many_conversations(tmp_path / "many.db", sessions=64, turns=500)


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_an_item_of_50_megabytes_comes_back_as_it_was(tmp_path: Path) -> None:
    """Such as a picture or a file in a tool's output."""
    item = {"type": "function_call_output", "call_id": "c", "output": "ä" * 25_000_000}
    async with SQLiteSessionMemory(tmp_path / "big.db") as memory:
        await memory.append_to_session("big", [{"role": "user", "content": "hi"}, item])
        assert (await memory.load_session("big"))[1] == item
        (record,) = await memory.turns("big")
        assert record.item_count == 2


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_a_session_of_a_million_items_is_read_and_written(tmp_path: Path) -> None:
    """Whole, by its end, and by one more turn."""
    path = tmp_path / "million.db"
    async with SQLiteSessionMemory(path) as memory:
        await memory.ping()
        await asyncio.to_thread(fill, path, "long", 1_000_000)
        await memory.append_to_session("long", [{"role": "user", "content": "one more"}])
        newest = await memory.load_turns("long", newest=last_items(9))
        assert sum(len(turn.items) for turn in newest.turns) == 9
        assert newest.turns[-1].items == [{"role": "user", "content": "one more"}]
        whole = await memory.load_session("long")
        assert len(whole) == 1_000_001
        assert whole[-1] == {"role": "user", "content": "one more"}


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_hundred_thousand_sessions_in_one_file(tmp_path: Path) -> None:
    """All are there, each with its own history."""
    async with SQLiteSessionMemory(tmp_path / "sessions.db") as memory:
        for start in range(0, 100_000, 1_000):
            await asyncio.gather(
                *(
                    memory.append_to_session(f"user-{at}", [{"role": "user", "content": str(at)}])
                    for at in range(start, start + 1_000)
                )
            )
        assert len(await memory.list_sessions()) == 100_000
        for at in (0, 4_711, 99_999):
            assert await memory.load_session(f"user-{at}") == [{"role": "user", "content": str(at)}]
