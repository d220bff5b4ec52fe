"""A batch of 500 that can be stopped at any moment and goes on where it was.

    pip install session-middleware
    python batch.py          # stop it with Ctrl-C, or kill it
    python batch.py          # the rest

Each row is a session with one turn, and its idempotency key is the batch's name: a row that is done
is not done again, and one that was interrupted is taken up. Ten rows are worked on at once.
"""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import (
    DuplicateTurn,
    SQLiteSessionMemory,
    TurnInProgress,
    with_session_memory,
)
from session_middleware.testing import LocalModel

BATCH, ROWS, AT_ONCE = "reviews-2026-11", 500, 10

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Reviewer", instructions="Summarise the review in five words.", model=model)
# A power failure may cost the newest rows, which are then done again; a kill costs nothing.
memory = SQLiteSessionMemory("batch.db", lease=5, synchronous="NORMAL")


@with_session_memory(memory=memory)
async def summarise(review: str) -> str:
    """One row."""
    return (await Runner.run(agent, review)).final_output


async def work(row: int) -> bool:
    """Do a row; returns False where it was done before."""
    while True:
        try:
            await summarise(
                f"I'm Customer{row}, and I like it.",
                session_id=f"{BATCH}:{row:03}",
                idempotency_key=BATCH,
            )
        except DuplicateTurn:
            return False
        except TurnInProgress as busy:  # a process that was killed still holds it
            await asyncio.sleep(busy.retry_after or 1)
        else:
            return True


async def main() -> None:
    """All rows, ten at once."""
    rows = iter(range(1, ROWS + 1))
    new = old = 0

    async def worker() -> None:
        nonlocal new, old
        for row in rows:  # shared: each row goes to one worker
            if await work(row):
                new += 1
                if new % 50 == 0:
                    print(f"{new} rows", flush=True)
            else:
                old += 1

    async with memory:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        print(f"{new} rows done now, {old} before")
        (first,) = await memory.turns(f"{BATCH}:001")
        print(f"row 1: {first.output_text}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("stopped; run it again for the rest")
