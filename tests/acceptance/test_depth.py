"""Every item that can be stored can be carried by a real run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, OpenAIResponsesModel, Runner, RunState

from session_middleware import InMemorySessionMemory, InvalidItem, with_session_memory
from session_middleware.conformance.samples import nested
from session_middleware.stores.items import MAX_DEPTH
from session_middleware.testing.provider import local_provider

FRAMES = 200 if sys.gettrace() else 400
"""Of Python's default of 1,000 frames, so many may be a caller's own; a tracer takes some."""


async def deep_in_the_stack(frames: int, work: Callable[[], Any]) -> Any:
    return await (deep_in_the_stack(frames - 1, work) if frames else work())


@pytest.mark.parametrize("method", ["run", "run_streamed"])
async def test_the_deepest_item_is_carried_by_a_run(method: str) -> None:
    """In a history and in an input, to the real client, from a deep stack, and by a state."""
    content = [nested(MAX_DEPTH - 2)]
    memory = InMemorySessionMemory()
    await memory.append_to_session("s", [{"role": "user", "content": content}])

    async def run(agent: Agent[Any]) -> Any:
        deep: Any = [{"role": "user", "content": content}]
        if method == "run":
            return await with_session_memory(Runner.run, memory=memory)(agent, deep, session_id="s")
        streamed = with_session_memory(Runner.run_streamed, memory=memory)
        result = streamed(agent, deep, session_id="s")
        async for _ in result.stream_events():
            pass
        return result

    with local_provider() as provider:
        client = provider.client()
        agent: Agent[Any] = Agent(name="a", model=OpenAIResponsesModel("m", client))
        result = await deep_in_the_stack(FRAMES, lambda: run(agent))
        state = result.to_state()
        await RunState.from_json(agent, state.to_json())
        await client.close()
    assert len(await memory.load_session("s")) == 3
    with pytest.raises(InvalidItem):
        await memory.append_to_session("s", [{"role": "user", "content": [nested(MAX_DEPTH - 1)]}])
