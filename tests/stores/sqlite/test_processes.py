"""Real processes on one file: starting together, dying, leaving, forking."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from session_middleware.errors import SessionBusy
from session_middleware.stores.records import AcquireRequest
from session_middleware.stores.sqlite import SQLiteSessionMemory
from session_middleware.stores.sqlite.file import make_ready
from tests.support.conditions import until
from tests.support.requests import lease_until
from tests.support.store_scripts import Scripts


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    with Scripts(tmp_path / "chat.db") as made:
        yield made


async def loaded(path: Path, session_id: str) -> list[Any]:
    async with SQLiteSessionMemory(path) as memory:
        return await memory.load_session(session_id)


def test_eight_processes_start_on_one_new_file(scripts):
    """Processes that all find no file, and all make it, lose nothing and see no error."""
    workers = [
        scripts.start(
            """
            input()
            async def main():
                for number in range(5):
                    await memory.append_to_session("shared", [user(f"{os.getpid()}-{number}")])
            asyncio.run(main())
            """
        )
        for _ in range(8)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        _, err = worker.communicate()
        assert (worker.returncode, err) == (0, "")
    stored = [item["content"] for item in asyncio.run(loaded(scripts.path, "shared"))]
    assert sorted(stored) == sorted(f"{w.pid}-{n}" for w in workers for n in range(5))


def test_the_layout_is_looked_at_in_one_go(tmp_path):
    """Another process that gives the file its layout halfway through does not confuse."""
    path = str(tmp_path / "chat.db")
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as another,
    ):
        interfered = []

        def interfere(statement: str) -> None:
            if "user_version" in statement and not interfered:
                interfered.append(statement)
                with suppress(sqlite3.OperationalError):  # it has to wait
                    make_ready(another, path, 0)

        connection.set_trace_callback(interfere)
        make_ready(connection, path, 1)
        connection.set_trace_callback(None)
        assert interfered
        make_ready(another, path, 1)


async def test_a_killed_holder_is_taken_over_when_its_lease_ends(scripts):
    """SIGKILL leaves the session held until the lease ends; what it had stored is there."""
    holder = scripts.start(
        """
        async def main():
            acquired = await acquire("a")
            await memory.append_items(acquired.lease, 1, 0, [user("from the dead")])
            print("held", flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
        """
    )
    assert holder.stdout is not None
    assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
    async with SQLiteSessionMemory(scripts.path) as memory:
        with closing(sqlite3.connect(scripts.path)) as connection:
            first = lease_until(connection)
            await until(lambda: lease_until(connection) > first)
        with pytest.raises(SessionBusy):  # it lives, and renews
            await memory.acquire(AcquireRequest("a", datetime.now(UTC)))
        holder.send_signal(signal.SIGKILL)
        while True:
            try:
                acquired = await memory.acquire(AcquireRequest("a", datetime.now(UTC)))
            except SessionBusy as busy:
                await asyncio.sleep(busy.retry_after or 0)
            else:
                break
        assert acquired.lease.turn == 2
        assert [record.state for record in await memory.turns("a")] == ["running", "abandoned"]
        assert await memory.load_session("a") == [{"role": "user", "content": "from the dead"}]


@pytest.mark.parametrize("cleanup", [False, True])
@pytest.mark.parametrize("options", [(), ("-X", "dev", "-W", "error")])
def test_a_program_that_ends_leaves_at_once_and_silently(scripts, cleanup, options):
    """No cleanup is needed: nothing is lost, nothing is printed, the held session is free."""
    scripts.run(
        f"""
        async def main():
            acquired = await acquire("a")
            await memory.append_items(acquired.lease, 1, 0, [user("1")])
            await memory.load_session("a")
            if {cleanup}:
                await memory.cleanup()
        asyncio.run(main())
        """,
        *options,
    )
    assert sorted(p.name for p in scripts.path.parent.iterdir()) == ["chat.db"]

    async def after() -> None:
        async with SQLiteSessionMemory(scripts.path) as memory:
            assert await memory.load_session("a") == [{"role": "user", "content": "1"}]
            acquired = await memory.acquire(AcquireRequest("a", datetime.now(UTC)))
            assert acquired.lease.turn == 2
            assert (await memory.turns("a"))[1].state == "abandoned"

    asyncio.run(after())


def test_a_write_that_was_only_begun_is_done_at_exit(scripts):
    """What waits when the program ends is flushed first."""
    scripts.run(
        """
        async def main():
            await memory.ping()
            memory._database.writes.submit(lambda connection: threading.main_thread().join())
            memory._database.writes.submit(
                lambda connection: append_turn(connection, "a", ['{"role": "user"}'])
            )
        from session_middleware.stores.sqlite.writes import append_turn
        asyncio.run(main())
        """
    )
    assert asyncio.run(loaded(scripts.path, "a")) == [{"role": "user"}]


def test_an_unhandled_error_is_the_only_thing_printed(scripts):
    """A program that fails while it holds a session says so, and nothing else."""
    process = scripts.start(
        """
        async def main():
            await acquire("a")
            raise RuntimeError("as planned")
        asyncio.run(main())
        """
    )
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("RuntimeError: as planned")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_parent_and_forked_child_go_on_apart(scripts):
    """After a fork both use the memory; the child renews none of the parent's leases."""
    out = scripts.run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is the point
        async def child():
            await memory.append_to_session("b", [user("child")])
            acquired = await acquire("c")
            await memory.end_turn(acquired.lease, TurnEnd("completed", datetime.now(UTC)))
            assert memory._database.leases._by_key(including_closed=True) == {}
            return len(await memory.load_session("a"))

        async def parent():
            acquired = await acquire("a")
            await memory.append_items(acquired.lease, 1, 0, [user("parent")])
            return acquired

        acquired = asyncio.run(parent())
        pid = os.fork()
        if pid == 0:
            print("child saw", asyncio.run(child()), flush=True)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        print("status", status)
        async def go_on():
            await memory.append_items(acquired.lease, 1, 1, [user("again")])
            await memory.end_turn(acquired.lease, TurnEnd("completed", datetime.now(UTC)))
        asyncio.run(go_on())
        """
    )
    assert out.splitlines() == ["child saw 1", "status 0"]
    contents = [item["content"] for item in asyncio.run(loaded(scripts.path, "a"))]
    assert contents == ["parent", "again"]
    assert asyncio.run(loaded(scripts.path, "b")) == [{"role": "user", "content": "child"}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forks_in_the_middle_of_writes_never_hang(scripts):
    """Children that are forked while the parent's connection is busy can all write."""
    scripts.run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        stop = threading.Event()
        written = []
        async def traffic():
            while not stop.is_set():
                await memory.append_to_session("parent", [user("x" * 1000)])
                written.append(1)
        thread = threading.Thread(target=lambda: asyncio.run(traffic()))
        thread.start()
        children = []
        for number in range(8):
            while len(written) <= 2 * number:
                time.sleep(0.001)
            pid = os.fork()
            if pid == 0:
                asyncio.run(memory.append_to_session("children", [user(str(number))]))
                os._exit(0)
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        thread.join()
        """
    )
    stored = [item["content"] for item in asyncio.run(loaded(scripts.path, "children"))]
    assert sorted(stored) == sorted(map(str, range(8)))
