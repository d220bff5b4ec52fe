"""The scenes of the demo: what happens, to the SDK's own session and to ours, run for real.

A scene returns one line for each; the lines say what was found in the files, not what should be.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from session_middleware.cli.demo_agents import charges, charging, looking_up
from session_middleware.cli.demo_sides import REQUEST, SIDES, Side, SideName, side
from session_middleware.errors import DuplicateTurn, SessionBusy, TurnInProgress
from session_middleware.testing.models import local_agent

_WHOLE = "Q C O A Q C O A"
_PATIENCE = 60.0  # seconds; a busy machine takes its time


class Scene(NamedTuple):
    """A scene: its heading, and what happens on one side."""

    heading: str
    play: Callable[[Side], Awaitable[str]]


async def play(scene: Scene, folder: Path) -> dict[SideName, str]:
    """Play a scene on both sides at once; the line of each."""

    async def on(name: SideName) -> str:
        async with side(name, folder) as made:
            return await scene.play(made)

    lines = await asyncio.gather(*map(on, SIDES))
    return dict(zip(SIDES, lines, strict=True))


async def _callers(made: Side) -> str:
    """Two callers of one session; each has a tool that works until the other is in its own."""
    inside, both = [0], asyncio.Event()

    async def work() -> None:
        inside[0] += 1
        if inside[0] == 2:
            both.set()
        try:
            await asyncio.wait_for(both.wait(), 0.3 if made.name == "ours" else _PATIENCE)
        except TimeoutError:  # the other one waits for its turn
            return

    await asyncio.gather(
        made.run(looking_up(work), "Look up one."),
        made.run(looking_up(work), "Look up two."),
    )
    stored = await made.stored()
    said = "the second waits, and sees the first" if stored == _WHOLE else "torn apart"
    return f"{stored}: {said}"


async def _twice(made: Side) -> str:
    """The same request comes twice, as webhooks and queues deliver it."""
    answers = []
    for _ in range(2):
        try:
            result = await made.run(local_agent(), "Hi, I'm Alice.", key=REQUEST)
            answers.append(f"answered {str(result.final_output)!r}")
        except DuplicateTurn as duplicate:
            had = duplicate.record.output_text if duplicate.record is not None else None
            answers.append(f"DuplicateTurn, which has {had!r}")
    return f"{await made.stored()}: {answers[0]}, then {answers[1]}"


async def _killed(made: Side) -> str:
    """A worker is killed inside a tool, and another worker gets the same request."""
    await _other_process(made, "die")
    while True:
        try:
            result = await made.run(charging(made.book), "Charge me.", key=REQUEST)
            break
        except (SessionBusy, TurnInProgress):  # the dead worker's session is not free yet
            await asyncio.sleep(0.2)
    found = charges(made.book)
    told = f"charged {'once' if found == 1 else f'{found} times'}"
    if found > 1:
        return f"{told}: the second worker cannot know of the first"
    return f"{told}: the model is told that the outcome is unknown ({_short(result.final_output)})"


async def _approval(made: Side) -> str:
    """A call waits for approval, the talk goes on, and two people approve it, one elsewhere."""
    agent = charging(made.book, approved=True)
    parked = await made.run(agent, "Charge me.")
    made.state.write_text(json.dumps(parked.to_state().to_json()))
    await made.run(charging(made.book, approved=True), "I am Alice.")
    await _other_process(made, "answer")
    second = "runs it again"
    try:
        await made.answer()
    except DuplicateTurn:
        second = "gets DuplicateTurn"
    found = charges(made.book)
    told = f"charged {'once' if found == 1 else f'{found} times'}"
    return f"{await made.stored()}: another process goes on; a second answer {second}; {told}"


async def _other_process(made: Side, what: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "session_middleware.cli.demo_sides"),
        *(str(made.folder), made.name, what),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode and what != "die":
        raise RuntimeError(f"another process failed: {said.decode(errors='replace')[-400:]}")


def _short(text: object) -> str:
    told = str(text)
    return told if len(told) <= 60 else f"{told[:60]}…"


SCENES = {
    "callers": Scene("Two callers of one session at once", _callers),
    "twice": Scene("A request is delivered twice", _twice),
    "killed": Scene("A worker is killed inside a tool, and the request comes again", _killed),
    "approval": Scene("An approval is answered by another process", _approval),
}
"""The scenes by name, in their order."""
