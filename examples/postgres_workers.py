"""A service on PostgreSQL with two workers: any of them answers any message of a conversation.

    pip install 'session-middleware[postgres]' 'fastapi>=0.115' uvicorn
    export DATABASE_URL=postgresql://app@db.example.com/chat
    session-middleware schema | psql "$DATABASE_URL"       # once, as the owner of the database
    uvicorn postgres_workers:app --workers 2
    curl localhost:8000/threads/7 --json '{"text": "Hi, I am Alice."}'

Two messages of one thread wait for each other, whichever workers get them. When a worker is killed,
its threads are free after the lease, and the same request is taken up by another worker.
"""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from agents import Agent, Runner, set_tracing_disabled
from fastapi import Body, FastAPI, Header, HTTPException

from session_middleware import (
    DuplicateTurn,
    PostgresSessionMemory,
    SessionBusy,
    TurnInProgress,
    last_turns,
    with_session_memory,
)
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", model=model)
# The tables are there: the workers need no right to make them. Nothing connects before its use.
memory = PostgresSessionMemory(os.environ["DATABASE_URL"], migrate=False, lease=15, max_size=5)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await memory.ping()  # a worker that cannot reach its database does not start
    yield
    await memory.cleanup(drain=20)  # a deployment waits for the answers that are under way


app = FastAPI(lifespan=lifespan)


@with_session_memory(memory=memory, window=last_turns(50), wait_timeout=20)
async def answer(text: str) -> str:
    """One turn; a second message of the thread waits up to 20 seconds for it."""
    return (await Runner.run(agent, text)).final_output


@app.post("/threads/{thread}")
async def chat(
    thread: str,
    text: Annotated[str, Body(embed=True)],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Answer a message; ``worker`` tells which process did."""
    try:
        said = await answer(text, session_id=f"alice:{thread}", idempotency_key=idempotency_key)
    except DuplicateTurn as done:
        said = (done.record.output_text if done.record else None) or ""
    except (SessionBusy, TurnInProgress) as busy:
        headers = {"Retry-After": str(math.ceil(busy.retry_after or 1))}
        raise HTTPException(409, "another message is being answered", headers) from busy
    return {"text": said, "worker": os.getpid()}


@app.get("/health")
async def health() -> dict[str, int]:
    """Whether this worker reaches the database."""
    await memory.ping()
    return {"worker": os.getpid()}
