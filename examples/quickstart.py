"""One decorator, and the function remembers, by session_id.

python examples/quickstart.py
"""

import asyncio

from agents import Agent, Runner
from offline import model

from session_middleware import with_session_memory

agent = Agent(name="Assistant", instructions="Reply very concisely.", model=model())


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
