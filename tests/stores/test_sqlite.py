"""How writes get to the file: in groups, whole, under leases, from any loop and thread."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from session_middleware.errors import (
    DuplicateTurn,
    InvalidOption,
    MemoryClosed,
    MemoryUnavailable,
    SessionBusy,
    TurnLost,
)
from session_middleware.history import LastItems, LastTurns
from session_middleware.memory import TakeTurn, TurnEnd
from session_middleware.stores import _sqlite_reads as reading
from session_middleware.stores import _sqlite_turns as writing
from session_middleware.stores._sqlite_connection import GroupConnection
from session_middleware.stores.sqlite import SQLiteSessionMemory


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def take(session_id: str = "a", **said: Any) -> TakeTurn:
    return TakeTurn(session_id, datetime.now(UTC), **said)


def completed(**said: Any) -> TurnEnd:
    return TurnEnd("completed", datetime.now(UTC), **said)


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


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - another thread or process makes it true
        await asyncio.sleep(0.005)


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
        taken = await memory.take_turn(take(f"s{number}"))
        await memory.append_items(taken.lease, 1, 0, [user(str(number))])
        await memory.end_turn(taken.lease, completed())

    await memory.ping()
    before = memory.stats()
    await asyncio.gather(*map(turn, range(64)))
    after = memory.stats()
    assert after["writes"] - before["writes"] == 3 * 64
    assert after["commits"] - before["commits"] < 64
    for number in range(64):
        assert await memory.load_session(f"s{number}") == [user(str(number))]


async def test_an_error_of_one_member_is_its_own(memory):
    """In a group, the one whose fence fails writes nothing, and the others do."""
    lost = (await memory.take_turn(take("lost"))).lease
    kept = (await memory.take_turn(take("kept"))).lease
    await memory.release("lost")
    blocked = threading.Event()
    hold = memory._file.writes.submit(lambda connection: blocked.wait(30))
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
    assert not memory._file.writes._broken  # the connection was opened anew


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
    """Taking a session and ending a turn wait for no flush; storing items, and a keyed end, do."""
    await memory.ping()

    async def flushed(work: Any) -> bool:
        before = memory.stats()["synced"]
        await work
        return memory.stats()["synced"] > before

    lease = (await memory.take_turn(take("b"))).lease
    assert not await flushed(memory.take_turn(take("c")))
    assert await flushed(memory.append_items(lease, 1, 0, [user("1")]))
    assert not await flushed(memory.end_turn(lease, completed()))
    lease = (await memory.take_turn(take("b", idempotency_key="k"))).lease
    assert await flushed(memory.end_turn(lease, completed(durable=True)))
    assert await flushed(memory.clear_session("b"))


async def test_normal_flushes_a_keyed_end_only(path):
    """With synchronous="NORMAL" nothing waits for the disk but the end of a turn with a key."""
    async with SQLiteSessionMemory(path, synchronous="NORMAL") as memory:
        await memory.append_to_session("a", [user("1")])
        assert memory.stats()["synced"] == 0
        lease = (await memory.take_turn(take(idempotency_key="k"))).lease
        await memory.end_turn(lease, completed(durable=True))
        assert memory.stats()["synced"] == 1


# --- other processes -------------------------------------------------------------------------


async def test_a_locked_file_is_waited_for(memory, other_process):
    """While another process writes, a write waits; "database is locked" is never seen."""
    await memory.ping()
    other_process.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(memory.append_to_session("a", [user("1")]))
    assert await memory.load_session("a") == []
    await asyncio.sleep(0.05)
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
    await memory.ping()
    other_process.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(memory.append_to_session("a", [user("1"), user("2")]))
    for _ in range(3):
        await asyncio.sleep(0.01)
        writing.cancel()
    await asyncio.sleep(0.01)
    assert not writing.done()
    other_process.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await memory.load_session("a") == [user("1"), user("2")]


async def test_a_cancelled_taking_leaves_the_session_free(memory, other_process):
    """Who was cancelled while taking a session never had it; the next one gets it at once."""
    await memory.ping()
    other_process.execute("BEGIN IMMEDIATE")
    taking = asyncio.ensure_future(memory.take_turn(take()))
    await asyncio.sleep(0.01)
    taking.cancel()
    await asyncio.sleep(0.01)
    other_process.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert (await memory.take_turn(take())).lease.turn == 2
    assert (await memory.turns("a"))[1].state == "cancelled"


async def test_a_cancelled_resume_can_be_resumed(memory, other_process):
    """A resume that was cancelled while it took the session leaves the parked turn parked."""
    lease = (await memory.take_turn(take())).lease
    end = TurnEnd("awaiting_approval", datetime.now(UTC), park=("p",))
    await memory.end_turn(lease, end)
    other_process.execute("BEGIN IMMEDIATE")
    taking = asyncio.ensure_future(memory.take_turn(take(resume="p")))
    await asyncio.sleep(0.01)
    taking.cancel()
    await asyncio.sleep(0.01)
    other_process.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert (await memory.take_turn(take(resume="p"))).resumed
    with pytest.raises(DuplicateTurn):
        await memory.take_turn(take(resume="p"))


# --- loops and threads -----------------------------------------------------------------------


def test_one_memory_serves_many_loops_in_many_threads(path):
    """Threads with loops of their own, one after the other and at once, share one memory."""
    memory = SQLiteSessionMemory(path)
    failures: list[BaseException] = []

    async def turns(name: str) -> None:
        for number in range(5):
            taken = await memory.take_turn(take(name))
            await memory.append_items(taken.lease, 1, 0, [user(str(number))])
            await memory.end_turn(taken.lease, completed())

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
        memory._file.writes.submit(lambda connection: blocked.wait(30))
        memory._file.writes.submit(
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


# --- cost ------------------------------------------------------------------------------------


def statements(module: Any) -> list[str]:
    found = []
    for value in vars(module).values():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text.strip().split(" ")[0].strip().isupper():
                found.append(text)
    return found


async def test_no_statement_scans_a_table(memory, other_process):
    """Every statement but the listing finds its rows by key, and none sorts a history."""
    await memory.append_to_session("a", [user("1")])
    texts = [
        text
        for module in (reading, writing)
        for text in statements(module)
        if text.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
    ]
    assert len(texts) > 40
    for text in texts:
        if text == reading._IDS:
            continue
        names = dict.fromkeys(("key", "cut", "limit", "nth", "hidden_turn"), 0)
        bound: Any = {**names, "hidden_runs": "[]"} if ":key" in text else [0] * text.count("?")
        if "?1" in text:
            bound = [0] * max(int(part[0]) for part in text.split("?")[1:])
        plan = other_process.execute(f"EXPLAIN QUERY PLAN {text}", bound).fetchall()
        for *_, detail in plan:
            scanned = detail.startswith("SCAN") and not any(
                small in detail
                for small in ("json_each", "held", "newest", "CONSTANT ROW", "(subquery")
            )
            assert not scanned, (detail, text)
            assert "TEMP B-TREE" not in detail or "held" in detail, (detail, text)


async def test_a_window_reads_no_more_than_it_keeps(memory):
    """The steps SQLite makes for a windowed load do not grow with the length of the history."""

    def steps(load: Any) -> Any:
        def counted(connection: sqlite3.Connection) -> int:
            ticks = [0]

            def tick() -> int:
                ticks[0] += 1
                return 0

            connection.set_progress_handler(tick, 1)
            load(connection)
            connection.set_progress_handler(None, 1)
            return ticks[0]

        return counted

    windows = (LastTurns(3), LastTurns(3, 2), LastItems(6))
    costs = []
    for length in (20, 400):
        for _ in range(length):
            await memory._write(lambda c: writing.append_turn(c, "a", [json.dumps(user("x"))] * 2))
        costs.append(
            [
                await memory._read(
                    steps(lambda c, w=window: reading.load_turns(c, "a", w, (10**6, (1,)), False))
                )
                for window in windows
            ]
        )
    for short, long in zip(*costs, strict=True):
        assert long <= short * 1.2 + 20


async def test_a_corrupt_row_is_left_out_and_counted(memory, other_process):
    """A row that somebody broke takes nothing else with it, and stays in the file."""
    await memory.append_to_session("a", [user(str(number)) for number in range(4)])
    broken = "UPDATE item SET item = CAST(? AS TEXT) WHERE position = ?"
    other_process.execute(broken, ("[1", 1))
    other_process.execute(broken, (b'{"content": "\xff"}', 2))
    loaded = await memory.load_turns("a", texts=True)
    assert loaded.corrupt == 1
    assert loaded.turns[0].items == [user("0"), {"content": "\ufffd"}, user("3")]
    assert len(loaded.turns[0].texts or []) == 3
    assert await memory.load_items("a", limit=3) == loaded.turns[0].items
    assert await memory.pop_item("a") == user("3")
    assert await memory.pop_item("a") == {"content": "\ufffd"}
    assert await memory.pop_item("a") == user("0")
    assert await memory.pop_item("a") is None
    assert other_process.execute("SELECT item FROM item").fetchall() == [("[1",)]


async def test_moments_come_back_as_they_were(memory):
    """Times are stored in UTC to the microsecond, whatever zone they came in."""
    zone = timezone(timedelta(hours=5, minutes=30))
    began = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=zone)
    lease = (await memory.take_turn(TakeTurn("a", began))).lease
    await memory.end_turn(lease, TurnEnd("failed", began + timedelta(seconds=1)))
    (record,) = await memory.turns("a")
    assert (record.started_at, record.started_at.tzinfo) == (began, UTC)
    assert record.ended_at == began + timedelta(seconds=1)
