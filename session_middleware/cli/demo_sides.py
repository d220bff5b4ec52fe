"""The two sides of a scene: the SDK's own session and one of ours, each on a file of its own.

Also the process of another worker, which a scene starts: ``python -m
session_middleware.cli.demo_sides FOLDER SIDE WHAT``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from agents import Agent, Runner, RunState, SQLiteSession, set_tracing_disabled

from session_middleware import SQLiteSessionMemory, session_scope
from session_middleware.cli.demo_agents import charging

SideName: TypeAlias = Literal["sdk", "ours"]
SIDES: tuple[SideName, ...] = get_args(SideName)

USER = "user_1"
REQUEST = "event-17"
_LEASE = 1.0  # seconds until a killed worker's session is free


class Side:
    """One of the two sessions, on a file in the folder of a scene."""

    def __init__(self, name: SideName, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.memory = (
            SQLiteSessionMemory(folder / "ours.db", lease=_LEASE) if name == "ours" else None
        )

    @property
    def book(self) -> Path:
        """Where the charges of this side are written."""
        return self.folder / f"{self.name}.charges"

    @property
    def state(self) -> Path:
        """Where an application keeps a run that waits for approval."""
        return self.folder / f"{self.name}.state"

    def session(self) -> Any:
        """What is passed as ``session=``; a new one each time, as another worker has one."""
        if self.memory is None:
            return SQLiteSession(USER, self.folder / "sdk.db")
        return self.memory.session(USER)

    async def run(self, agent: Agent[Any], given: Any, *, key: str | None = None) -> Any:
        """One run; with ``key`` it is the delivery of that request, which only ours can be told."""
        named = (
            session_scope(USER, memory=self.memory, idempotency_key=key)
            if self.memory is not None and key is not None
            else nullcontext()
        )
        async with named:
            return await Runner.run(agent, given, session=self.session())

    async def answer(self) -> Any:
        """Approve the call that waits, and go on with its run."""
        agent = charging(self.book, approved=True)
        state = await RunState.from_json(agent, json.loads(self.state.read_text()))
        for waiting in state.get_interruptions():
            state.approve(waiting)
        return await self.run(agent, state)

    async def stored(self) -> str:
        """A letter for each item of the session: question, call, output, answer."""
        kinds = {"function_call": "C", "function_call_output": "O"}
        items = await self.session().get_items()
        return " ".join(
            kinds.get(item.get("type"), "Q" if item.get("role") == "user" else "A")
            for item in items
        )


@asynccontextmanager
async def side(name: SideName, folder: Path) -> AsyncIterator[Side]:
    """A side for the block."""
    made = Side(name, folder)
    try:
        yield made
    finally:
        if made.memory is not None:
            await made.memory.cleanup()


def keep_quiet() -> None:
    """Export no traces, and let the scene say itself what failed."""
    set_tracing_disabled(True)
    logging.getLogger("openai.agents").setLevel(logging.CRITICAL)
    logging.getLogger("session_middleware").setLevel(logging.CRITICAL)


async def _work(folder: Path, name: SideName, what: str) -> None:
    async with side(name, folder) as made:
        if what == "die":
            await made.run(charging(made.book, dies=True), "Charge me.", key=REQUEST)
        else:
            await made.answer()


if __name__ == "__main__":
    keep_quiet()
    _folder, _name, _what = sys.argv[1:]
    asyncio.run(_work(Path(_folder), "ours" if _name == "ours" else "sdk", _what))
