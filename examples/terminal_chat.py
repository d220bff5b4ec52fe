"""A chat in the terminal that goes on where it was left, tomorrow and in another window.

    pip install session-middleware
    python terminal_chat.py                 # the conversation of this user
    python terminal_chat.py work            # another one, by its name
    python terminal_chat.py --list

Ctrl-C stops an answer, Ctrl-D ends the program; what was said is kept in terminal_chat.db.
"""

import asyncio
import getpass
import os
import sys

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import SessionBusy, SQLiteSessionMemory, last_turns, session_scope
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", instructions="Reply in one short sentence.", model=model)
memory = SQLiteSessionMemory("terminal_chat.db")


async def show(session_id: str) -> None:
    """What was said last."""
    for record in reversed(await memory.turns(session_id, limit=3)):
        print(f"  {record.started_at:%d %b %H:%M}  {record.output_text or record.state}")


async def answer(session_id: str, text: str) -> None:
    """One turn, printed as it comes; the model sees the last 20 turns."""
    async with session_scope(session_id, memory=memory, window=last_turns(20), wait_timeout=5):
        async for event in Runner.run_streamed(agent, text).stream_events():
            data = event.data if event.type == "raw_response_event" else None
            if data is not None and data.type == "response.output_text.delta":
                print(data.delta, end="", flush=True)
    print()


async def names() -> None:
    """The conversations there are, newest first."""
    for info in await memory.sessions():
        print(f"{info.session_id}: {info.turns} turns, {info.first_question}")


def main() -> None:
    """Read a line, answer it, until there is none."""
    arguments = sys.argv[1:]
    if arguments == ["--list"]:
        asyncio.run(names())
        return
    session_id = arguments[0] if arguments else getpass.getuser()
    asyncio.run(show(session_id))
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            break
        try:
            if text:
                asyncio.run(answer(session_id, text))
        except KeyboardInterrupt:
            print(" (stopped)")
        except SessionBusy:
            print("This conversation is at work in another window; try again.")


if __name__ == "__main__":
    main()
