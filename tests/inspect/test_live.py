"""Pages that follow the memory: what they are told, and how often they look for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from session_middleware.conformance.samples import user
from session_middleware.inspect import app, live
from session_middleware.inspect.live import Live
from tests.support.approvals import paying
from tests.support.sessions import carried_out

FRAGMENT = (b"x-inspect-fragment", b"1")


async def test_changes_are_told_and_no_more(each_memory: Any, monkeypatch: Any) -> None:
    """An event for each change of what the page shows, and signs of life in between."""
    monkeypatch.setattr(live, "_SOONEST", 0.01)
    monkeypatch.setattr(live, "_LATEST", 0.01)
    monkeypatch.setattr(live, "_SIGN", 0.1)
    await each_memory.append_to_session("s", [user("1")])
    events = Live().changes(lambda: each_memory.session_info("s"))
    assert (await anext(events)).startswith("retry")
    assert (await anext(events)).startswith(":")  # nothing changed for a while
    await each_memory.append_to_session("s", [user("2")])
    told = await anext(events)
    while told.startswith(":"):  # a look that was under way
        told = await anext(events)
    assert told == "data: changed\n\n"
    assert (await anext(events)).startswith(":")
    await events.aclose()


@asynccontextmanager
async def followed(memory: Any, query: str) -> AsyncIterator[asyncio.Queue[str]]:
    """What an open page is told: its stream of events, as the app sends it."""
    told: asyncio.Queue[str] = asyncio.Queue()
    headers = [(b"host", b"127.0.0.1:8000")]
    scope = {"type": "http", "method": "GET", "path": "/events", "query_string": query.encode()}
    scope |= {"headers": headers, "client": ("127.0.0.1", 5), "http_version": "1.1"}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200
        told.put_nowait(message.get("body", b"").decode())

    async def receive() -> Any:
        return await asyncio.Event().wait()

    following = asyncio.create_task(app(memory)(scope, receive, send))
    try:
        yield told
    finally:
        following.cancel()
        await asyncio.wait([following])


@pytest.mark.parametrize(
    ("query", "shown"),
    [("id=s", "decision title item"), ("pending=1", "decision"), ("q=s", "title item")],
)
async def test_a_page_is_told_of_what_it_shows(
    query: str, shown: str, each_memory: Any, monkeypatch: Any
) -> None:
    """Of a decision and a title, too, whoever made them."""
    monkeypatch.setattr(live, "_SOONEST", 0.01)
    monkeypatch.setattr(live, "_LATEST", 0.01)
    monkeypatch.setattr(live, "_SIGN", 0.02)
    await carried_out("run", paying([]), "Pay", each_memory)
    (waiting,) = await each_memory.pending()
    changes = {
        "decision": each_memory.decide("s", waiting.turn, waiting.calls[0].id),
        "title": each_memory.set_title("s", "Paying"),
        "item": each_memory.append_to_session("s", [user("2")]),
    }
    async with followed(each_memory, query) as told:
        for change, made in changes.items():
            while change in shown and not (await told.get()).startswith(":"):
                pass  # until it has looked since the last change
            await made
            while change in shown and not (await told.get()).startswith("data: changed"):
                pass


@pytest.mark.parametrize("pages", [1, 3])
async def test_open_pages_take_a_small_share_of_the_time(pages: int, monkeypatch: Any) -> None:
    """However long a look takes, and however many pages are open; closed ones do not count."""
    monkeypatch.setattr(live, "SHARE", 0.5)
    monkeypatch.setattr(live, "_SOONEST", 0.0)
    following = Live()
    looks: list[list[tuple[float, float]]] = [[] for _ in range(pages)]
    streams = [following.changes(_timed(own)) for own in looks]
    for stream in streams:
        await anext(stream)
    await asyncio.gather(*(_read(stream, 6) for stream in streams))
    for own in looks:
        whole = own[-1][0] - own[0][0]  # until the last look begins
        assert sum(took for _, took in own[:-1]) < 0.5 / pages * whole
    for stream in streams[1:]:
        await stream.aclose()
    assert following._pause(0.02) == pytest.approx(0.04)
    await streams[0].aclose()


async def test_what_a_page_shows_counts_like_a_look(monkeypatch: Any) -> None:
    """What is live of it and takes long to show is looked at less often."""
    monkeypatch.setattr(live, "_SOONEST", 0.0)
    following = Live()
    stream = following.changes(lambda: asyncio.sleep(0))
    await anext(stream)

    async def slow(request: Request) -> Response:
        await asyncio.sleep(0.02)
        return Response("shown")

    for headers, least in (([], 0.0), ([FRAGMENT], 0.02 / live.SHARE)):
        request = Request({"type": "http", "headers": headers})
        assert (await following.timed(slow)(request)).body == b"shown"
        assert following._pause(0.0) >= least
        assert (following._pause(0.0) > 0) is bool(least)
    await stream.aclose()


async def test_somebody_is_told_within_some_seconds() -> None:
    """A look that takes very long does not put the next one off for ever, nor a short one hurry."""
    following = Live()
    stream = following.changes(lambda: asyncio.sleep(0))
    await anext(stream)
    assert following._pause(1e-6) == live._SOONEST
    assert following._pause(60.0) == live._LATEST
    await stream.aclose()


def _timed(own: list[tuple[float, float]]) -> Callable[[], Any]:
    """A look that finds something new each time, and notes when it began and what it took."""

    async def look() -> int:
        began = time.perf_counter()
        await asyncio.sleep(0.02)
        own.append((began, time.perf_counter() - began))
        return len(own)

    return look


async def _read(stream: AsyncIterator[str], count: int) -> None:
    """Read so many changes."""
    for _ in range(count):
        assert (await anext(stream)).startswith("data")
