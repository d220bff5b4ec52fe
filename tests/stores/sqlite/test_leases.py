"""Who holds a session for how long, and what happens to it when a memory goes."""

from __future__ import annotations

import asyncio
import errno
import gc
import subprocess
import sys
import threading
import time

import pytest

from session_middleware.errors import (
    MemoryClosed,
    MemoryUnavailable,
    SessionBusy,
    TurnLost,
)
from session_middleware.stores.rules import HeldLease
from session_middleware.stores.sqlite import SQLiteSessionMemory, clock
from session_middleware.stores.sqlite import acquire as leasing
from session_middleware.stores.sqlite.session import SessionRow
from tests.support.conditions import until
from tests.support.requests import completed, lease_until, request_for, user

# --- leases ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "expired"),
    [(-0.1, True), (0.0, True), (0.1, False), (30.0, False), (30.9, False), (31.1, True)],
)
def test_a_lease_counts_to_its_last_moment(left, expired):
    """And only if it can be of now: one that ends too late was granted before a clock was set."""
    row = SessionRow(key=1, token=7, leased_turn=3, lease_seconds=30.0, seconds_left=left)
    assert row.lease() == HeldLease(3, expired=expired)


async def test_a_lease_is_renewed_while_its_turn_runs(path, other_process):
    """The lease of a turn that runs is renewed again and again, so nobody else gets the session."""
    async with SQLiteSessionMemory(path, lease=3) as memory:
        lease = (await memory.acquire(request_for())).lease
        first = lease_until(other_process)
        await until(lambda: lease_until(other_process) > first + 1.5)
        with pytest.raises(SessionBusy) as caught:
            await memory.acquire(request_for())
        assert caught.value.turn == 1
        assert caught.value.since is not None
        assert caught.value.until is not None
        assert 0 < caught.value.retry_after <= 3
        await memory.append_items(lease, 1, 0, [user("1")])


async def test_renewal_does_not_need_the_users_loop(path, other_process):
    """A lease is renewed while a tool blocks the event loop."""
    async with SQLiteSessionMemory(path, lease=3) as memory:
        lease = (await memory.acquire(request_for())).lease
        first = lease_until(other_process)
        while lease_until(other_process) == first:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop is blocked on purpose
        await memory.end_turn(lease, completed())


async def test_all_leases_are_renewed_by_one_write_and_only_while_held(path):
    """Fifty held sessions cost one write for each third of a lease; none held, none."""
    async with SQLiteSessionMemory(path, lease=0.3) as memory:
        acquired = [await memory.acquire(request_for(f"s{n}")) for n in range(50)]
        before = memory.stats()["writes"]
        await until(lambda: memory.stats()["writes"] >= before + 3)
        for each in acquired:
            await memory.end_turn(each.lease, completed())
        renewal = memory._database.leases._renewal
        await until(renewal.done)
        assert memory._database.leases._renewal is renewal


@pytest.mark.parametrize("error", [MemoryUnavailable("full"), OSError(24, "files"), ValueError()])
async def test_every_error_of_a_renewal_is_survived(path, other_process, monkeypatch, error):
    """Whatever a renewal raises, the next one is tried in a third of the lease."""
    async with SQLiteSessionMemory(path, lease=0.6) as memory:
        lease = (await memory.acquire(request_for())).lease
        first, real, failed = lease_until(other_process), leasing.renew, []

        def fail(*args, **kwargs):
            failed.append(error)
            if len(failed) < 3:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(leasing, "renew", fail)
        await until(lambda: lease_until(other_process) > first)
        assert len(failed) == 3
        await memory.end_turn(lease, completed())


async def test_an_expired_lease_is_good_until_somebody_acquires_the_session(memory, other_process):
    """After a sleep of the machine the turn goes on; after a takeover it is lost."""
    lease = (await memory.acquire(request_for())).lease
    other_process.execute("UPDATE session SET lease_clock = 0")
    await memory.append_items(lease, 1, 0, [user("1")])
    other_process.execute("UPDATE session SET lease_clock = 0")
    second = await memory.acquire(request_for())
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


async def test_leases_count_in_a_clock_that_nobody_sets(memory, other_process):
    """Setting the wall clock neither ends a lease of this boot nor prolongs it."""
    await memory.acquire(request_for())
    for wall in (0, time.time() - 1, time.time() + 3600):
        other_process.execute("UPDATE session SET lease_until = ?", (wall,))
        with pytest.raises(SessionBusy) as caught:
            await memory.acquire(request_for())
        assert 0 < caught.value.retry_after <= 30
        assert 0 < caught.value.until.timestamp() - time.time() <= 30
    other_process.execute("UPDATE session SET lease_clock = 0")
    assert (await memory.acquire(request_for())).lease.turn == 2


