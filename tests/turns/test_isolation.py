"""No word of one session is seen in another, whatever outlives a turn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Agent, ModelResponse, Runner, set_tracing_disabled
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message

from session_middleware import (
    InMemorySessionMemory,
    SQLiteSessionMemory,
    current_session,
    install,
    last_items,
    session_scope,
    uninstall,
)


class Witness(Model):
    """Answers with the name of the user who spoke last, and notes foreign names in its input."""

    def __init__(self) -> None:
        self.foreign: list[tuple[str, str]] = []
        self.runs = 0

    def _answer(self, given: Any) -> ScriptedModel:
        self.runs += 1
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        name = str(items[-1]["content"]).split()[0]
        for item in items:
            for other in str(item.get("content")).split():
                if other.startswith("user-") and other.strip("'},]") != name:
                    self.foreign.append((name, other))
        return ScriptedModel([[assistant_message(name, item_id=f"msg_{self.runs}")]])

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        return await self._answer(options["input"]).get_response(*args, **options)

    async def stream_response(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        async for event in self._answer(options["input"]).stream_response(*args, **options):
            yield event


class Service:
    """Users who talk in sessions, and workers that were started inside somebody's turn."""

    def __init__(self, memory: Any, seed: int) -> None:
        self.memory = memory
        self.random = random.Random(seed)
        self.witness = Witness()
        self.agent = Agent(name="Witness", model=self.witness)
        self.jobs: asyncio.Queue[Any] = asyncio.Queue()
        self.workers: list[asyncio.Task[None]] = []

    async def talk(self, name: str) -> None:
        """One turn, in one of the ways; now and then it leaves a worker behind."""
        text = f"{name} says {self.random.randrange(1000)}"
        if self.random.random() < 0.05:
            async with session_scope(name, memory=self.memory, window=last_items(10)):
                self.workers.append(asyncio.ensure_future(self._work()))
                await Runner.run(self.agent, text)
        else:
            await Runner.run(self.agent, text, session_id=name)

    async def _work(self) -> None:
        """Serve others, in the context of a turn that is over by then."""
        while True:
            name, named, done = await self.jobs.get()
            assert current_session() is None
            given = {"session_id": name} if named else {}
            await Runner.run(self.agent, f"{name} asks the worker", **given)
            done.set_result(None)

    async def serve(self, users: int, runs: int) -> None:
        """That many runs at random, twenty at a time."""
        names = [f"user-{number}" for number in range(users)]
        while self.witness.runs < runs:
            work = [self.talk(name) for name in self.random.sample(names, min(20, users))]
            await asyncio.gather(*work)
            if self.workers:
                waiting = []
                for name in self.random.sample(names, min(5, users)):
                    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self.jobs.put_nowait((name, self.random.random() < 0.5, done))
                    waiting.append(done)
                await asyncio.gather(*waiting)
        for worker in self.workers:
            worker.cancel()
        await asyncio.gather(*self.workers, return_exceptions=True)
        assert self.witness.foreign == []
        for name in names:
            stored = str(await self.memory.load_session(name))
            others = [word for word in stored.replace("'", " ").split() if word.startswith("user-")]
            assert set(others) <= {name}


async def isolated(memory: Any, users: int, runs: int) -> None:
    set_tracing_disabled(True)
    install(memory=memory, window=last_items(10))
    try:
        await Service(memory, seed=7).serve(users, runs)
    finally:
        uninstall()
        set_tracing_disabled(False)


async def test_workers_that_outlive_turns_see_no_foreign_word() -> None:
    """Thirty users, four hundred runs, in workers too that somebody's turn has left behind."""
    await isolated(InMemorySessionMemory(), 30, 400)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_twenty_thousand_runs_see_no_foreign_word(tmp_path: Any) -> None:
    """Two hundred sessions on a file."""
    async with SQLiteSessionMemory(tmp_path / "chat.db") as memory:
        await isolated(memory, 200, 20_000)
