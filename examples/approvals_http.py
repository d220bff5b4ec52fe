"""Approvals over HTTP, with two workers: one parks a run, any other lists, decides and resumes.

    pip install session-middleware 'fastapi>=0.115' uvicorn
    uvicorn approvals_http:app --workers 2
    curl localhost:8000/threads/7 --json '{"text": "Please pay 500."}'
    curl localhost:8000/approvals                          # what waits for this user
    curl localhost:8000/threads/7/approvals/1/CALL --json '{"approve": true}'

The memory keeps the parked state; no client ever has it. A decision is noted first, and stands: who
comes second gets 409. Then the run is resumed; if that fails, ``/resume`` tries again, and the tool
does not run twice.
"""

import os
from typing import Annotated, Any

from agents import Agent, Runner, function_tool, set_tracing_disabled
from fastapi import Body, Depends, FastAPI, Header, HTTPException

from session_middleware import (
    DuplicateTurn,
    SQLiteSessionMemory,
    TurnInProgress,
    UnknownState,
    with_session_memory,
)
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel(uses_tools=True)
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay an amount."""
    with open("payments.txt", "a") as payments:
        payments.write(f"{cents}\n")
    return f"paid {cents}"


agent = Agent(name="Cashier", model=model, tools=[pay])
memory = SQLiteSessionMemory("approvals.db")
run = with_session_memory(Runner.run, memory=memory)
app = FastAPI()


async def current_user(authorization: Annotated[str, Header()] = "user alice") -> str:
    return authorization.split()[-1]  # your authentication goes here


User = Annotated[str, Depends(current_user)]


@app.post("/threads/{thread}")
async def ask(thread: str, user: User, text: Annotated[str, Body(embed=True)]) -> Any:
    result = await run(agent, text, session_id=f"{user}:{thread}")
    waits = len(result.interruptions)
    return {"text": result.final_output, "waits": waits, "worker": os.getpid()}


@app.get("/approvals")
async def approvals(user: User) -> list[dict[str, Any]]:
    return [
        {"thread": one.session_id.partition(":")[2], "turn": one.turn, "worker": os.getpid()}
        | {"call": call.id, "tool": call.name, "arguments": call.arguments}
        for one in await memory.pending(prefix=f"{user}:")
        for call in one.calls
        if call.approved is None
    ]


@app.post("/threads/{thread}/approvals/{turn}/{call}")
async def decide(
    thread: str, turn: int, call: str, user: User, approve: Annotated[bool, Body(embed=True)]
) -> Any:
    try:
        await memory.decide(f"{user}:{thread}", turn, call, approve=approve)
    except (DuplicateTurn, UnknownState) as other:
        raise HTTPException(409, "this was decided before, or nothing waits there") from other
    return await resume(thread, user)


@app.post("/threads/{thread}/resume")
async def resume(thread: str, user: User) -> Any:
    """Resume what is decided in a thread, here or on another worker, again if it failed."""
    for one in await memory.pending(f"{user}:{thread}"):
        if any(call.approved is not None for call in one.calls):
            try:
                result = await run(agent, await one.restore(agent), session_id=one.session_id)
            except (DuplicateTurn, TurnInProgress) as other:
                raise HTTPException(409, "another worker resumes it") from other
            return {"text": result.final_output, "worker": os.getpid()}
    raise HTTPException(404, "nothing waits to be resumed")
