"""Pages that follow the memory: when one of them has changed, and how often that is looked for.

A turn must not wait because somebody looks, so the pages that are open take a small share of the
time together: what takes long, or takes long because the machine is busy, is looked at less often.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import astuple, is_dataclass
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from session_middleware.errors import SessionMemoryError

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

SHARE = 0.03
"""How much of the time the pages that are open take together, of looking and of being shown."""

_SOONEST, _LATEST = 1.0, 10.0  # seconds between two looks for a change
_SIGN = 15.0  # seconds without a change after which a sign of life is sent


class Live:
    """The pages of one memory that are open."""

    def __init__(self) -> None:
        self._open = 0
        self._shown = 0.0  # seconds that showing what is live took, the last time

    def timed(self, handler: Handler) -> Handler:
        """The handler of a page, with a note of how long it takes to show what is live of it."""

        async def handle(request: Request) -> Response:
            began = time.perf_counter()
            response = await handler(request)
            if is_fragment(request):
                self._shown = time.perf_counter() - began
            return response

        return handle

    async def changes(self, look: Callable[[], Awaitable[Any]]) -> AsyncIterator[str]:
        """Yield a line for each change, and now and then a sign of life.

        Args:
            look: reads what the page shows: values, dataclasses, and lists and tuples of them.
        """
        self._open += 1
        try:
            known, told = None, time.monotonic()
            yield "retry: 2000\n\n"
            while True:
                began = time.perf_counter()
                seen = await _digest(look)
                took = time.perf_counter() - began
                if known is not None and seen != known:
                    yield "data: changed\n\n"
                    told = time.monotonic()
                elif time.monotonic() - told >= _SIGN:
                    yield ": still here\n\n"
                    told = time.monotonic()
                known = seen
                await asyncio.sleep(self._pause(took))
        finally:
            self._open -= 1

    def _pause(self, took: float) -> float:
        """Seconds until the next look, after one that took so long."""
        seldom = (took + self._shown) * self._open / SHARE
        return min(max(_SOONEST, seldom), _LATEST)


def is_fragment(request: Request) -> bool:
    """Whether the script of a page asks for what is live of it alone."""
    return request.headers.get("x-inspect-fragment") == "1"


async def _digest(look: Callable[[], Awaitable[Any]]) -> str:
    try:
        told = repr(_whole(await look()))
    except SessionMemoryError:
        return "down"
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()


def _whole(value: Any) -> Any:
    """The value in a form whose repr tells all of it, titles and words included."""
    if is_dataclass(value) and not isinstance(value, type):
        return astuple(value)
    return [_whole(each) for each in value] if isinstance(value, (list, tuple)) else value
