"""A streamed run under a session: the turn lasts until the stream's run is over.

pip install session-middleware
python streaming.py
"""

import asyncio
import os
from collections.abc import AsyncIterator

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import last_turns, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", model=model)


@with_session_memory(memory="sqlite:///streaming.db", window=last_turns(20))
async def chat(text: str) -> AsyncIterator[str]:
    """Yield the answer piece by piece."""
    result = Runner.run_streamed(agent, text)
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield event.data.delta


async def main() -> None:
    """Two streamed turns of one conversation."""
    for text in ["Hi, I'm Alice.", "What's my name?"]:
        print(f"> {text}")
        async for delta in chat(text, session_id="user_alice"):
            print(delta, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main())
