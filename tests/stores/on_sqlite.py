"""What the tests of the SQLite store say again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from session_middleware.memory import TakeTurn, TurnEnd


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def take(session_id: str = "a", **said: Any) -> TakeTurn:
    return TakeTurn(session_id, datetime.now(UTC), **said)


def completed(**said: Any) -> TurnEnd:
    return TurnEnd("completed", datetime.now(UTC), **said)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another thread or process makes it true
        await asyncio.sleep(0.005)
