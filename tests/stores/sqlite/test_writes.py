"""How writes get to the file: in groups, whole, from any loop and thread."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from session_middleware.errors import (
    InvalidOption,
    MemoryUnavailable,
    TurnInProgress,
    TurnLost,
)
from session_middleware.stores.records import TurnEnd
from session_middleware.stores.sqlite import SQLiteSessionMemory
from session_middleware.stores.sqlite import writes as writing
from session_middleware.stores.sqlite.group import GroupConnection
from tests.support.conditions import until
from tests.support.requests import completed, request_for, user, write_statements

# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"lease": 0},
        {"lease": float("inf")},
        {"lease": "30"},
        {"operation_timeout": -1},
        {"synchronous": "OFF"},
        {"db_path": ""},
        {"db_path": "a\0b"},
    ],
)
def test_a_wrong_option_is_refused_at_once(options):
    """An option that cannot be meant is InvalidOption when the memory is made."""
    with pytest.raises(InvalidOption):
        SQLiteSessionMemory(**options)


def test_the_path_is_made_absolute_and_nothing_is_opened(tmp_path, monkeypatch):
    """A later change of the current folder changes nothing; making a memory touches no file."""
    monkeypatch.chdir(tmp_path)
    memory = SQLiteSessionMemory("chat.db")
    assert memory.path == str(tmp_path / "chat.db")
    assert memory.identity == SQLiteSessionMemory(tmp_path / "x" / ".." / "chat.db").identity
    assert list(tmp_path.iterdir()) == []


async def test_in_memory_database_serves_reads_and_writes():
    """``:memory:`` works with all operations, and two of them share nothing."""
    async with SQLiteSessionMemory(":memory:") as one, SQLiteSessionMemory(":memory:") as two:
        await one.append_to_session("a", [user("1")])
        assert await one.load_session("a") == [user("1")]
        assert await two.load_session("a") == []
        assert one.identity != two.identity


# --- groups ----------------------------------------------------------------------------------


async def test_writes_that_wait_together_are_one_commit(memory):
    """Sixty-four turns at once need far fewer commits than writes, and lose none of them."""

    async def turn(number: int) -> None:
        acquired = await memory.acquire(request_for(f"s{number}"))
        await memory.append_items(acquired.lease, 1, 0, [user(str(number))])
        await memory.end_turn(acquired.lease, completed())

    await memory.ping()
    before = memory.stats()
    await asyncio.gather(*map(turn, range(64)))
    after = memory.stats()
    assert after["writes"] - before["writes"] == 3 * 64
    assert after["commits"] - before["commits"] < 64
    for number in range(64):
        assert await memory.load_session(f"s{number}") == [user(str(number))]


@pytest.mark.parametrize(("flush", "groups"), [(0.0001, [7, 4, 2]), (0.02, [13])])
async def test_of_what_starts_few_are_let_in_at_a_time(memory, flush, groups):
    """What has begun goes first, unless the disk is so slow that a flush is shared by all."""
    await memory.ping()
    queue = memory._database.writes
    begun, blocked = threading.Event(), threading.Event()

    def wait(connection: sqlite3.Connection) -> None:
        begun.set()
        blocked.wait(30)

    hold = queue.submit(wait)
    await asyncio.to_thread(begun.wait, 30)
    queue.flushes.newest.extend([flush] * 16)
    members = []
    kinds = [True] * 10 + [False] * 3
    outcomes = [
        queue.submit(lambda _: members.append(queue.counts.members), throttled=kind)
        for kind in kinds
    ]
    before = queue.counts.members + 1
    blocked.set()
    await asyncio.gather(hold, *outcomes)
    # What was counted before a group began is the same for all its members.
    sizes = [members.count(seen) for seen in sorted(set(members))]
    assert sizes == groups
    assert queue.counts.members == before + 13


async def test_an_error_of_one_member_is_its_own(memory):
    """In a group, the one whose fence fails writes nothing, and the others do."""
    lost = (await memory.acquire(request_for("lost"))).lease
    kept = (await memory.acquire(request_for("kept"))).lease
    await memory.release("lost")
    blocked = threading.Event()
    hold = memory._database.writes.submit(lambda connection: blocked.wait(30))
    outcomes = asyncio.gather(
        memory.append_items(kept, 1, 0, [user("1")]),
        memory.append_items(lost, 1, 0, [user("2")]),
        memory.append_to_session("other", [user("3")]),
        memory.append_items(kept, 1, 0, [user("another")]),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    blocked.set()
    await hold
    first, second, third, fourth = await outcomes
    assert first is None
    assert isinstance(second, TurnLost)
    assert third is None
    assert isinstance(fourth, ValueError)
    assert await memory.load_session("kept") == [user("1")]
    assert await memory.load_session("lost") == []
    assert await memory.load_session("other") == [user("3")]


async def test_an_error_of_the_commit_reaches_all_and_nothing_is_stored(memory, monkeypatch):
    """When a commit fails, every waiter gets MemoryUnavailable, and the next write works."""
    await memory.ping()
    real, failures = GroupConnection.execute, []

    def execute(self, statement, *parameters):
        if statement == "COMMIT" and self._queue._begin != "BEGIN" and not failures:
            failures.append(statement)
            raise sqlite3.OperationalError("disk I/O error")
        return real(self, statement, *parameters)

    monkeypatch.setattr(GroupConnection, "execute", execute, raising=False)
    blocked = threading.Event()
    hold = asyncio.ensure_future(memory._write(lambda connection: blocked.wait(30)))
    outcomes = asyncio.gather(
        *(memory.append_to_session(name, [user("1")]) for name in "abc"),
        hold,
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    blocked.set()
    results = await outcomes
    failed = [result for result in results if isinstance(result, MemoryUnavailable)]
    assert failed
    assert all(isinstance(error.__cause__, sqlite3.OperationalError) for error in failed)
    stored = await memory.list_sessions()
    assert len(stored) + sum(isinstance(r, MemoryUnavailable) for r in results[:3]) == 3
    await memory.append_to_session("d", [user("2")])
    assert await memory.load_session("d") == [user("2")]
    assert not memory._database.writes._broken  # the connection was opened anew


async def test_a_full_disk_is_told_and_survived(memory):
    """A database that may not grow refuses the write as MemoryUnavailable, and goes on."""
    await memory.append_to_session("a", [user("1")])

    def pages(connection: sqlite3.Connection) -> int:
        return connection.execute("PRAGMA page_count").fetchone()[0]

    limit = await memory._write(pages) + 2
    await memory._write(lambda c: c.execute(f"PRAGMA max_page_count = {limit}").fetchone())
    with pytest.raises(MemoryUnavailable, match="full") as caught:
        await memory.append_to_session("a", [user("x" * 200_000)])
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert await memory.load_session("a") == [user("1")]
    await memory.append_to_session("a", [user("2")])
    assert await memory.load_session("a") == [user("1"), user("2")]


# --- durability ------------------------------------------------------------------------------


async def test_only_what_must_be_kept_is_flushed(memory):
    """Acquiring and ending a turn wait for no flush; storing items, and a keyed end, do."""
    await memory.ping()

    async def flushed(work: Any) -> bool:
        before = memory.stats()["synced"]
        await work
        return memory.stats()["synced"] > before

    lease = (await memory.acquire(request_for("b"))).lease
    assert not await flushed(memory.acquire(request_for("c")))
    assert await flushed(memory.append_items(lease, 1, 0, [user("1")]))
    assert not await flushed(memory.end_turn(lease, completed()))
    lease = (await memory.acquire(request_for("b", idempotency_key="k"))).lease
    assert await flushed(memory.end_turn(lease, completed(durable=True)))
    assert await flushed(memory.clear_session("b"))


async def test_normal_flushes_a_keyed_end_only(path):
    """With synchronous="NORMAL" nothing waits for the disk but the end of a turn with a key."""
    async with SQLiteSessionMemory(path, synchronous="NORMAL") as memory:
        await memory.append_to_session("a", [user("1")])
        assert memory.stats()["synced"] == 0
        lease = (await memory.acquire(request_for(idempotency_key="k"))).lease
        await memory.end_turn(lease, completed(durable=True))
        assert memory.stats()["synced"] == 1


# --- other processes -------------------------------------------------------------------------


async def test_a_locked_file_is_waited_for(memory, other_process):
    """While another process writes, a write waits; "database is locked" is never seen."""
    begun = await write_statements(memory)
    other_process.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(memory.append_to_session("a", [user("1")]))
    await until(lambda: begun)
    assert await memory.load_session("a") == []
    assert not writing.done()
    other_process.execute("COMMIT")
    await writing
    assert await memory.load_session("a") == [user("1")]


async def test_a_file_locked_for_too_long_is_unavailable(path, other_process):
    """After operation_timeout the write fails, was not done, and the memory works on."""
    async with SQLiteSessionMemory(path, operation_timeout=0.1) as memory:
        await memory.ping()
        other_process.execute("BEGIN IMMEDIATE")
        with pytest.raises(MemoryUnavailable, match="locked by another process") as caught:
            await memory.append_to_session("a", [user("1")])
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        other_process.execute("ROLLBACK")
        await memory.append_to_session("a", [user("2")])
        assert await memory.load_session("a") == [user("2")]


# --- cancellation ----------------------------------------------------------------------------


async def test_a_cancelled_write_is_whole_when_the_cancellation_goes_on(memory, other_process):
    """A begun write is awaited however often it is cancelled, and is then there."""
    begun = await write_statements(memory)
    other_process.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(memory.append_to_session("a", [user("1"), user("2")]))
    await until(lambda: begun)
    for _ in range(3):
        writing.cancel()
        await asyncio.sleep(0)
    assert not writing.done()
    other_process.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await memory.load_session("a") == [user("1"), user("2")]


async def test_a_cancelled_acquire_leaves_the_session_free(memory, other_process):
    """Who was cancelled while acquiring a session never had it; the next one gets it at once."""
    begun = await write_statements(memory)
    other_process.execute("BEGIN IMMEDIATE")
    acquiring = asyncio.ensure_future(memory.acquire(request_for()))
    await until(lambda: begun)
    acquiring.cancel()
    await asyncio.sleep(0)  # it hears of the cancellation
    other_process.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert (await memory.acquire(request_for())).lease.turn == 2
    assert (await memory.turns("a"))[1].state == "cancelled"


async def test_a_cancelled_resume_can_be_resumed(memory, other_process):
    """A resume that was cancelled while it acquired the session leaves the parked turn parked."""
    lease = (await memory.acquire(request_for())).lease
    end = TurnEnd("awaiting_approval", datetime.now(UTC), park=("p",))
    await memory.end_turn(lease, end)
    begun = await write_statements(memory)
    other_process.execute("BEGIN IMMEDIATE")
    acquiring = asyncio.ensure_future(memory.acquire(request_for(resume="p")))
    await until(lambda: begun)
    acquiring.cancel()
    await asyncio.sleep(0)  # it hears of the cancellation
    other_process.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert (await memory.acquire(request_for(resume="p"))).resumed
    with pytest.raises(TurnInProgress):
        await memory.acquire(request_for(resume="p"))


# --- loops and threads -----------------------------------------------------------------------


def test_one_memory_serves_many_loops_in_many_threads(path):
    """Threads with loops of their own, one after the other and at once, share one memory."""
    memory = SQLiteSessionMemory(path)
    failures: list[BaseException] = []

    async def turns(name: str) -> None:
        for number in range(5):
            acquired = await memory.acquire(request_for(name))
            await memory.append_items(acquired.lease, 1, 0, [user(str(number))])
            await memory.end_turn(acquired.lease, completed())

    def work(name: str) -> None:
        try:
            for _ in range(3):
                asyncio.run(turns(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stored = asyncio.run(memory.load_session("t3"))
    assert stored == [user(str(number)) for number in [*range(5)] * 3]
    asyncio.run(memory.cleanup())


def test_a_loop_that_died_harms_nobody(path):
    """A write whose loop was closed under it is still done, and the others get theirs."""
    memory = SQLiteSessionMemory(path)
    asyncio.run(memory.ping())
    blocked = threading.Event()

    async def begin() -> None:
        memory._database.writes.submit(lambda connection: blocked.wait(30))
        memory._database.writes.submit(
            lambda connection: writing.append_turn(connection, "a", [json.dumps(user("1"))])
        )

    dead = asyncio.new_event_loop()
    dead.run_until_complete(begin())
    dead.close()
    blocked.set()
    assert asyncio.run(memory.load_session("b")) == []
    asyncio.run(memory.append_to_session("a", [user("2")]))
    assert asyncio.run(memory.load_session("a")) == [user("1"), user("2")]
    asyncio.run(memory.cleanup())
