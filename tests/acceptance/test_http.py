"""Conversations over real HTTP: the OpenAI client, a provider on this machine, both APIs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)

from session_middleware import SessionMemory, with_session_memory
from session_middleware.effects import UNKNOWN_TEXT
from session_middleware.testing.provider import Provider
from tests.support.conditions import until

APIS = {
    "responses": (OpenAIResponsesModel, "/responses", "input"),
    "chat": (OpenAIChatCompletionsModel, "/chat/completions", "messages"),
}


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


@pytest.fixture(params=APIS)
async def wire(request: pytest.FixtureRequest, provider: Provider) -> AsyncIterator[Any]:
    """(an agent that talks to the provider, a function that gives the messages of each request)."""
    model, path, key = APIS[request.param]
    async with provider.client() as client:
        agent = Agent(name="Assistant", model=model("test-model", client), tools=[weather])

        def sent() -> list[list[dict[str, Any]]]:
            assert provider.refused == []
            return [
                [{"role": "user", "content": body[key]}]
                if isinstance(body[key], str)
                else body[key]
                for body in provider.bodies(path)
            ]

        yield agent, sent


@pytest.fixture(params=["plain", "streamed"])
def talk(request: pytest.FixtureRequest, memory: SessionMemory) -> Callable[..., Any]:
    """Run one turn, plain or streamed to its end; returns the final output."""

    @with_session_memory(memory=memory)
    async def plain(agent: Any, text: str) -> str:
        return (await Runner.run(agent, text)).final_output

    @with_session_memory(memory=memory)
    async def streamed(agent: Any, text: str) -> str:
        result = Runner.run_streamed(agent, text)
        deltas = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        assert "".join(deltas) == result.final_output
        return result.final_output

    return plain if request.param == "plain" else streamed


def texts(messages: list[dict[str, Any]], role: str) -> list[str]:
    """The texts of one role, in order, whichever way the API nests them."""
    found = []
    for message in messages:
        if message.get("role") == role:
            content = message["content"]
            found.append(content if isinstance(content, str) else content[0]["text"])
    return found


async def test_second_turn_carries_the_first(wire: Any, talk: Callable[..., Any]) -> None:
    """The second request holds the first turn's items, and the provider answers from them."""
    agent, sent = wire
    assert await talk(agent, "My name is Alice.", session_id="a") == "Nice to meet you, Alice."
    assert await talk(agent, "What's my name?", session_id="a") == "Your name is Alice."
    first, second = sent()
    assert texts(first, "user") == ["My name is Alice."]
    assert texts(second, "user") == ["My name is Alice.", "What's my name?"]
    assert texts(second, "assistant") == ["Nice to meet you, Alice."]


async def test_city_then_state(wire: Any, talk: Callable[..., Any]) -> None:
    """A question that makes sense only after the first one is answered."""
    agent, _ = wire
    question = "What city is the Golden Gate Bridge in?"
    assert await talk(agent, question, session_id="conversation_1") == "San Francisco"
    assert await talk(agent, "What state is it in?", session_id="conversation_1") == "California"


async def test_sessions_are_apart(wire: Any, talk: Callable[..., Any]) -> None:
    """What one session said is in no request of another."""
    agent, sent = wire
    await talk(agent, "My name is Alice.", session_id="a")
    await talk(agent, "My name is Bob.", session_id="b")
    assert await talk(agent, "What's my name?", session_id="a") == "Your name is Alice."
    assert await talk(agent, "What's my name?", session_id="b") == "Your name is Bob."
    assert [texts(request, "user")[0] for request in sent()[2:]] == [
        "My name is Alice.",
        "My name is Bob.",
    ]


async def test_tool_calls_come_back_whole(wire: Any, talk: Callable[..., Any]) -> None:
    """A call and its output are in the next turn's request, together and once."""
    agent, sent = wire
    assert await talk(agent, "What is the weather in Paris?", session_id="a") == (
        "The tool says: sunny in Paris"
    )
    await talk(agent, "My name is Alice.", session_id="a")
    *_, last = sent()
    outputs = [
        item
        for item in last
        if item.get("type") == "function_call_output" or item.get("role") == "tool"
    ]
    assert len(outputs) == 1
    assert texts(last, "user") == ["What is the weather in Paris?", "My name is Alice."]


async def test_a_journal_makes_a_history_that_a_provider_accepts(
    wire: Any, memory: SessionMemory
) -> None:
    """Reasoning and two calls at once, one with an output and one unknown; then a new message."""
    agent, sent = wire
    runs: list[str] = []
    hangs = asyncio.Event()

    @function_tool(name_override="weather")
    async def slow(city: str) -> str:
        """Tell the weather in a city."""
        runs.append(city)
        if city == "Rome":
            await hangs.wait()
        return f"sunny in {city}"

    agent = agent.clone(tools=[slow])
    ask = with_session_memory(Runner.run, memory=memory)
    text = "What is the weather in Paris and in Rome?"
    running = asyncio.ensure_future(ask(agent, text, session_id="s", idempotency_key="k"))
    await until(lambda: sorted(runs) == ["Paris", "Rome"])
    for _ in range(20):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = await ask(agent, text, session_id="s", idempotency_key="k")
    assert UNKNOWN_TEXT in result.final_output
    assert sorted(runs) == ["Paris", "Rome"]
    again = await ask(agent, "What is the weather in Oslo?", session_id="s")
    assert again.final_output == "The tool says: sunny in Oslo"
    assert len(sent()) == 4
