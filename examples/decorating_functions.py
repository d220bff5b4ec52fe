"""The decorator on functions of every kind.

pip install session-middleware
python decorating_functions.py
"""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import InMemorySessionMemory, current_session, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", model=model)
memory = InMemorySessionMemory()
remember = with_session_memory(memory=memory)  # one decorator for many functions


@remember
def ask(question: str) -> str:
    """A plain function around run_sync."""
    return Runner.run_sync(agent, question).final_output


@with_session_memory(memory=memory, session_id="thread_id")  # the parameter that names the session
async def answer(thread_id: str, text: str) -> str:
    """A coroutine function that already has a name for the conversation."""
    return (await Runner.run(agent, text)).final_output


@with_session_memory(memory=memory, session_id=lambda user, text: f"user:{user}")
async def greet(user: str, text: str) -> str:
    """A coroutine function whose arguments make up the session's id."""
    print("in session", current_session())
    return (await Runner.run(agent, text)).final_output


class Support:
    """A class whose method remembers."""

    @remember
    async def reply(self, text: str) -> str:
        """A method; several runs in it are one turn."""
        draft = await Runner.run(agent, text)
        return draft.final_output


async def main() -> None:
    """The coroutine functions; ``ask`` is called outside of any event loop."""
    await answer("thread-7", "Hi, I'm Alice.")
    print(await answer("thread-7", "What's my name?"))
    print(await greet("bob", "Hi, I'm Bob."))
    support = Support()
    await support.reply("My name is Carol.", session_id="ticket-1")
    print(await support.reply("What's my name?", session_id="ticket-1"))


if __name__ == "__main__":
    ask("Hi, I'm Dora.", session_id="shell")
    print(ask("What's my name?", session_id="shell"))
    asyncio.run(main())
