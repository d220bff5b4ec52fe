"""Sessions of the SDK that wrap a view of ours: a run with them is a full turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Runner, SQLiteSession, function_tool
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI
from openai.types.responses import CompactedResponse

from session_middleware import (
    ConflictingMemory,
    InMemorySessionMemory,
    WrongSession,
    installed,
    last_turns,
    session_scope,
)
from session_middleware.testing.models import assistant, call, local_agent, model_of, scripted_agent
from tests.support.sessions import METHODS, consumed, letters, states, stored, tool

HI, NAME = "Hi, I'm Alice", "What's my name?"
ALICE = "Your name is Alice."
both_ways = pytest.mark.parametrize("method", METHODS)


def encrypted(memory: Any, session_id: str = "s") -> EncryptedSession:
    """An encrypting wrapper around a view."""
    return EncryptedSession(session_id, memory.session(session_id), encryption_key="a secret")


class Shouting:
    """A wrapper of somebody's own, which changes nothing but what it counts."""

    session_settings = None

    def __init__(self, underlying_session: Any) -> None:
        self.session_id = "another name"
        self.underlying_session = underlying_session
        self.reads = 0

    async def get_items(self, limit: int | None = None) -> Any:
        self.reads += 1
        return await self.underlying_session.get_items(limit)

    async def add_items(self, items: Any) -> None:
        await self.underlying_session.add_items(items)

    async def pop_item(self) -> Any:
        return await self.underlying_session.pop_item()

    async def clear_session(self) -> None:
        await self.underlying_session.clear_session()


@both_ways
async def test_an_encrypted_session_is_a_full_turn(each_memory: Any, method: str) -> None:
    """Each run is one turn with a record; the model sees the words, and storage does not."""
    session = encrypted(each_memory)
    agent = scripted_agent(
        call("look"), assistant("forty-two"), tools=[tool("look", lambda: "seen in the lamp")]
    )
    await consumed_run(method, agent, "My secret question", session=session)
    await consumed_run(method, local_agent(), "And now?", session=encrypted(each_memory))
    assert letters(await session.get_items()) == "U C O A U A"
    assert await states(each_memory) == ["completed", "completed"]
    newest, first = await each_memory.turns("s")
    assert (first.runs, first.item_count, newest.item_count) == (1, 4, 2)
    assert first.output_text is None
    raw = str([await each_memory.load_session("s"), newest.items, first.items, newest, first])
    for word in ("secret", "lamp", "forty", "now?"):
        assert word not in raw


async def consumed_run(method: str, agent: Any, given: Any, **options: Any) -> Any:
    """Run an agent to its end, streamed or not."""
    if method == "run_streamed":
        result = Runner.run_streamed(agent, given, **options)
        await consumed(result)
        return result
    return await Runner.run(agent, given, **options)


async def test_two_runs_at_once_do_not_tear(each_memory: Any) -> None:
    """They take turns: none of one's items is between the other's, and each sees the other."""

    def one(name: str) -> Agent[Any]:
        async def look() -> str:
            await asyncio.sleep(0)
            return f"{name} saw"

        return scripted_agent(call("look"), assistant(f"{name} says"), tools=[tool("look", look)])

    agents = [one("A"), one("B"), one("C")]
    shared = encrypted(each_memory)
    await asyncio.gather(
        Runner.run(agents[0], "first", session=shared),
        Runner.run(agents[1], "second", session=shared),
        Runner.run(agents[2], "third", session=encrypted(each_memory)),
    )
    assert letters(await shared.get_items()) == "U C O A U C O A U C O A"
    assert await states(each_memory) == ["completed"] * 3
    assert max(len(model_of(agent).calls[0].input) for agent in agents) == 9


async def test_wrappers_of_ones_own_and_wrappers_of_wrappers(each_memory: Any) -> None:
    """Anything with an underlying_session counts, however deep the view is."""
    wrapper = Shouting(encrypted(each_memory))
    await Runner.run(local_agent(), HI, session=wrapper)
    assert (await Runner.run(local_agent(), NAME, session=wrapper)).final_output == ALICE
    assert wrapper.reads == 2
    assert await states(each_memory) == ["completed"] * 2
    plain = Shouting(each_memory.session("plain"))
    await Runner.run(local_agent(), HI, session=plain)
    (record,) = await each_memory.turns("plain")
    assert record.output_text == "Nice to meet you, Alice."
    assert await stored(each_memory, "plain") == "U A"


