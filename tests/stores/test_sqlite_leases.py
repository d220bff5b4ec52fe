"""Who holds a session for how long, and what happens to it when a memory goes."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from on_sqlite import completed, take, until, user

from session_middleware.errors import (
    MemoryClosed,
    SessionBusy,
    TurnLost,
)
from session_middleware.stores.sqlite import SQLiteSessionMemory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.fixture
async def memory(path: Path) -> AsyncIterator[SQLiteSessionMemory]:
    async with SQLiteSessionMemory(path, lease=30) as made:
        yield made


@pytest.fixture
def other_process(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that stands for another process on the same file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


# --- leases ----------------------------------------------------------------------------------


def lease_until(connection: sqlite3.Connection) -> float:
    return connection.execute("SELECT lease_until FROM session").fetchone()[0]


async def test_a_lease_is_renewed_while_its_turn_runs(path, other_process):
    """A turn that runs for many lease lengths keeps its session."""
    async with SQLiteSessionMemory(path, lease=0.3) as memory:
        lease = (await memory.take_turn(take())).lease
        first = lease_until(other_process)
        await until(lambda: lease_until(other_process) > first + 0.6)
        with pytest.raises(SessionBusy) as caught:
            await memory.take_turn(take())
        assert caught.value.turn == 1
        assert caught.value.since is not None
        assert caught.value.until is not None
        assert 0 < caught.value.retry_after <= 0.3
        await memory.append_items(lease, 1, 0, [user("1")])


async def test_renewal_does_not_need_the_users_loop(path, other_process):
    """A tool that blocks the event loop for longer than the lease does not lose the session."""
    async with SQLiteSessionMemory(path, lease=0.3) as memory:
        lease = (await memory.take_turn(take())).lease
        time.sleep(0.7)  # noqa: ASYNC251 - the loop is blocked on purpose
        assert time.time() < lease_until(other_process)
        await memory.end_turn(lease, completed())


async def test_all_leases_are_renewed_by_one_write_and_only_while_held(path):
    """Fifty held sessions cost one write for each third of a lease; none held, none."""
    async with SQLiteSessionMemory(path, lease=0.3) as memory:
        taken = [await memory.take_turn(take(f"s{n}")) for n in range(50)]
        before = memory.stats()["writes"]
        await until(lambda: memory.stats()["writes"] >= before + 3)
        for each in taken:
            await memory.end_turn(each.lease, completed())
        await until(lambda: not memory._file.leases._renewing)
        before = memory.stats()["writes"]
        await asyncio.sleep(0.3)
        assert memory.stats()["writes"] == before


async def test_an_expired_lease_is_good_until_somebody_takes_the_session(memory, other_process):
    """After a sleep of the machine the turn goes on; after a takeover it is lost."""
    lease = (await memory.take_turn(take())).lease
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() - 1,))
    await memory.append_items(lease, 1, 0, [user("1")])
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() - 1,))
    second = await memory.take_turn(take())
    assert second.lease.turn == 2
    for write in (
        memory.append_items(lease, 1, 1, [user("2")]),
        memory.retry_run(lease, 1, 2),
        memory.end_turn(lease, completed()),
    ):
        with pytest.raises(TurnLost):
            await write
    assert [record.state for record in await memory.turns("a")] == ["running", "abandoned"]
    assert await memory.load_session("a") == [user("1")]


async def test_a_lease_from_the_future_was_granted_before_the_clock_was_set_back(
    memory, other_process
):
    """A lease that ends later than it could is expired; a small correction changes nothing."""
    await memory.take_turn(take())
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() + 30.5,))
    with pytest.raises(SessionBusy):
        await memory.take_turn(take())
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() + 3600,))
    assert (await memory.take_turn(take())).lease.turn == 2


async def test_a_token_is_worth_nothing_in_a_session_that_was_made_anew(memory):
    """After clear, the old turn is lost even when a new session has the same name and number."""
    old = (await memory.take_turn(take())).lease
    await memory.clear_session("a")
    new = (await memory.take_turn(take())).lease
    assert new.turn == old.turn
    with pytest.raises(TurnLost):
        await memory.append_items(old, 1, 0, [user("1")])
    await memory.append_items(new, 1, 0, [user("2")])
    assert await memory.load_session("a") == [user("2")]


# --- the end ---------------------------------------------------------------------------------


async def test_cleanup_frees_what_it_held_and_closes(path):
    """After cleanup the session is free at once, and everything is MemoryClosed."""
    memory = SQLiteSessionMemory(path)
    lease = (await memory.take_turn(take())).lease
    pending = asyncio.ensure_future(memory.append_items(lease, 1, 0, [user("1")]))
    await asyncio.sleep(0)
    await memory.cleanup()
    await memory.cleanup()
    await pending
    for work in (
        memory.load_session("a"),
        memory.append_to_session("a", [user("1")]),
        memory.take_turn(take()),
        memory.ping(),
        memory.list_sessions(),
    ):
        with pytest.raises(MemoryClosed):
            await work
    async with SQLiteSessionMemory(path) as other:
        assert (await other.take_turn(take())).lease.turn == 2
        assert (await other.turns("a"))[1].state == "abandoned"
        assert await other.load_session("a") == [user("1")]


async def test_cleanup_before_the_first_use_opens_nothing(path):
    """A memory that was never used is closed without making a file."""
    memory = SQLiteSessionMemory(path)
    await memory.cleanup()
    with pytest.raises(MemoryClosed):
        await memory.load_session("a")
    assert not path.exists()


async def test_cleanup_waits_for_turns_that_end_in_time(path):
    """``drain`` lets a running turn complete; it is not abandoned."""
    memory = SQLiteSessionMemory(path)
    lease = (await memory.take_turn(take())).lease
    closing_ = asyncio.ensure_future(memory.cleanup(drain=30))
    await asyncio.sleep(0.05)
    await memory.end_turn(lease, completed())
    await closing_
    other = SQLiteSessionMemory(path)
    assert (await other.turns("a"))[0].state == "completed"
    await other.take_turn(take())
    await other.cleanup(drain=0.01)
    async with SQLiteSessionMemory(path) as third:
        assert (await third.turns("a"))[0].state == "abandoned"


async def test_a_memory_that_is_forgotten_closes_its_file(path):
    """Dropping the last reference is as good as cleanup, but for the moment at which it is done."""
    memory = SQLiteSessionMemory(path)
    await memory.append_to_session("a", [user("1")])
    before = threading.active_count()
    del memory
    gc.collect()
    await until(lambda: threading.active_count() < before)
    assert sorted(p.name for p in path.parent.iterdir()) == ["chat.db"]


async def test_its_threads_keep_no_process_alive(memory):
    """Every thread that an open memory needs is a daemon."""
    await memory.load_session("a")
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert others
    assert all(thread.daemon for thread in others)
