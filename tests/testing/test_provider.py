"""The provider on this machine answers the real client, as scripted or from the request alone."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Runner, function_tool
from openai import APIStatusError, BadRequestError

from session_middleware import InMemorySessionMemory, with_session_memory
from session_middleware.testing import (
    Provider,
    assert_session,
    assistant,
    call,
    calls,
    failure,
    local_provider,
)
from tests.support.sessions import METHODS, run_by

PATHS = {"responses": "/responses", "chat": "/chat/completions"}


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("api", PATHS)
async def test_a_script_over_the_wire(provider: Provider, api: Any, method: str) -> None:
    """Calls, one and several, and answers go through both APIs, plain and streamed."""
    provider.script(
        calls(("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})),
        call("weather", {"city": "Oslo"}),
        assistant("Sunny everywhere."),
    )
    result = await run_by(method, provider.agent(api, tools=[weather]), "Where is it sunny?")
    assert result.final_output == "Sunny everywhere."
    outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert outputs == ["sunny in Paris", "sunny in Rome", "sunny in Oslo"]
    assert len(provider.bodies(PATHS[api])) == 3
    assert provider.refused == []


@pytest.mark.parametrize("api", PATHS)
async def test_it_fails_once_and_then_remembers(provider: Provider, api: Any) -> None:
    """A status in the script is the client's error; the next answer is from the history again."""
    memory = InMemorySessionMemory()
    run = with_session_memory(Runner.run, memory=memory)
    agent = provider.agent(api, name="Local")
    await run(agent, "Hi, I'm Alice.", session_id="s")
    provider.script(503)
    with pytest.raises(APIStatusError) as error:
        await run(agent, "What's my name?", session_id="s")
    assert error.value.status_code == 503
    result = await run(agent, "What's my name?", session_id="s")
    assert result.final_output == "Your name is Alice."
    await assert_session(memory, "s", states=["completed", "failed", "completed"])


async def test_it_refuses_what_a_provider_refuses(provider: Provider) -> None:
    """A tool output without its call is status 400, in both APIs, and is told to the test."""
    client = provider.client()
    orphan: Any = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    with pytest.raises(BadRequestError, match="No tool call found"):
        await client.responses.create(model="local", input=[orphan])
    lost: Any = {"role": "tool", "tool_call_id": "c1", "content": "done"}
    with pytest.raises(BadRequestError, match="'tool' must follow"):
        await client.chat.completions.create(model="local", messages=[lost])
    assert len(provider.refused) == 2
    await client.close()


@pytest.mark.parametrize("step", [failure(), "text", {"output": []}])
def test_a_step_that_no_provider_takes(step: Any) -> None:
    """Nothing of a script with a wrong step is taken."""
    with local_provider() as provider:
        with pytest.raises(TypeError, match=r"must be assistant\(\.\.\.\), call\(\.\.\.\)"):
            provider.script(assistant("one"), step)
        assert not provider._script