async def test_a_wrapper_that_changes_nothing_takes_keys(each_memory: Any) -> None:
    """It keeps the words, so a key and redact= have what they need."""
    with installed(memory=each_memory):
        for _ in range(2):
            session = Shouting(each_memory.session("s"))
            try:
                await Runner.run(local_agent(), HI, session=session, idempotency_key="k")
            except Exception as error:
                assert type(error).__name__ == "DuplicateTurn"  # noqa: PT017 - the second time
    assert await stored(each_memory) == "U A"


async def test_what_needs_words_is_refused_by_name(each_memory: Any) -> None:
    """A key or redact= with items that nobody can read: the wrapper is named, nothing is stored."""
    with (
        installed(memory=each_memory),
        pytest.raises(ConflictingMemory, match=r"EncryptedSession .* idempotency_key="),
    ):
        await Runner.run(local_agent(), HI, session=encrypted(each_memory), idempotency_key="k")
    async with session_scope("s", memory=each_memory, redact=lambda item: item):
        with pytest.raises(ConflictingMemory, match=r"EncryptedSession .* redact="):
            await Runner.run(local_agent(), HI, session=encrypted(each_memory))
    assert await each_memory.load_session("s") == []


async def test_it_joins_a_scope_of_its_session(each_memory: Any) -> None:
    """Inside a scope the run is part of its turn; with another id it is refused."""
    async with session_scope("s", memory=each_memory):
        await Runner.run(local_agent(), HI, session=encrypted(each_memory))
        await Runner.run(local_agent(), NAME, session=encrypted(each_memory))
    (record,) = await each_memory.turns("s")
    assert (record.runs, record.state) == (2, "completed")
    with installed(memory=each_memory), pytest.raises(ConflictingMemory, match="leave one out"):
        await Runner.run(local_agent(), HI, session=encrypted(each_memory), session_id="other")


async def test_a_window_cuts_what_the_wrapper_reads(each_memory: Any) -> None:
    """The installed window applies to what the view gives the wrapper in a run, and only there."""
    session = encrypted(each_memory)
    agent = scripted_agent(*(assistant(str(number)) for number in range(3)))
    with installed(memory=each_memory, window=last_turns(1)):
        for number in range(3):
            await Runner.run(agent, f"question {number}", session=session)
        assert len(model_of(agent).calls[2].input) == 3
        assert letters(await session.get_items()) == "U A U A U A"


@both_ways
async def test_an_approval_through_a_wrapper(each_memory: Any, method: str) -> None:
    """A parked run is resumed as its turn; under another session's wrapper it is refused."""
    done: list[str] = []
    agent = scripted_agent(
        call("pay", call_id="c1"),
        assistant("paid"),
        tools=[tool("pay", lambda: done.append("paid") or "ok", needs_approval=True)],
    )
    result = await consumed_run(method, agent, "Pay", session=encrypted(each_memory))
    assert await states(each_memory) == ["awaiting_approval"]
    state = result.to_state()
    for interruption in result.interruptions:
        state.approve(interruption)
    with pytest.raises(WrongSession):
        await Runner.run(agent, state, session=encrypted(each_memory, "other"))
    await consumed_run(method, agent, state, session=encrypted(each_memory))
    assert done == ["paid"]
    assert await states(each_memory) == ["completed"]
    assert letters(await encrypted(each_memory).get_items()) == "U C O A"


async def test_an_approval_leaves_no_word_in_the_file(memory: Any) -> None:
    """Of calls that wait and are made through an encrypting wrapper no text is kept anywhere."""
    agent = scripted_agent(
        call("pay", {"to": "the secret friend"}, call_id="c1"),
        assistant("the secret is paid"),
        tools=[function_tool(needs_approval=True)(pay)],
    )
    result = await Runner.run(agent, "My secret", session=encrypted(memory))
    state = result.to_state()
    state.approve(result.interruptions[0])
    await Runner.run(agent, state, session=encrypted(memory))
    assert await states(memory) == ["completed"]
    await memory.cleanup()
    for file in Path(memory.path).parent.iterdir():
        assert b"secret" not in file.read_bytes(), file.name


def pay(to: str) -> str:
    """Pay somebody."""
    return f"secretly paid {to}"


async def test_wrappers_of_other_sessions_are_theirs() -> None:
    """A wrapper around a session of the SDK's is no affair of ours."""
    inner = SQLiteSession("theirs")
    with installed(memory=InMemorySessionMemory()):
        session = EncryptedSession("theirs", inner, encryption_key="a secret")
        await Runner.run(local_agent(), HI, session=session)
    assert len(await inner.get_items()) == 2
    inner.close()


