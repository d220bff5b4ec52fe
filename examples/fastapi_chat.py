"""A chat over HTTP with streamed answers; a session that is busy is a 409, before any header.

    uvicorn --app-dir examples fastapi_chat:app
    curl -N localhost:8000/chat/thread-7 --json '{"text": "Hi, I am Alice."}'

A session id is not a credential. This example lets any caller name any thread; a real service
makes the id from the user it has authenticated, such as f"{user.id}:{thread}".
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents import Agent, Runner, RunResultStreaming
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from offline import model
from pydantic import BaseModel

from session_middleware import SessionBusy, SQLiteSessionMemory, session_scope

agent = Agent(name="Assistant", model=model())
memory = SQLiteSessionMemory("chat.db")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the memory when the service stops."""
    async with memory:
        yield


app = FastAPI(lifespan=lifespan)


class Message(BaseModel):
    """What the caller says."""

    text: str


@app.post("/chat/{thread}")
async def chat(thread: str, message: Message) -> StreamingResponse:
    """Take the turn, then answer; the stream holds the turn until its run is over."""
    try:
        async with session_scope(thread, memory=memory, on_busy="reject"):
            result = Runner.run_streamed(agent, message.text)
    except SessionBusy as busy:
        headers = {"Retry-After": str(round(busy.retry_after or 1))}
        raise HTTPException(409, "another message is being answered", headers) from busy
    return StreamingResponse(deltas(result), media_type="text/plain")


async def deltas(result: RunResultStreaming) -> AsyncIterator[str]:
    """The answer's text, as it comes."""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield event.data.delta
