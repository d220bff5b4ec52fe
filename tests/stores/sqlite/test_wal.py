"""The write-ahead log: kept short, and emptied of what was deleted."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.records import TurnEnd
from session_middleware.stores.sqlite import SQLiteSessionMemory, connection, wal
from tests.support.conditions import until
from tests.support.requests import completed, request_for, user

WORD = "unforgettable"


@pytest.fixture
async def memory(path: Path) -> AsyncIterator[SQLiteSessionMemory]:
    async with SQLiteSessionMemory(path, operation_timeout=20) as made:
        yield made


def size_of_log(path: Path) -> int:
    return path.with_name("chat.db-wal").stat().st_size


def bytes_of(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.glob("chat.db*"))


async def tell(memory: SQLiteSessionMemory) -> None:
    await memory.append_to_session("a", [user(WORD), user("x" * 9000 + WORD)])
    await memory.append_to_session("b", [user("something else")])


# --- what was deleted is in no byte ----------------------------------------------------------


async def clear(memory: SQLiteSessionMemory) -> None:
    await memory.clear_session("a")


async def save_over(memory: SQLiteSessionMemory) -> None:
    await memory.save_session("a", [user("new")])


async def empty(memory: SQLiteSessionMemory) -> None:
    await memory.save_session("a", [])


@pytest.mark.parametrize("delete", [clear, save_over, empty])
async def test_deleted_words_are_gone_when_the_call_returns(memory, path, delete):
    """No byte of the file, its log and its free pages has them, while all connections are open."""
    await tell(memory)
    await memory.load_session("a")
    assert WORD.encode() in bytes_of(path)
    await delete(memory)
    assert WORD.encode() not in bytes_of(path)
    assert b"something else" in bytes_of(path)


async def test_what_sqlite_moved_within_the_database_is_gone_too(memory, path):
    """Rows that were moved to make room for others leave no traces of deleted sessions."""
    chance = random.Random(5)
    told: dict[str, list[str]] = {}
    for number in range(80):
        session_id = f"s{chance.randrange(12)}"
        word = f"word{number}of{session_id}"
        items = [user(word * chance.choice([1, 5, 60]))] * chance.choice([1, 3, 10])
        await memory.append_to_session(session_id, items)
        told.setdefault(session_id, []).append(word)
    while told:
        session_id = chance.choice(list(told))
        await memory.clear_session(session_id)
        left = bytes_of(path)
        assert [word for word in told.pop(session_id) if word.encode() in left] == []


async def pop(memory: SQLiteSessionMemory) -> None:
    await memory.pop_item("a")
    await memory.pop_item("a")


async def discard(memory: SQLiteSessionMemory) -> None:
    lease = (await memory.acquire(request_for("c"))).lease
    await memory.append_items(lease, 1, 0, [user(WORD)])
    await memory.clear_session("a")
    await memory.end_turn(lease, completed(discard=True))


@pytest.mark.parametrize("remove", [pop, discard])
async def test_removed_words_are_gone_when_the_memory_is_idle(memory, path, monkeypatch, remove):
    """What pop and a discarded turn remove is overwritten once nothing is written for a while."""
    monkeypatch.setattr(connection, "IDLE", 0.05)
    await tell(memory)
    await remove(memory)
    await until(lambda: WORD.encode() not in bytes_of(path))
    await until(lambda: size_of_log(path) == 0)
    assert await memory.load_session("b") == [user("something else")]


async def test_popping_takes_the_answer_out_of_the_record(memory, path, monkeypatch):
    """The answer of a turn whose newest item is popped is neither in its record nor in a byte."""
    monkeypatch.setattr(connection, "IDLE", 0.05)
    lease = (await memory.acquire(request_for())).lease
    await memory.append_items(lease, 1, 0, [user("Hi"), {"role": "assistant", "content": WORD}])
    await memory.end_turn(lease, completed(output_text=WORD))
    assert (await memory.turns("a"))[0].output_text == WORD
    assert await memory.pop_item("a") == {"role": "assistant", "content": WORD}
    assert (await memory.turns("a"))[0].output_text is None
    await until(lambda: WORD.encode() not in bytes_of(path))
    assert await memory.pop_item("a") == user("Hi")
    assert await memory.pop_item("a") is None


async def test_another_reader_keeps_the_caller_waiting_and_nobody_else(path, other_process):
    """The write queue goes on; after operation_timeout the caller is told what is left where."""
    async with SQLiteSessionMemory(path, operation_timeout=1) as memory:
        await tell(memory)
        other_process.execute("BEGIN")
        other_process.execute("SELECT count(*) FROM session").fetchone()
        clearing = asyncio.ensure_future(memory.clear_session("a"))
        await until(lambda: memory._database._log.holds_deleted)
        writes = 0
        while not clearing.done():
            await memory.append_to_session("b", [user("more")])
            writes += 1
        with pytest.raises(MemoryUnavailable, match=r"deleted, and still in the write-ahead log"):
            await clearing
        assert writes > 5
        assert await memory.load_session("a") == []
        assert WORD.encode() in bytes_of(path)
        other_process.execute("COMMIT")
        await memory.clear_session("a")
        assert WORD.encode() not in bytes_of(path)


async def test_a_reader_that_ends_lets_the_caller_go_on(memory, path, other_process):
    """The call waits for other processes that read, and returns when the words are gone."""
    await tell(memory)
    other_process.execute("BEGIN")
    other_process.execute("SELECT count(*) FROM session").fetchone()
    clearing = asyncio.ensure_future(memory.clear_session("a"))
    await until(lambda: memory._database._log.holds_deleted)
    await memory.append_to_session("b", [user("more")])
    assert not clearing.done()
    other_process.execute("COMMIT")
    await clearing
    assert WORD.encode() not in bytes_of(path)


async def test_a_cancelled_clear_is_a_clear(memory, path, other_process, monkeypatch):
    """Whoever is cancelled while waiting has deleted all the same; the words go when it is idle."""
    monkeypatch.setattr(connection, "IDLE", 0.05)
    await tell(memory)
    other_process.execute("BEGIN")
    other_process.execute("SELECT count(*) FROM session").fetchone()
    clearing = asyncio.ensure_future(memory.clear_session("a"))
    await until(lambda: memory._database._log.holds_deleted)
    clearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await clearing
    assert await memory.load_session("a") == []
    other_process.execute("COMMIT")
    await until(lambda: WORD.encode() not in bytes_of(path))


async def test_many_clears_at_once_share_the_work(memory, path):
    """Sixty-four sessions are cleared together, and none of their words stays."""
    await asyncio.gather(
        *(memory.append_to_session(f"s{n}", [user(f"{WORD}{n}")]) for n in range(64))
    )
    await asyncio.gather(*(memory.clear_session(f"s{n}") for n in range(64)))
    assert WORD.encode() not in bytes_of(path)
    assert await memory.list_sessions() == []


# --- kept short ------------------------------------------------------------------------------


async def test_readers_do_not_let_the_log_grow(memory, path):
    """While histories are read all the time, the log stays near its limit."""
    await memory.append_to_session("long", [user("x" * 200)] * 5_000)
    stop = asyncio.Event()

    async def read() -> None:
        while not stop.is_set():
            await memory.load_session("long")

    readers = [asyncio.ensure_future(read()) for _ in range(3)]
    largest = 0
    for number in range(60):
        await memory.append_to_session(f"s{number % 7}", [user("y" * 1_000_000)])
        largest = max(largest, size_of_log(path))
    stop.set()
    await asyncio.gather(*readers)
    assert largest < 2 * wal.SIZE_LIMIT


async def test_clearing_much_leaves_no_long_log(memory, path):
    """The log of 50 MB that were stored and deleted is cut to nothing."""
    await memory.append_to_session("a", [user("x" * 1_000_000) for _ in range(50)])
    await memory.clear_session("a")
    assert size_of_log(path) == 0


async def test_the_log_is_moved_after_many_rows(memory, path, monkeypatch):
    """Without any reader the log is used again from its beginning, and so stays as long."""
    monkeypatch.setattr(wal, "_CHANGES", 100)
    sizes = []
    for number in range(60):
        await memory.append_to_session(f"s{number % 3}", [user("x")] * 20)
        sizes.append(size_of_log(path))
    assert sizes[-1] == sizes[20] > 0


async def test_an_idle_memory_has_an_empty_log(memory, path, monkeypatch):
    """Some seconds after the last write the log is moved into the database and cut."""
    monkeypatch.setattr(connection, "IDLE", 0.05)
    await memory.append_to_session("a", [user("1")])
    await until(lambda: size_of_log(path) == 0)
    await memory.append_to_session("a", [user("2")])
    assert size_of_log(path) > 0
    await until(lambda: size_of_log(path) == 0)
    assert await memory.load_session("a") == [user("1"), user("2")]


async def test_a_log_over_its_limit_that_is_read_from_does_not_stop_writes(
    path, other_process, monkeypatch
):
    """Another process that reads on lets the log grow; every write goes on at once."""
    monkeypatch.setattr(wal, "SIZE_LIMIT", 100_000)
    async with SQLiteSessionMemory(path, operation_timeout=20) as memory:
        await memory.append_to_session("a", [user("1")])
        other_process.execute("BEGIN")
        other_process.execute("SELECT count(*) FROM session").fetchone()
        for _ in range(30):
            await memory.append_to_session("a", [user("x" * 20_000)])
        assert size_of_log(path) > 300_000
        other_process.execute("COMMIT")
        memory._database._log._next_try = 0.0
        await memory.append_to_session("a", [user("2")])
        await until(lambda: size_of_log(path) < 100_000)


async def test_forgotten_reads_hold_nothing_up(memory):
    """A read that runs when a clear is asked for ends, and then the clear returns."""
    await tell(memory)
    begun, go_on = threading.Event(), threading.Event()

    def hold(reader: sqlite3.Connection) -> int:
        reader.execute("SELECT count(*) FROM item").fetchone()
        begun.set()
        go_on.wait(30)
        return 1

    reading = memory._database.reads.submit_read(hold)
    await asyncio.to_thread(begun.wait, 30)
    clearing = asyncio.ensure_future(memory.clear_session("a"))
    await until(lambda: memory._database._log.holds_deleted)
    assert not clearing.done()
    go_on.set()
    assert await reading == 1
    await clearing


async def test_a_parked_turn_that_is_cleared_leaves_no_words(memory, path):
    """Clearing removes what a parked turn has stored as well."""
    lease = (await memory.acquire(request_for())).lease
    await memory.append_items(lease, 1, 0, [user(WORD)])
    end = TurnEnd("awaiting_approval", completed().ended_at, park=("p",))
    await memory.end_turn(lease, end)
    await memory.clear_session("a")
    assert WORD.encode() not in bytes_of(path)
