"""Waiting for a condition, the only way in which a test waits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

_AT_ONCE = 100  # checks between which only the tasks of this loop get a chance


async def until(condition: Callable[[], Any]) -> None:
    """Let others go on until the condition holds; what it returns is awaited where needed.

    The others are tasks of this event loop first, then threads and processes.
    """
    checks = 0
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        checks += 1
        await asyncio.sleep(0 if checks < _AT_ONCE else 0.005)
