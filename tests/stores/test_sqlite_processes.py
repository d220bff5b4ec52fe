"""Real processes on one file: starting together, dying, leaving, forking."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from session_middleware.errors import SessionBusy
from session_middleware.memory import TakeTurn
from session_middleware.stores._sqlite_file import make_ready
from session_middleware.stores.sqlite import SQLiteSessionMemory

PRELUDE = """
import asyncio, importlib.util, os, signal, sys, threading, time, types

# The store alone: the package's own first lines import the SDK, which takes seconds.
package = types.ModuleType("session_middleware")
package.__path__ = importlib.util.find_spec("session_middleware").submodule_search_locations
sys.modules["session_middleware"] = package

from datetime import UTC, datetime
from session_middleware.memory import TakeTurn, TurnEnd
from session_middleware.stores._sqlite_file import make_ready
from session_middleware.stores.sqlite import SQLiteSessionMemory

path = sys.argv[1]
memory = SQLiteSessionMemory(path, lease=0.5)

def take(session_id):
    return memory.take_turn(TakeTurn(session_id, datetime.now(UTC)))

def user(text):
    return {"role": "user", "content": text}
"""


class Scripts:
    """Starts scripts in processes of their own, and leaves none behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: list[subprocess.Popen[str]] = []

    def start(self, script: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, script: str, *options: str) -> str:
        """Run a script to its end, which must be a good one and a silent one."""
        out, err = self.start(script, *options).communicate(timeout=60)
        assert err == ""
        assert self.started[-1].returncode == 0
        return out


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    made = Scripts(tmp_path / "chat.db")
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


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
        _, err = worker.communicate(timeout=90)
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
    """SIGKILL leaves the session taken until the lease ends; what it had stored is there."""
    holder = scripts.start(
        """
        async def main():
            taken = await take("a")
            await memory.append_items(taken.lease, 1, 0, [user("from the dead")])
            print("held", flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
        """
    )
    assert holder.stdout is not None
    assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
    async with SQLiteSessionMemory(scripts.path) as memory:
        await asyncio.sleep(0.6)
        with pytest.raises(SessionBusy):  # it lives, and renews
            await memory.take_turn(TakeTurn("a", datetime.now(UTC)))
        holder.send_signal(signal.SIGKILL)
        while True:
            try:
                taken = await memory.take_turn(TakeTurn("a", datetime.now(UTC)))
            except SessionBusy as busy:
                await asyncio.sleep(busy.retry_after or 0)
            else:
                break
        assert taken.lease.turn == 2
        assert [record.state for record in await memory.turns("a")] == ["running", "abandoned"]
        assert await memory.load_session("a") == [{"role": "user", "content": "from the dead"}]


@pytest.mark.parametrize("cleanup", [False, True])
@pytest.mark.parametrize("options", [(), ("-X", "dev", "-W", "error")])
def test_a_program_that_ends_leaves_at_once_and_silently(scripts, cleanup, options):
    """No cleanup is needed: nothing is lost, nothing is printed, the held session is free."""
    scripts.run(
        f"""
        async def main():
            taken = await take("a")
            await memory.append_items(taken.lease, 1, 0, [user("1")])
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
            taken = await memory.take_turn(TakeTurn("a", datetime.now(UTC)))
            assert taken.lease.turn == 2
            assert (await memory.turns("a"))[1].state == "abandoned"

    asyncio.run(after())


def test_a_write_that_was_only_begun_is_done_at_exit(scripts):
    """What waits when the program ends is flushed first."""
    scripts.run(
        """
        async def main():
            await memory.ping()
            memory._file.writes.submit(lambda connection: time.sleep(0.3))
            memory._file.writes.submit(
                lambda connection: append_turn(connection, "a", ['{"role": "user"}'])
            )
        from session_middleware.stores._sqlite_turns import append_turn
        asyncio.run(main())
        """
    )
    assert asyncio.run(loaded(scripts.path, "a")) == [{"role": "user"}]


def test_an_unhandled_error_is_the_only_thing_printed(scripts):
    """A program that fails while it holds a session says so, and nothing else."""
    process = scripts.start(
        """
        async def main():
            await take("a")
            raise RuntimeError("as planned")
        asyncio.run(main())
        """
    )
    _, err = process.communicate(timeout=60)
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
            taken = await take("c")
            await memory.end_turn(taken.lease, TurnEnd("completed", datetime.now(UTC)))
            assert memory._file.leases._by_key(including_closed=True) == {}
            return len(await memory.load_session("a"))

        async def parent():
            taken = await take("a")
            await memory.append_items(taken.lease, 1, 0, [user("parent")])
            return taken

        taken = asyncio.run(parent())
        pid = os.fork()
        if pid == 0:
            print("child saw", asyncio.run(child()), flush=True)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        print("status", status)
        async def go_on():
            await memory.append_items(taken.lease, 1, 1, [user("again")])
            await memory.end_turn(taken.lease, TurnEnd("completed", datetime.now(UTC)))
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
        async def traffic():
            number = 0
            while not stop.is_set():
                await memory.append_to_session("parent", [user("x" * 1000)])
        thread = threading.Thread(target=lambda: asyncio.run(traffic()))
        thread.start()
        children = []
        for number in range(8):
            time.sleep(0.02)
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
