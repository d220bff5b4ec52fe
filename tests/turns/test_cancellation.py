"""A turn survives being interrupted, at whatever await it happens to be.

Each scenario is run again and again and interrupted at its first, second, third ... suspension:
cancelled, cancelled once more while it cleans up, and ended by the event loop's shutdown.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from agents import Runner, SQLiteSession

from session_middleware import (
    DuplicateTurn,
    MemoryUnavailable,
    SessionBusy,
    TurnInProgress,
    session_scope,
    with_session_memory,
)
from tests.support.interruptions import (
    Interruption,
    Watched,
    WatchedInMemory,
    WatchedSQLite,
    interrupt_only,
    noting_agent,
    points,
    shape,
    violations,
)

_sessions = itertools.count(1)


@dataclass
class Scene:
    """One session that something happens in.

    Attributes:
        key: the idempotency key of the scenario's turn, if it has one.
        effects: what the agent's tool did.
        state: a parked run's state, where the scenario resumes one.
    """

    memory: Any
    key: str | None = None
    session_id: str = field(default_factory=lambda: f"s{next(_sessions)}")
    effects: list[str] = field(default_factory=list)
    state: Any = None

    def agent(self, **how: Any) -> Any:
        return noting_agent(self.effects, **how)

    def remembering(self, function: Any, **options: Any) -> Any:
        return with_session_memory(function, memory=self.memory, **options)

    async def run(self, text: Any = "hello", *, key: str | None = None, **how: Any) -> Any:
        run = self.remembering(Runner.run)
        return await run(self.agent(**how), text, session_id=self.session_id, idempotency_key=key)

    async def items(self) -> list[dict[str, Any]]:
        return list(await self.memory.load_session(self.session_id))

    @property
    def acknowledged(self) -> list[dict[str, Any]]:
        return list(self.memory.acknowledged.get(self.session_id, []))


# --- the scenarios: what is interrupted --------------------------------------------------------


async def plain(scene: Scene) -> None:
    """One run."""
    await scene.run(key=scene.key)


async def streamed(scene: Scene) -> None:
    """One streamed run, consumed to its end."""
    start = scene.remembering(Runner.run_streamed)
    result = start(scene.agent(), "hello", session_id=scene.session_id, idempotency_key=scene.key)
    async for _ in result.stream_events():
        pass


async def decorated(scene: Scene) -> None:
    """A decorated function with a run in it."""

    async def chat(text: str) -> str:
        result = await Runner.run(scene.agent(), text)
        return str(result.final_output)

    answer = await scene.remembering(chat)("hello", session_id=scene.session_id)
    assert answer == "done: noted hello"


async def gathered(scene: Scene) -> None:
    """A decorated function with two runs at once."""

    async def both() -> None:
        await asyncio.gather(Runner.run(scene.agent(), "left"), Runner.run(scene.agent(), "right"))

    await scene.remembering(both)(session_id=scene.session_id)


async def generated(scene: Scene) -> None:
    """A decorated async generator around a streamed run."""

    async def events(text: str) -> Any:
        result = Runner.run_streamed(scene.agent(), text)
        async for event in result.stream_events():
            yield event

    async for _ in scene.remembering(events)("hello", session_id=scene.session_id):
        pass


async def handed_over(scene: Scene) -> None:
    """A stream that outlives the scope it was started in."""
    async with session_scope(scene.session_id, memory=scene.memory):
        result = Runner.run_streamed(scene.agent(), "hello")
    async for _ in result.stream_events():
        pass


async def resumed(scene: Scene) -> None:
    """The resume of a run that waited for approval."""
    await scene.run(scene.state, needs_approval=True)


async def again_in_the_turn(scene: Scene) -> None:
    """A decorated function that starts its run again when that is interrupted."""

    async def persistent(text: str) -> None:
        attempt = asyncio.ensure_future(Runner.run(scene.agent(), text))
        interrupt_only(attempt)
        try:
            await attempt
        except (asyncio.CancelledError, MemoryUnavailable):
            await Runner.run(scene.agent(), text)

    await scene.remembering(persistent)("hello", session_id=scene.session_id)


async def streamed_again_in_the_turn(scene: Scene) -> None:
    """The same with streams: the first is interrupted, the second is consumed."""

    async def consume(text: str) -> None:
        result = Runner.run_streamed(scene.agent(), text)
        try:
            async for _ in result.stream_events():
                pass
        except asyncio.CancelledError:
            result.cancel()
            assert result.run_loop_task is not None
            with suppress(asyncio.CancelledError):
                await result.run_loop_task
            raise

    async def persistent(text: str) -> None:
        attempt = asyncio.ensure_future(consume(text))
        interrupt_only(attempt)
        try:
            await attempt
        except (asyncio.CancelledError, MemoryUnavailable):
            await consume(text)

    await scene.remembering(persistent)("hello", session_id=scene.session_id)


async def park(scene: Scene) -> None:
    """Prepare: a run that waits for approval, and gets it."""
    result = await scene.run(needs_approval=True)
    scene.state = result.to_state()
    for interruption in result.interruptions:
        scene.state.approve(interruption)


async def fail_after_tool(scene: Scene) -> None:
    """Prepare: an attempt that failed when its tool had done its work."""
    with suppress(RuntimeError):
        await scene.run(key=scene.key, breaks_after_tool=True)


Scenario = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    scenario: Scenario
    prepare: Scenario | None = None
    keyed: bool = False
    again: bool = False


CASES = {
    "plain": Case(plain),
    "streamed": Case(streamed),
    "decorated": Case(decorated),
    "gathered": Case(gathered),
    "generated": Case(generated),
    "handed over": Case(handed_over),
    "resumed": Case(resumed, prepare=park),
    "keyed": Case(plain, keyed=True),
    "keyed stream": Case(streamed, keyed=True),
    "continuing": Case(plain, prepare=fail_after_tool, keyed=True),
    "continuing stream": Case(streamed, prepare=fail_after_tool, keyed=True),
    "again": Case(again_in_the_turn, again=True),
    "again, streamed": Case(streamed_again_in_the_turn, again=True),
}


# --- the end of every story --------------------------------------------------------------------


async def afterwards(scene: Scene, case: Case) -> list[str]:
    """Everything that is wrong with the session after the interruption."""
    found = violations(
        await scene.items(),
        acknowledged=scene.acknowledged,
        pending=case.prepare is park,
        again=case.again,
    )
    if case.keyed:
        with suppress(DuplicateTurn):
            await _freely(scene, found, "hello", scene.key)
        users = [item for item in await scene.items() if item.get("role") == "user"]
        if len(users) != 1:
            found.append(f"{len(users)} user messages after the retry")
    if case.prepare is fail_after_tool and scene.effects != ["hello"]:
        found.append(f"the tool ran {len(scene.effects)} times")
    await _freely(scene, found, "next", None)
    items = await scene.items()
    if shape(items)[-4:] != "UCOA":
        found.append(f"the next turn left {shape(items)}")
    found += violations(items, pending=case.prepare is park, again=case.again)
    found += [
        f"turn {record.turn} is still running"
        for record in await scene.memory.turns(scene.session_id)
        if record.state == "running"
    ]
    return found


async def _freely(scene: Scene, found: list[str], text: str, key: str | None) -> None:
    """A turn that does not wait for anybody; a session that is held is noted and released."""
    run = scene.remembering(Runner.run, on_busy="reject")
    for _ in range(2):
        try:
            await run(scene.agent(), text, session_id=scene.session_id, idempotency_key=key)
        except (SessionBusy, TurnInProgress) as busy:
            found.append(f"still held: {busy}")
            await scene.memory.release(scene.session_id)
        else:
            return


def interrupt_everywhere(
    memory: Watched, case: Case, how: Interruption, *, start: int = 1, step: int = 1
) -> tuple[int, list[str]]:
    """Interrupt a case at every point; returns the number of points and what broke."""
    scenes: dict[int, Scene] = {}

    def begin(at: int) -> Callable[[], Awaitable[None]]:
        scene = scenes[at] = Scene(memory, key="request" if case.keyed else None)
        if case.prepare is not None:
            asyncio.run(case.prepare(scene))  # type: ignore[arg-type]
        return lambda: case.scenario(scene)

    def look(at: int) -> list[str]:
        return asyncio.run(afterwards(scenes[at], case))

    count, found = points(how, begin, look, start=start, step=step)
    print(f"{how}: {count} points")
    return count, found


HOW: list[Interruption] = ["cancel", "cancel twice", "shut down"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_turn_leaves_its_session_whole_and_free(
    case: str, how: Interruption
) -> None:
    """Whole model turns, nothing acknowledged lost, nothing doubled, and the next turn works."""
    # A sample that is another one for each kind; the long test has every point.
    start = 1 + 2 * HOW.index(how)
    count, found = interrupt_everywhere(WatchedInMemory(), CASES[case], how, start=start, step=6)
    assert count > 2
    assert found == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", CASES)
def test_so_it_is_at_every_single_await(case: str, how: Interruption) -> None:
    """The same, interrupted at each suspension of each task."""
    count, found = interrupt_everywhere(WatchedInMemory(), CASES[case], how)
    assert count > 10
    assert found == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", CASES)
def test_so_it_is_on_a_file(case: str, how: Interruption, tmp_path: Path) -> None:
    """The same with SQLite, whose operations go on in a thread of their own."""
    memory = WatchedSQLite(tmp_path / "memory.db")
    count, found = interrupt_everywhere(memory, CASES[case], how)
    asyncio.run(memory.cleanup())
    assert count > 10
    assert found == []


def test_one_interruption_on_a_file(tmp_path: Path) -> None:
    """A sample of the same on SQLite: a keyed run, cancelled."""
    memory = WatchedSQLite(tmp_path / "memory.db")
    count, found = interrupt_everywhere(memory, CASES["keyed"], "cancel", step=3)
    asyncio.run(memory.cleanup())
    assert count > 5
    assert found == []


@pytest.mark.long
def test_what_an_sdk_session_holds_after_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For comparison, and only reported: the SDK's own session, cancelled and run again."""
    broken: dict[str, int] = {}

    def compare(what: str, run: Callable[[Any, list[str]], Awaitable[None]]) -> None:
        sessions: dict[int, SQLiteSession] = {}

        def begin(at: int) -> Callable[[], Awaitable[None]]:
            sessions[at] = SQLiteSession(f"{what} {at}", tmp_path / "sdk.db")
            return lambda: run(sessions[at], [])

        async def look(at: int) -> list[str]:
            session = sessions[at]
            await Runner.run(noting_agent([]), "hello", session=session)  # the retry
            found = violations(cast("list[Any]", await session.get_items()))
            session.close()
            return [", ".join(found)] if found else []

        count, found = points("cancel", begin, lambda at: asyncio.run(look(at)))
        broken[f"{what}, of {count} points"] = len(found)

    async def one(session: Any, effects: list[str]) -> None:
        await Runner.run(noting_agent(effects), "hello", session=session)

    async def two(session: Any, effects: list[str]) -> None:
        await asyncio.gather(
            Runner.run(noting_agent(effects), "left", session=session),
            Runner.run(noting_agent(effects), "right", session=session),
        )

    compare("plain", one)
    compare("gathered", two)
    with capsys.disabled():
        print(f"\nSQLiteSession of the SDK, sessions broken: {broken}")
    assert broken
