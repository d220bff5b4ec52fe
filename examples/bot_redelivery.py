"""A bot whose messages are delivered at least once: each is answered by one turn, in order.

    pip install session-middleware
    python bot_redelivery.py

The queue here delivers the second message again, since nobody acknowledged it: the worker died.
The id of a message is its idempotency key, so the tool does not run again.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from agents import Agent, Runner, function_tool, set_tracing_disabled

from session_middleware import (
    DuplicateTurn,
    SQLiteSessionMemory,
    TurnInProgress,
    with_session_memory,
)
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel(uses_tools=True)
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)


def note(file: str, line: str) -> None:
    with open(file, "a") as notes:
        notes.write(f"{line}\n")


def noted(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


@function_tool
def book(seats: int) -> str:
    """Book seats."""
    note("bookings.txt", f"{seats} seats")
    return f"{seats} seats are booked"


agent = Agent(name="Bot", instructions="Book what you are asked to.", model=model, tools=[book])
memory = SQLiteSessionMemory("bot.db", lease=2)  # seconds until a dead worker's session is free
MESSAGES = [
    {"id": "m1", "user": "alice", "text": "Hi, I'm Alice."},
    {"id": "m2", "user": "alice", "text": "Please book 2 seats."},
    {"id": "m3", "user": "alice", "text": "What's my name?"},
]


@with_session_memory(memory=memory)
async def reply(text: str) -> str:
    return (await Runner.run(agent, text)).final_output


async def handle(message: dict[str, str]) -> bool:
    """Handle one delivery; True: acknowledge it, False: let it come again."""
    try:
        session_id = f"telegram:{message['user']}"
        answer = await reply(message["text"], session_id=session_id, idempotency_key=message["id"])
    except DuplicateTurn as done:  # it was answered, and the acknowledgement was lost
        answer = (done.record and done.record.output_text) or ""
    except TurnInProgress as busy:  # another worker is at it, or died at it
        await asyncio.sleep(busy.retry_after or 1)
        return False
    print(f"  {message['id']}: {answer}", flush=True)
    return True


async def work(dies_at: str) -> None:
    """A worker: takes messages until none is left that nobody acknowledged."""
    waiting = [message for message in MESSAGES if message["id"] not in noted("done.txt")]
    while waiting:
        if not await handle(waiting[0]):
            continue
        message = waiting.pop(0)
        if message["id"] == dies_at:
            os._exit(9)  # answered, and not acknowledged
        note("done.txt", message["id"])


def main() -> None:
    """Two workers, one after the other; the first dies."""
    if len(sys.argv) > 1:
        asyncio.run(work(sys.argv[1]))
        return
    for name, dies_at in (("first", "m2"), ("second", "none")):
        print(f"the {name} worker", flush=True)
        subprocess.run([sys.executable, __file__, dies_at], check=False)
    print("bookings:", noted("bookings.txt"))


if __name__ == "__main__":
    main()
