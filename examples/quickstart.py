"""One decorator, and the function remembers, by session_id.

pip install session-middleware
python quickstart.py
"""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", instructions="Reply very concisely.", model=model)


@with_session_memory  # keeps the conversations in ./agent_sessions.db
async def chat(question: str) -> str:
    """Answer one question; nothing in here knows of the memory."""
    result = await Runner.run(agent, question)
    return result.final_output


async def main() -> None:
    """Two turns of one conversation."""
    print(await chat("What city is the Golden Gate Bridge in?", session_id="conversation_1"))
    print(await chat("What state is it in?", session_id="conversation_1"))


if __name__ == "__main__":
    asyncio.run(main())
