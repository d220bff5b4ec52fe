"""A chat over HTTP: streamed answers, safe retries, 409 while busy, list, page and delete.

    pip install session-middleware 'fastapi>=0.115' uvicorn
    uvicorn fastapi_chat:app --workers 2
    curl -N localhost:8000/threads/7 -H 'Idempotency-Key: a1' --json '{"text": "Hi, I am Alice."}'
    curl localhost:8000/threads

A session id is not a credential: it is made here from the user, who must be authenticated.
"""

import json
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from agents import Agent, Runner, RunResultStreaming, set_tracing_disabled
from fastapi import Body, Depends, FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse

from session_middleware import (
    DuplicateTurn,
    IdempotencyConflict,
    SessionBusy,
    SQLiteSessionMemory,
    TurnInProgress,
    session_scope,
)
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)
agent = Agent(name="Assistant", model=model)
memory = SQLiteSessionMemory("chat.db")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    await memory.cleanup(drain=20)  # answers that are still streamed get 20 seconds


app = FastAPI(lifespan=lifespan)


async def current_user(authorization: Annotated[str, Header()] = "user alice") -> str:
    return authorization.split()[-1]  # your authentication goes here


User = Annotated[str, Depends(current_user)]


@app.post("/threads/{thread}")
async def chat(
    thread: str,
    user: User,
    text: Annotated[str, Body(embed=True)],
    key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> StreamingResponse:
    """Take the turn, then stream; the stream holds the turn until its run is over."""
    asked: dict[str, Any] = {"idempotency_key": key, "fingerprint": text if key else None}
    try:
        async with session_scope(f"{user}:{thread}", memory=memory, on_busy="reject", **asked):
            answer = deltas(Runner.run_streamed(agent, text))
    except (SessionBusy, TurnInProgress) as busy:
        headers = {"Retry-After": str(math.ceil(busy.retry_after or 1))}
        raise HTTPException(409, "another message is being answered", headers) from busy
    except IdempotencyConflict as conflict:
        raise HTTPException(422, "this key was used for another message") from conflict
    except DuplicateTurn as done:  # asked again: the stored answer
        answer = stored((done.record and done.record.output_text) or "")
    return StreamingResponse(answer, media_type="text/event-stream")


async def deltas(result: RunResultStreaming) -> AsyncIterator[str]:
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield f"data: {json.dumps(event.data.delta)}\n\n"


async def stored(text: str) -> AsyncIterator[str]:
    yield f"data: {json.dumps(text)}\n\n"


@app.get("/threads")
async def threads(user: User, after: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The user's threads, newest first; pass the last ``cursor`` as ``after`` for the next page."""
    page = await memory.sessions(prefix=f"{user}:", limit=min(limit, 100), after=after)
    return [
        {"thread": info.session_id.partition(":")[2], "cursor": info.cursor, "turns": info.turns}
        for info in page
    ]


@app.delete("/threads/{thread}", status_code=204)
async def delete(thread: str, user: User) -> None:
    await memory.delete(f"{user}:{thread}")  # no word of it is in the file afterwards
