"""A turn survives a memory that fails at any of its operations, before or after the effect.

The memory fails once, at the first, second, third ... operation of a scenario: it did nothing, or
it did its work and the answer was lost. Afterwards it works again.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
from agents import Runner

from session_middleware import MemoryUnavailable
from tests.support.interruptions import WatchedInMemory, WatchedOneByOne, settle, shape
from tests.turns.test_cancellation import CASES, Case, Scene, afterwards


async def _go(scene: Scene, case: Case) -> BaseException | None:
    try:
        await case.scenario(scene)
    except MemoryUnavailable as error:
        return error
    finally:
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
    return None


def fail_everywhere(
    memory: WatchedInMemory, case: Case, *, after_effect: bool
) -> tuple[int, list[str]]:
    """Fail at every operation of the case; returns the number of them and what broke."""
    found: list[str] = []
    for at in itertools.count(1):
        scene = Scene(memory, key="request" if case.keyed else None)
        if case.prepare is not None:
            asyncio.run(case.prepare(scene))  # type: ignore[arg-type]
        memory.will_fail(at, after_effect=after_effect)
        error = asyncio.run(_go(scene, case))
        settle()
        memory.recovers()
        if memory.failed is None:
            assert error is None
            return at - 1, found
        if error is None and memory.failed != "end" and not case.again:
            found.append(f"{memory.failed} failed silently")
        if memory.failed == ("acquire" if after_effect else "end"):
            # Nobody could say that the session is free: it is held until its lease is over,
            # and in this memory a lease never ends by itself.
            assert asyncio.run(memory.release(scene.session_id))
        broken = asyncio.run(afterwards(scene, case))
        found += [f"{memory.failed} ({at}): {each}" for each in broken]
    raise AssertionError("unreachable")


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [WatchedInMemory, WatchedOneByOne])
def test_a_failing_memory_breaks_no_session(
    kind: type[WatchedInMemory], case: str, after_effect: bool
) -> None:
    """The caller hears of it; the session is whole and goes on, and a key's turn is retried."""
    count, found = fail_everywhere(kind(), CASES[case], after_effect=after_effect)
    print(f"{case}: {count} operations")
    assert count >= 4
    assert found == []


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "at"),
    [(WatchedInMemory, at) for at in range(1, 5)] + [(WatchedOneByOne, at) for at in range(1, 7)],
)
async def test_a_run_that_forgets_goes_on_without_its_memory(
    kind: type[WatchedInMemory], at: int, after_effect: bool
) -> None:
    """With on_unavailable="forget" the user gets an answer; what is stored is whole turns."""
    memory = kind()
    scene = Scene(memory)
    run = scene.remembering(Runner.run, on_unavailable="forget")
    memory.will_fail(at, after_effect=after_effect)
    result = await run(scene.agent(), "hello", session_id=scene.session_id)
    assert memory.failed is not None
    assert result.final_output == "done: noted hello"
    assert shape(await scene.items()) in ("", "U", "UCO", "UCOA")
