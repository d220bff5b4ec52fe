"""Many conversations at once, in one file, each with its own memory.

    pip install session-middleware
    python many_sessions.py

The turns of one session follow each other, even when they are asked for at the same moment;
turns of different sessions run side by side.
"""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import SQLiteSessionMemory, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", model=model)


async def main() -> None:
    """Introduce a few people at once, then ask for their names at once."""
    names = ["Alice", "Bob", "Carol", "Dave"]
    async with SQLiteSessionMemory("many_sessions.db") as memory:
        run = with_session_memory(Runner.run, memory=memory)

        await asyncio.gather(
            *(run(agent, f"My name is {name}.", session_id=f"user_{name}") for name in names)
        )
        answers = await asyncio.gather(
            *(run(agent, "What's my name?", session_id=f"user_{name}") for name in names)
        )

        for name, result in zip(names, answers, strict=True):
            print(f"user_{name}: {result.final_output}")
        print("sessions:", ", ".join(sorted(await memory.list_sessions())))


if __name__ == "__main__":
    asyncio.run(main())
