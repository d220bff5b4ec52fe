"""Sessions that are written to without a pause while their server is disturbed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from session_middleware.conformance.samples import assistant, user
from tests.support.conditions import until

Write = Callable[[Any, str, str], Awaitable[None]]
"""Writes a text and its answer to a session: memory, session id, text."""


async def append(memory: Any, session_id: str, text: str) -> None:
    """One append from outside a turn."""
    await memory.append_to_session(session_id, [user(text), assistant(text)])


async def disturbed_under_load(
    memory: Any,
    session_ids: Collection[str],
    disturb: Callable[[], object],
    *,
    times: int = 1,
    writes: int = 5,
    write: Write = append,
) -> None:
    """Write to every session while the server is disturbed: nothing is lost, nothing twice.

    Args:
        disturb: called in a thread.
        times: how often.
        writes: how many each session has acknowledged before each disturbance and at the end.
    """
    acknowledged: dict[str, list[str]] = {session_id: [] for session_id in session_ids}
    stop = asyncio.Event()

    async def writing(session_id: str) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            text = f"{session_id} {number}"
            await write(memory, session_id, text)
            acknowledged[session_id].append(text)

    async def more_writes() -> None:
        enough = {session_id: len(texts) + writes for session_id, texts in acknowledged.items()}
        await until(lambda: all(len(acknowledged[each]) >= enough[each] for each in enough))

    async def disturbing() -> None:
        for _ in range(times):
            await more_writes()
            await asyncio.to_thread(disturb)
        await more_writes()
        stop.set()

    async with asyncio.TaskGroup() as group:
        for session_id in acknowledged:
            group.create_task(writing(session_id))
        group.create_task(disturbing())
    for session_id, texts in acknowledged.items():
        expected = [item for text in texts for item in (user(text), assistant(text))]
        assert await memory.load_session(session_id) == expected
