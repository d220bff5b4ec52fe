"""From histories carried by hand to a memory, including the conversations there are already.

pip install session-middleware
python migrating_from_to_input_list.py
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
    """The old way, the step between, and the new way."""
    # Before: the caller keeps the history and sends all of it, every time.
    result = await Runner.run(agent, "What city is the Golden Gate Bridge in?")
    history = result.to_input_list()

    async with SQLiteSessionMemory("migrated.db") as memory:
        # Once, for every conversation there is: hand it to the memory.
        await memory.save_session("conversation_1", history)

        # After: the caller sends the new message only.
        run = with_session_memory(Runner.run, memory=memory)
        result = await run(agent, "What state is it in?", session_id="conversation_1")
        print(result.final_output)

        # Do not do both: to_input_list() plus a session would store the history twice.
        print(len(await memory.load_session("conversation_1")), "items are stored")


if __name__ == "__main__":
    asyncio.run(main())
