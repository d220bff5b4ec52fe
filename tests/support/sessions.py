"""What a session holds, in one letter per item, and tools that remember that they were called.

U a user's message, C a call of a tool, O its output, A an answer: "U C O A" is a run that used
one tool. Text is added where a test needs to know whose item it is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from agents import FunctionTool, Runner, function_tool

from session_middleware import SessionBusy, SessionMemory, session_scope, with_session_memory
from session_middleware.testing.assertions import letters
from session_middleware.testing.wire import text_of as content_text


async def stored(memory: SessionMemory, session_id: str = "s") -> str:
    """The letters of all that a session holds."""
    return letters(await memory.load_session(session_id))


async def states(memory: Any, session_id: str = "s") -> list[str]:
    """The states of a session's turns, oldest first."""
    return [record.state for record in reversed(await memory.turns(session_id))]


def text_of(item: Mapping[str, Any]) -> str:
    """The text of a message or of an output."""
    return content_text(item.get("content", item.get("output")))


def tool(name: str, does: Callable[[], Any], **options: Any) -> FunctionTool:
    """A tool without arguments; what ``does`` returns is its output, awaited where needed."""

    async def body() -> str:
        value = does()
        return str(await value if inspect.isawaitable(value) else value)

    return function_tool(name_override=name, **options)(body)


def counted(name: str, counts: list[str], **options: Any) -> FunctionTool:
    """A tool that adds its name to ``counts`` whenever it does its work."""

    def work() -> str:
        counts.append(name)
        return f"{name} done"

    return tool(name, work, **options)


METHODS = ("run", "run_streamed")
"""The two ways to run under an event loop; ``carried_out`` makes either."""


async def carried_out(
    method: str, agent: Any, given: Any, memory: Any, session_id: str = "s", **options: Any
) -> Any:
    """Run an agent in a session through a wrapped Runner method; streams are read to their end.

    ``decoration`` holds options for the decorator, all others go to the call.
    """
    decoration = options.pop("decoration", {})
    wrapped = with_session_memory(getattr(Runner, method), memory=memory, **decoration)
    made = wrapped(agent, given, session_id=session_id, **options)
    return await consumed(made) if method == "run_streamed" else await made


async def run_by(method: str, *args: Any, **kwargs: Any) -> Any:
    """A run by ``Runner`` itself; a stream is read to its end."""
    made = getattr(Runner, method)(*args, **kwargs)
    return await consumed(made) if method == "run_streamed" else await made


async def consumed(result: Any) -> Any:
    """Read a stream to its end and return its result."""
    async for _ in result.stream_events():
        pass
    return result


async def free(memory: Any, session_id: str = "s") -> bool:
    """Whether the session can be acquired at once."""
    try:
        async with session_scope(session_id, memory=memory, on_busy="reject"):
            return True
    except SessionBusy:
        return False


async def freed(memory: Any, session_id: str = "s") -> None:
    """Wait until the session can be acquired."""
    async with session_scope(session_id, memory=memory):
        return


@contextmanager
def own_loop() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """An event loop for this thread, closed afterwards; gives what runs a coroutine in it.

    ``Runner.run_sync`` would make one and leave it open.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield loop.run_until_complete
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


@asynccontextmanager
async def held(
    memory: Any, inside: Callable[[int], Awaitable[Any]] | None = None
) -> AsyncIterator[asyncio.Event]:
    """The session is held by a turn of another task, which goes on until the block ends.

    ``inside`` is called in that turn when the event is set that the block is given.
    """
    is_held, goes_on, may_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with session_scope("s", memory=memory):
            is_held.set()
            if inside is not None:
                await goes_on.wait()
                await inside(0)
            await may_go.wait()

    holding = asyncio.create_task(hold())
    await is_held.wait()
    try:
        yield goes_on
    finally:
        goes_on.set()
        may_go.set()
        await holding
