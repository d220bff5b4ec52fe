"""Readers that leave a stream before its end: the run finishes, or is cancelled, as was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from agents import Runner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from session_middleware import session_scope, with_session_memory
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.conditions import until
from tests.support.sessions import letters, states, tool
from tests.support.uvicorn_server import serving

# --- over a real connection ----------------------------------------------------------------


class Place:
    """An agent with a tool and a model that go on only when they may."""

    def __init__(self) -> None:
        self.in_tool = threading.Event()
        self.may_go = threading.Event()
        self.effects = 0

    async def work(self) -> str:
        self.in_tool.set()
        await until(self.may_go.is_set)
        self.effects += 1
        return "worked"

    def agent(self) -> Any:
        return scripted_agent(
            call("work"), assistant("here is the answer"), tools=[tool("work", self.work)]
        )


async def lines_of(result: Any) -> AsyncIterator[str]:
    async for event in result.stream_events():
        yield f"{getattr(event, 'name', event.type)}\n"


def endpoint(form: str, place: Place, memory: Any, options: Any) -> Callable[..., Any]:
    """An endpoint that streams one run, in each of the forms a turn has."""
    start = with_session_memory(Runner.run_streamed, memory=memory, **options)

    @with_session_memory(memory=memory, **options)
    async def decorated() -> Any:
        return Runner.run_streamed(place.agent(), "Hi")

    @with_session_memory(memory=memory, **options)
    async def generator() -> AsyncIterator[str]:
        async for line in lines_of(Runner.run_streamed(place.agent(), "Hi")):
            yield line

    async def answer(request: Request) -> StreamingResponse:
        if form == "wrapped":
            return StreamingResponse(lines_of(start(place.agent(), "Hi", session_id="s")))
        if form == "decorated":
            return StreamingResponse(lines_of(await decorated(session_id="s")))
        if form == "generator":
            return StreamingResponse(generator(session_id="s"))
        async with session_scope("s", memory=memory, **options):
            result = Runner.run_streamed(place.agent(), "Hi")
        return StreamingResponse(lines_of(result))

    return answer


@pytest.fixture
def leave(each_memory: Any) -> Iterator[Callable[..., Place]]:
    """Let a client leave at a moment; returns the place, whose tool may still have to go on."""
    places = []

    def leaves(form: str, moment: str, **options: Any) -> Place:
        place = Place()
        places.append(place)
        app = Starlette(routes=[Route("/", endpoint(form, place, each_memory, options))])
        url, _ = stack.enter_context(serving(app))
        with httpx.Client(timeout=30) as client, client.stream("GET", url) as response:
            lines = response.iter_lines()  # dropping it would close the connection
            if moment != "before the first event":
                for line in lines:
                    if moment == "at the first delta" or "tool_called" in line:
                        break
            if moment == "in the middle of a tool":
                assert place.in_tool.wait(30)
        return place

    with ExitStack() as stack:
        yield leaves
        for place in places:
            place.may_go.set()


async def ended(memory: Any) -> bool:
    """Whether the newest turn has ended."""
    turns = await memory.turns("s", limit=1)
    return bool(turns) and turns[0].state != "running"


FORMS = pytest.mark.parametrize("form", ["wrapped", "decorated", "scope"])
MOMENTS = pytest.mark.parametrize(
    "moment", ["before the first event", "at the first delta", "in the middle of a tool"]
)


@FORMS
@MOMENTS
async def test_a_client_that_leaves_lets_the_run_finish(
    each_memory: Any, leave: Any, form: str, moment: str
) -> None:
    """Whenever the client leaves, the tool has its effect once and the answer is stored."""
    place = await asyncio.to_thread(leave, form, moment)
    place.may_go.set()
    await until(lambda: ended(each_memory))
    assert await states(each_memory) == ["completed"]
    assert letters(await each_memory.load_session("s")) == "U C O A"
    assert place.effects == 1


@FORMS
async def test_a_client_that_leaves_cancels_the_run_where_that_was_asked(
    each_memory: Any, leave: Any, form: str
) -> None:
    """on_departure="cancel": the tool is cancelled, and the session is free."""
    place = await asyncio.to_thread(leave, form, "in the middle of a tool", on_departure="cancel")
    await until(lambda: ended(each_memory))
    assert await states(each_memory) == ["cancelled"]
    assert place.effects == 0


@pytest.mark.parametrize(
    ("options", "state"), [({}, "cancelled"), ({"on_departure": "finish"}, "completed")]
)
async def test_a_client_that_leaves_a_decorated_generator(
    each_memory: Any, leave: Any, options: Any, state: str
) -> None:
    """Its turn is cancelled, unless on_departure="finish" is given: then it finishes."""
    place = await asyncio.to_thread(leave, "generator", "in the middle of a tool", **options)
    if options:
        place.may_go.set()
    await until(lambda: ended(each_memory))
    assert await states(each_memory) == [state]
    assert place.effects == (1 if options else 0)


def test_a_server_that_shuts_down_ends_the_turn(each_memory: Any, do: Any) -> None:
    """A run that is to finish cannot outlive its loop: its turn is cancelled, the session free."""
    place = Place()
    app = Starlette(routes=[Route("/", endpoint("wrapped", place, each_memory, {}))])
    with serving(app) as (url, server), httpx.Client(timeout=30) as client:
        with client.stream("GET", url) as response:
            lines = response.iter_lines()
            assert next(lines)
            assert place.in_tool.wait(30)
        server.should_exit = True
    assert do(states(each_memory)) == ["cancelled"]
    assert place.effects == 0


# --- within one loop -----------------------------------------------------------------------


async def read_on(result: Any, seen: asyncio.Event) -> None:
    async for event in result.stream_events():
        if getattr(event, "name", "") == "tool_called":
            seen.set()


async def cancelled_reader(result: Any, place: Place) -> None:
    seen = asyncio.Event()
    reader = asyncio.ensure_future(read_on(result, seen))
    await seen.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def reader_that_waits_for(result: Any, place: Place) -> None:
    stream = result.stream_events()
    while not place.in_tool.is_set():
        await asyncio.wait_for(anext(stream), 30)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read_all(stream), 0.05)


async def read_all(stream: Any) -> None:
    async for _ in stream:
        pass


async def reader_with_a_timeout(result: Any, place: Place) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await read_on(result, asyncio.Event())


async def reader_that_breaks(result: Any, place: Place) -> None:
    async for _ in result.stream_events():
        break


async def reader_that_closes(result: Any, place: Place) -> None:
    stream = result.stream_events()
    await anext(stream)
    place.may_go.set()
    await stream.aclose()
    assert result.is_complete


async def reader_that_drops_the_stream(result: Any, place: Place) -> None:
    stream = result.stream_events()
    await anext(stream)
    del stream


@pytest.mark.parametrize(
    "leaves",
    [
        cancelled_reader,
        reader_that_waits_for,
        reader_with_a_timeout,
        reader_that_breaks,
        reader_that_closes,
        reader_that_drops_the_stream,
    ],
)
async def test_a_reader_that_leaves_lets_the_run_finish(each_memory: Any, leaves: Any) -> None:
    """However it leaves, the run goes on to its end and the turn is completed."""
    place = Place()
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    result = run(place.agent(), "Hi", session_id="s")
    await leaves(result, place)
    place.may_go.set()
    await until(lambda: ended(each_memory))
    assert await states(each_memory) == ["completed"]
    assert letters(await each_memory.load_session("s")) == "U C O A"
    assert result.final_output == "here is the answer"


async def test_a_reader_sees_what_the_sdk_would_show(each_memory: Any) -> None:
    """The events of a run in a session are those of a run without one, in their order."""

    async def names(result: Any) -> list[str]:
        return [getattr(event, "name", event.type) async for event in result.stream_events()]

    place = Place()
    place.may_go.set()
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    expected = await names(Runner.run_streamed(place.agent(), "Hi"))
    assert await names(run(place.agent(), "Hi", session_id="s")) == expected


async def test_a_reader_hears_of_the_runs_error(each_memory: Any) -> None:
    """An error of the model reaches the reader, also one that comes later."""
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    result = run(scripted_agent(RuntimeError("the model is down")), "Hi", session_id="s")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the model is down"):
            _ = [event async for event in result.stream_events()]
    assert await states(each_memory) == ["failed"]


async def test_a_reader_may_stop_the_run_between_two_model_turns(each_memory: Any) -> None:
    """cancel("after_turn") in answer to an event takes effect before the model is called again."""
    place = Place()
    place.may_go.set()
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    result = run(place.agent(), "Hi", session_id="s")
    async for event in result.stream_events():
        if getattr(event, "name", "") == "tool_output":
            result.cancel(mode="after_turn")
    assert letters(await each_memory.load_session("s")) == "U C O"
    assert await states(each_memory) == ["cancelled"]


async def test_two_readers_share_the_events(each_memory: Any) -> None:
    """Each event goes to one of them, and both come to the end."""
    place = Place()
    run = with_session_memory(Runner.run_streamed, memory=each_memory)
    result = run(place.agent(), "Hi", session_id="s")
    seen: list[Any] = []

    async def read() -> None:
        async for event in result.stream_events():
            seen.append(event)
            place.may_go.set()

    await asyncio.gather(read(), read())
    kinds = [getattr(event, "name", event.type) for event in seen]
    assert kinds.count("tool_called") == kinds.count("tool_output") == 1


# --- a decorated async generator -----------------------------------------------------------


async def test_a_finishing_generator_takes_what_it_is_sent(each_memory: Any) -> None:
    """asend and athrow reach it, and it ends as it would without a session."""

    @with_session_memory(memory=each_memory, on_departure="finish")
    async def echo() -> AsyncIterator[Any]:
        got = yield "first"
        try:
            yield f"got {got}"
        except ValueError as error:
            yield f"caught {error}"

    stream: Any = echo(session_id="s")
    assert await anext(stream) == "first"
    assert await stream.asend("x") == "got x"
    assert await stream.athrow(ValueError("y")) == "caught y"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert await states(each_memory) == ["completed"]


async def test_a_finishing_generator_that_fails(each_memory: Any) -> None:
    """Its error reaches the reader, and the turn failed."""

    @with_session_memory(memory=each_memory, on_departure="finish")
    async def fails() -> AsyncIterator[str]:
        yield "first"
        raise LookupError("nothing there")

    stream: Any = fails(session_id="s")
    assert await anext(stream) == "first"
    with pytest.raises(LookupError, match="nothing there"):
        await anext(stream)
    assert await states(each_memory) == ["failed"]


async def test_a_finishing_generator_takes_no_step_ahead(each_memory: Any) -> None:
    """While the reader is there, it decides when the next step is taken."""
    steps = []

    @with_session_memory(memory=each_memory, on_departure="finish")
    async def count() -> AsyncIterator[int]:
        for number in range(3):
            steps.append(number)
            yield number

    stream: Any = count(session_id="s")
    await anext(stream)
    for _ in range(20):
        await asyncio.sleep(0)
    assert steps == [0]
    await stream.aclose()
    await until(lambda: ended(each_memory))
    assert steps == [0, 1, 2]
    assert await states(each_memory) == ["completed"]
