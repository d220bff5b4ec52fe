"""The memory in the process: what the shared suite does not say of it."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
import weakref
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import acquire, end, one_turn, refused
from session_middleware.errors import SessionBusy, TurnLost
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.in_memory import InMemorySessionMemory
from session_middleware.stores.in_memory import engine as _engine
from session_middleware.stores.protocol import TURNS


def test_what_it_says_of_itself() -> None:
    """It keeps turns, its leases never expire, and it is no service on a network."""
    memory = InMemorySessionMemory()
    assert TURNS in memory.capabilities
    assert memory.lease_seconds == math.inf
    assert (memory.backend, memory.networked) == ("memory", False)


async def test_two_memories_share_nothing() -> None:
    """Each has sessions, and an identity, of its own."""
    one, other = InMemorySessionMemory(), InMemorySessionMemory()
    await one.append_to_session("s", [user("1")])
    assert await other.load_session("s") == []
    assert one.identity == one.identity
    assert one.identity != other.identity


async def test_a_busy_session_names_no_time() -> None:
    """As nothing expires, there is no time at which another try would help."""
    memory = InMemorySessionMemory()
    await acquire(memory)
    busy = await refused(SessionBusy, acquire(memory))
    assert (busy.turn, busy.until, busy.retry_after) == (1, None, None)
    assert busy.since is not None
    assert busy.since <= datetime.now(UTC)


async def test_a_window_reads_no_further_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a window the cost of loading does not grow with the length of the session."""
    memory = InMemorySessionMemory()
    for number in range(100):
        await one_turn(memory, [user(f"{number}"), assistant("a")])
    read = 0
    decode = _engine.decode_items

    def counting(texts: list[str]) -> object:
        nonlocal read
        read += len(texts)
        return decode(texts)

    monkeypatch.setattr(_engine, "decode_items", counting)
    assert len((await memory.load_turns("s", newest=LastTurns(3))).turns) == 3
    assert len((await memory.load_turns("s", newest=LastItems(6))).turns) == 3
    assert read == 12


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=8),
    window=st.builds(LastTurns, st.integers(0, 9), st.integers(1, 4))
    | st.builds(LastItems, st.integers(0, 20)),
    hidden=st.sets(st.integers(1, 3)),
)
def test_any_window_reads_what_it_would_keep(
    sizes: list[list[int]], window: LastTurns | LastItems, hidden: set[int]
) -> None:
    """Of any turns with any runs, some of them hidden, a window reads what it keeps of all."""

    async def check() -> None:
        memory = InMemorySessionMemory()
        for number, runs in enumerate(sizes):
            acquired = await acquire(memory)
            for run, size in enumerate(runs, start=1):
                items = [user(f"{number}.{run}.{at}") for at in range(size)]
                await memory.append_items(acquired.lease, run, 0, items)
            await end(memory, acquired)
        hide = (len(sizes), hidden)
        everything = await memory.load_turns("s", hide=hide)
        loaded = await memory.load_turns("s", newest=window, hide=hide)
        assert loaded.turns == window(everything.turns)
        assert loaded.complete == (len(loaded.turns) == len(everything.turns))

    asyncio.run(check())


async def test_a_position_is_stored_once() -> None:
    """The same item at the same place changes nothing; another one is refused."""
    memory = InMemorySessionMemory()
    acquired = await acquire(memory)
    await memory.append_items(acquired.lease, 1, 0, [user("1"), assistant("2")])
    await memory.append_items(acquired.lease, 1, 1, [assistant("2"), user("3")])
    with pytest.raises(ValueError, match="another item at 0"):
        await memory.append_items(acquired.lease, 1, 0, [user("other")])
    assert await memory.load_session("s") == [user("1"), assistant("2"), user("3")]


async def test_cleanup_drains_running_turns() -> None:
    """cleanup(drain) waits for the turns that run to end, in whatever loop they do."""
    memory = InMemorySessionMemory()
    acquired = await acquire(memory)
    waiting = asyncio.ensure_future(memory.cleanup(drain=60))
    # A condition has no event that says that somebody waits for it.
    while not memory._changed._waiters:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not waiting.done()
    await memory.append_items(acquired.lease, 1, 0, [user("1")])
    thread = threading.Thread(target=lambda: asyncio.run(end(memory, acquired)))
    thread.start()
    await waiting
    await asyncio.to_thread(thread.join)
    assert memory.closed


async def test_cleanup_does_not_wait_for_ever() -> None:
    """A turn that does not end in time is not waited for."""
    memory = InMemorySessionMemory()
    await acquire(memory)
    await memory.cleanup(drain=0.01)
    assert memory.closed


async def test_a_turn_leaves_nothing_behind_where_nothing_waits() -> None:
    """What is kept of parked runs does not grow with the sessions."""
    memory = InMemorySessionMemory()
    parked = memory._engine._parked
    await one_turn(memory, [user("1")])
    assert (parked._of_session, parked._sessions_of) == ({}, {})


async def test_a_memory_nobody_uses_is_freed() -> None:
    """Nothing in the process keeps a memory alive."""
    memory = InMemorySessionMemory()
    await one_turn(memory, [user("1")])
    alive = weakref.ref(memory)
    del memory
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is what is tested
def test_a_forked_child_has_a_copy_in_which_nobody_holds_anything() -> None:
    """The histories are there, the turns of the parent are not the child's, no lock is stuck."""
    memory = InMemorySessionMemory()
    acquired = asyncio.run(acquire(memory))
    asyncio.run(memory.append_items(acquired.lease, 1, 0, [user("1")]))
    with memory._changed:  # as another thread may at any moment
        child = os.fork()
        if child == 0:
            try:

                async def in_the_child() -> None:
                    assert await memory.load_session("s") == [user("1")]
                    assert (await memory.turns("s"))[0].state == "abandoned"
                    await refused(TurnLost, end(memory, acquired))
                    await end(memory, await acquire(memory))

                asyncio.run(in_the_child())
                os._exit(0)
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    asyncio.run(end(memory, acquired))