async def test_switched_off(each_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything switched off the run has no session, as with the view itself."""
    session = encrypted(each_memory)
    monkeypatch.setenv("SESSION_MIDDLEWARE_DISABLED", "1")
    await Runner.run(local_agent(), HI, session=session)
    assert await each_memory.load_session("s") == []


async def test_a_tool_may_use_the_wrapper_itself(each_memory: Any) -> None:
    """Used directly, the wrapper reads what is stored, and not what its run is shown."""
    session = encrypted(each_memory)
    await Runner.run(local_agent(), HI, session=session)
    await Runner.run(local_agent(), NAME, session=session)
    seen: list[str] = []

    async def look() -> str:
        seen.append(letters(await session.get_items()))
        return "ok"

    agent = scripted_agent(call("look"), assistant("done"), tools=[tool("look", look)])
    with installed(memory=each_memory, window=last_turns(1)):
        await Runner.run(agent, "Look", session=session)
    assert seen == ["U A U A U"]


# --- compaction ------------------------------------------------------------------------------


class Compacting(AsyncOpenAI):
    """A client whose provider compacts everything to one item."""

    def __init__(self) -> None:
        super().__init__(api_key="none")
        self.asked: list[Any] = []

    @property
    def responses(self) -> Any:
        return self

    async def compact(self, **given: Any) -> CompactedResponse:
        self.asked.append(given)
        return CompactedResponse.model_validate(
            {
                "id": f"cmp_{len(self.asked)}",
                "object": "response.compaction",
                "created_at": 0,
                "output": [
                    {
                        "id": f"item_{len(self.asked)}",
                        "type": "compaction",
                        "encrypted_content": f"all of it {len(self.asked)}",
                    }
                ],
                "usage": {
                    "input_tokens": 1,
                    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                    "output_tokens": 1,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": 2,
                },
            }
        )


@pytest.fixture
async def client() -> AsyncIterator[Compacting]:
    """A client that is closed at the end."""
    made = Compacting()
    yield made
    await made.close()


def compacting(memory: Any, client: Compacting, **options: Any) -> Any:
    """A compacting wrapper around a view."""
    return OpenAIResponsesCompactionSession(
        "s", memory.session("s"), client=client, compaction_mode="input", **options
    )


async def test_compaction_keeps_the_records(each_memory: Any, client: Compacting) -> None:
    """Compacted by the wrapper, the history begins with the compaction; each record is there."""
    session = compacting(each_memory, client)
    await Runner.run(local_agent(), HI, session=session)
    await Runner.run(local_agent(), NAME, session=session)
    await session.run_compaction({"force": True})
    assert len(client.asked[0]["input"]) == 4
    assert [record.state for record in await each_memory.turns("s")][-2:] == ["completed"] * 2
    assert [record.item_count for record in await each_memory.turns("s")][-2:] == [2, 2]
    assert (await each_memory.load_session("s"))[-1]["type"] == "compaction"
    agent = scripted_agent(assistant("on"))
    await Runner.run(agent, "Go on", session=session)
    seen = model_of(agent).calls[0].input
    assert [item.get("type", item.get("role")) for item in seen] == ["compaction", "user"]


async def test_automatic_compaction_in_a_run(each_memory: Any, client: Compacting) -> None:
    """Triggered by a run, the compaction is part of that run's turn."""
    when: list[bool] = [False, True, False]
    session = compacting(
        each_memory,
        client,
        should_trigger_compaction=lambda context: when.pop(0) if when else False,
    )
    agent = scripted_agent(*(assistant(str(number)) for number in range(3)))
    for number in range(3):
        await Runner.run(agent, f"question {number}", session=session)
    assert len(await each_memory.turns("s")) == 3
    assert await states(each_memory) == ["completed"] * 3
    assert len(client.asked) == 1
    assert letters(await each_memory.load_session("s")) == "U A U A compaction U A"
    assert len(model_of(agent).calls[2].input) == 2


async def test_compaction_that_nobody_can_read_is_refused(
    each_memory: Any, client: Compacting
) -> None:
    """An encrypting wrapper around a compacting one hides the compaction: nothing is cleared."""
    session = EncryptedSession("s", compacting(each_memory, client), encryption_key="a secret")
    await Runner.run(local_agent(), HI, session=session)
    with pytest.raises(ConflictingMemory, match="readable compaction item"):
        await session.run_compaction({"force": True})
    assert letters(await session.get_items()) == "U A"
    assert await states(each_memory) == ["completed"]
