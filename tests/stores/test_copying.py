"""Conversations are copied whole from one memory into another."""

from __future__ import annotations

from typing import Any

import pytest

from session_middleware import (
    ConflictingMemory,
    CopyProgress,
    InMemorySessionMemory,
    InvalidOption,
    MemoryUnavailable,
    SessionBusy,
    copy_memory,
)
from session_middleware.conformance.conversations import lines_of, whole_session
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from session_middleware.stores.managing import held


@pytest.fixture(params=["in memory to sqlite", "sqlite to in memory", "sqlite to sqlite"])
def memories(request: pytest.FixtureRequest, make_memory: Any) -> tuple[Any, Any]:
    """Two memories, to copy from the one into the other."""
    made = [
        make_memory(f"{place}.db") if name.strip() == "sqlite" else InMemorySessionMemory()
        for place, name in enumerate(request.param.split("to"))
    ]
    return made[0], made[1]


async def test_everything_is_copied_and_once(memories: tuple[Any, Any]) -> None:
    """Turns, records, parked states, journals, labels; the second copy stores nothing."""
    source, target = memories
    for session_id in ("a:1", "a:2", "b"):
        await whole_session(source, session_id)
    await source.set_title("b", "One")
    progress: list[CopyProgress] = []
    assert await copy_memory(source, target, progress=progress.append) == 3
    assert progress[-1] == CopyProgress("b", 3, 3, 5)
    assert await copy_memory(source, target) == 0
    before, after = [await lines_of(memory) for memory in memories]
    assert _sessions(before) == _sessions(after)
    assert await target.pending() == await source.pending()
    resumed = await acquire(target, "b", resume="p")
    assert (resumed.resumed, resumed.lease.fence > 12) == (True, True)


async def test_a_prefix_is_copied_alone(memories: tuple[Any, Any]) -> None:
    source, target = memories
    for session_id in ("a:1", "a:2", "b"):
        await source.append_to_session(session_id, [user("1")])
    assert await copy_memory(source, target, prefix="a:") == 2
    assert sorted(await target.list_sessions()) == ["a:1", "a:2"]


async def test_an_interrupted_copy_goes_on(memories: tuple[Any, Any]) -> None:
    """What was copied stays, and is not copied again."""
    source, target = memories
    for number in range(5):
        await source.append_to_session(f"s{number}", [user("1")])

    def stop(progress: CopyProgress) -> None:
        if progress.sessions == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await copy_memory(source, target, progress=stop)
    assert sorted(await target.list_sessions()) == ["s0", "s1"]
    assert await copy_memory(source, target) == 3
    assert await source.turns("s3") == await target.turns("s3")


async def test_a_session_with_other_turns_is_replaced_only_if_told(
    memories: tuple[Any, Any],
) -> None:
    source, target = memories
    await source.append_to_session("s", [user("1")])
    await target.append_to_session("s", [user("2")])
    with pytest.raises(ConflictingMemory):
        await copy_memory(source, target)
    assert await target.load_session("s") == [user("2")]
    assert await copy_memory(source, target, replace=True) == 1
    assert await target.load_session("s") == [user("1")]


async def test_a_session_that_a_turn_holds_is_waited_for(
    memories: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both memories; no turn runs in it while it is copied."""
    source, target = memories
    monkeypatch.setattr(held, "PATIENCE", 0.05)
    for memory in memories:
        acquired = await acquire(memory)
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        with pytest.raises(SessionBusy):
            await copy_memory(source, target)
        await end(memory, acquired)
    assert len(await source.turns("s")) == 1
    await target.delete("s")
    assert await copy_memory(source, target) == 1


async def test_a_copy_that_is_not_the_same_is_told(
    memories: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is read again: a memory that loses an item is found out."""
    source, target = memories
    await source.append_to_session("s", [user("1"), user("2")])
    write = target.write_copies

    async def lossy(lease: Any, info: Any, turns: Any, fence: int) -> None:
        await write(lease, info, turns[:0], fence)

    monkeypatch.setattr(target, "write_copies", lossy)
    with pytest.raises(MemoryUnavailable, match="Copy it again"):
        await copy_memory(source, target)


async def test_a_memory_is_not_copied_into_itself(memory: Any) -> None:
    with pytest.raises(InvalidOption):
        await copy_memory(memory, memory)
    with pytest.raises(InvalidOption):
        await copy_memory(memory, object())  # type: ignore[arg-type]


def _sessions(lines: list[str]) -> list[str]:
    return [line.split('"fence"')[0] for line in lines]
