"""``bench``: how fast a memory is here."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import click

from session_middleware.cli.opening import (
    Chosen,
    Opened,
    chosen,
    memory_options,
    missing_file,
    opened,
    run,
)
from session_middleware.cli.output import Output, progress
from session_middleware.scope import session_scope
from session_middleware.words import duration

_AT_ONCE = 16
_WORDS = "x" * 500


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=2.0,
    show_default=True,
    help="How long each figure is measured.",
)
@memory_options
def bench(seconds: float, **values: Any) -> None:
    """Measure how fast this memory is here: turns, histories, a page of sessions.

    It works in sessions of its own, and deletes them. Where the file is not there, it makes one
    beside and removes it.
    """
    choice = chosen(values)
    output = Output(choice.as_json)
    run(_bench(choice, output, seconds))
    output.flush()


async def _bench(choice: Chosen, output: Output, seconds: float) -> None:
    async with _memory(choice) as memory:
        prefix = f"bench-{secrets.token_hex(4)}:"
        try:
            rows = []
            with progress("bench", 4) as advance:
                for what, work, at_once in _works(memory, prefix):
                    times, took = await _measured(work, at_once, seconds)
                    rows.append(_row(what, times, took))
                    advance(1)
        finally:
            await memory.delete_prefix(prefix)
    for row in rows:
        output.value(row)
    output.table(
        ("WHAT", "PER SECOND", "MEDIAN", "99 %"),
        [(row["what"], f"{row['per_second']:,.0f}", *_spans(row)) for row in rows],
        right=("PER SECOND", "MEDIAN", "99 %"),
    )


def _spans(row: dict[str, Any]) -> tuple[str, str]:
    return duration(row["median"]), duration(row["p99"])


@asynccontextmanager
async def _memory(choice: Chosen) -> AsyncIterator[Opened]:
    """The memory, or one on a new file beside where its file would be."""
    path = missing_file(choice.memory)
    if path is None:
        async with opened(choice.memory, choice.scopes) as memory:
            yield memory
        return
    beside = f"{path}.bench-{secrets.token_hex(4)}"
    try:
        async with opened(beside, choice.scopes, creates=True) as memory:
            yield memory
    finally:
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.remove(beside + end)


Work = Callable[[int], Awaitable[Any]]


def _works(memory: Opened, prefix: str) -> list[tuple[str, Work, int]]:
    """What is measured: its words, what is done for a number, and how many of them at once."""

    async def turn(session_id: str) -> None:
        async with session_scope(session_id, memory=memory):
            await memory.append_to_session(
                session_id,
                [
                    {"role": "user", "content": _WORDS},
                    {"role": "assistant", "content": _WORDS},
                ],
            )

    async def history(number: int) -> None:
        await memory.session(f"{prefix}0").get_items(20)

    async def page(number: int) -> None:
        await memory.sessions(limit=50)

    return [
        ("a turn, one after another", lambda number: turn(f"{prefix}0"), 1),
        (
            f"a turn, {_AT_ONCE} sessions at once",
            lambda number: turn(f"{prefix}{number}"),
            _AT_ONCE,
        ),
        ("the newest 20 items", history, 1),
        ("a page of 50 sessions", page, 1),
    ]


async def _measured(work: Work, at_once: int, seconds: float) -> tuple[list[float], float]:
    """How long each piece of work took, and how long all of it."""
    times: list[float] = []
    begun = time.perf_counter()

    async def worker(number: int) -> None:
        while time.perf_counter() - begun < seconds:
            at = time.perf_counter()
            await work(number)
            times.append(time.perf_counter() - at)

    await asyncio.gather(*map(worker, range(at_once)))
    return times, time.perf_counter() - begun


def _row(what: str, times: list[float], took: float) -> dict[str, Any]:
    ordered = sorted(times)
    return {
        "what": what,
        "per_second": len(times) / took,
        "median": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    }