@pytest.mark.parametrize(
    "granted_elsewhere",
    ["lease_boot = 1", "lease_boot = NULL", "clock_token = 1", "clock_token = NULL"],
)
async def test_a_lease_of_another_boot_ends_by_wall_time(memory, other_process, granted_elsewhere):
    """So does one that a process of an older version granted; neither ends at once."""
    await memory.acquire(request_for())
    other_process.execute(f"UPDATE session SET lease_clock = 0, {granted_elsewhere}")
    with pytest.raises(SessionBusy) as caught:
        await memory.acquire(request_for())
    assert 0 < caught.value.retry_after <= 30
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() - 1,))
    assert (await memory.acquire(request_for())).lease.turn == 2


@pytest.mark.parametrize("boot", [1, None])
async def test_a_lease_from_the_future_was_granted_before_the_clock_was_set_back(
    memory, other_process, boot
):
    """A lease by wall time that ends later than it could is expired; a small step is nothing."""
    await memory.acquire(request_for())
    other_process.execute("UPDATE session SET lease_boot = ?", (boot,))
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() + 30.5,))
    with pytest.raises(SessionBusy):
        await memory.acquire(request_for())
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() + 3600,))
    assert (await memory.acquire(request_for())).lease.turn == 2


async def test_without_a_boot_id_wall_time_decides(memory, other_process, monkeypatch):
    """Where the platform names no boot, leases end by wall time."""
    monkeypatch.setattr(clock, "boot_id", lambda: None)
    await memory.acquire(request_for())
    with pytest.raises(SessionBusy):
        await memory.acquire(request_for())
    other_process.execute("UPDATE session SET lease_until = ?", (time.time() - 1,))
    assert (await memory.acquire(request_for())).lease.turn == 2


def test_the_machines_clock_has_an_id_here():
    """On Linux every process of one boot reads the same id and the same clock."""
    script = (
        "from session_middleware.stores.sqlite import clock; now = clock.now();"
        "print(now.machine, now.boot, sep='|')"
    )
    before = clock.now()
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    machine, boot = out.stdout.strip().split("|")
    assert before.machine < float(machine) < clock.now().machine
    assert int(boot) == clock.boot_id()


async def test_a_token_is_worth_nothing_in_a_session_that_was_made_anew(memory):
    """After clear, the old turn is lost even when a new session has the same name and number."""
    old = (await memory.acquire(request_for())).lease
    await memory.clear_session("a")
    new = (await memory.acquire(request_for())).lease
    assert new.turn == old.turn
    with pytest.raises(TurnLost):
        await memory.append_items(old, 1, 0, [user("1")])
    await memory.append_items(new, 1, 0, [user("2")])
    assert await memory.load_session("a") == [user("2")]


async def test_fences_are_larger_than_those_that_a_power_failure_took(memory, other_process):
    """The newest ones may be in no commit that was flushed, and known to a tool's own storage."""
    granted = [(await memory.acquire(request_for(f"s{at}"))).lease.fence for at in range(3)]
    other_process.execute("UPDATE fence SET last = ?", (granted[0],))
    after = [(await memory.acquire(request_for(f"t{at}"))).lease.fence for at in range(3)]
    assert [*granted, *after] == sorted({*granted, *after})


async def test_fences_grow_where_the_clock_was_set_back(memory, other_process):
    """They count on from the last one then."""
    ahead = 2**53
    await memory.ping()
    other_process.execute("UPDATE fence SET last = ?", (ahead,))
    granted = [(await memory.acquire(request_for(f"s{at}"))).lease.fence for at in range(2)]
    assert granted == [ahead + 1, ahead + 2]


# --- the end ---------------------------------------------------------------------------------


async def test_cleanup_frees_what_it_held_and_closes(path):
    """After cleanup the session is free at once, and everything is MemoryClosed."""
    memory = SQLiteSessionMemory(path)
    lease = (await memory.acquire(request_for())).lease
    pending = asyncio.ensure_future(memory.append_items(lease, 1, 0, [user("1")]))
    await asyncio.sleep(0)
    await memory.cleanup()
    await memory.cleanup()
    await pending
    for work in (
        memory.load_session("a"),
        memory.append_to_session("a", [user("1")]),
        memory.acquire(request_for()),
        memory.ping(),
        memory.list_sessions(),
    ):
        with pytest.raises(MemoryClosed):
            await work
    async with SQLiteSessionMemory(path) as other:
        assert (await other.acquire(request_for())).lease.turn == 2
        assert (await other.turns("a"))[1].state == "abandoned"
        assert await other.load_session("a") == [user("1")]


async def test_cleanup_closes_what_was_opened_for_reads_that_failed(memory, monkeypatch):
    """The connection for writes is opened first, also where only a read was asked for."""
    database = memory._database

    async def fail() -> None:
        await database.writes._connection()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(database.reads, "_connect", fail)
    with pytest.raises(MemoryUnavailable):
        await memory.load_session("a")
    assert database.writes.opened
    await memory.cleanup()
    assert not database.writes.opened


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
    lease = (await memory.acquire(request_for())).lease
    closing_ = asyncio.ensure_future(memory.cleanup(drain=30))
    await until(lambda: memory._database.leases._watchers)
    await memory.end_turn(lease, completed())
    await closing_
    other = SQLiteSessionMemory(path)
    assert (await other.turns("a"))[0].state == "completed"
    await other.acquire(request_for())
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
