"""Which file a memory works on, who may read it, and what happens when it is taken away."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.sqlite import SQLiteSessionMemory
from session_middleware.stores.sqlite.group import GroupConnection
from tests.support.requests import request_for, user


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Files are created for everybody, unless whoever creates them says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> dict[str, int]:
    """The mode of every file in the folder, but for links."""
    return {found.name: mode(found) for found in folder.iterdir() if not found.is_symlink()}


# --- who may read it -------------------------------------------------------------------------


@pytest.mark.usefixtures("open_umask")
async def test_files_are_private(path):
    """The database, its log and its index are made for their owner only."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
        await memory.load_session("a")
        names = {"chat.db", "chat.db-wal", "chat.db-shm"}
        assert modes(path.parent) == dict.fromkeys(names, 0o600)


@pytest.mark.usefixtures("open_umask")
async def test_a_file_behind_a_dangling_link_is_private(tmp_path):
    """The target of a link that led nowhere is made for its owner only."""
    target, link = tmp_path / "data", tmp_path / "chat.db"
    target.mkdir()
    link.symlink_to(target / "real.db")
    async with SQLiteSessionMemory(link) as memory:
        await memory.append_to_session("a", [user("1")])
        names = {"real.db", "real.db-wal", "real.db-shm"}
        assert modes(target) == dict.fromkeys(names, 0o600)
        assert await memory.load_session("a") == [user("1")]


@pytest.mark.usefixtures("open_umask")
async def test_a_file_that_vanishes_while_it_is_opened_is_not_made_for_everybody(path, monkeypatch):
    """Between the creation of the file and its opening, nobody else creates it."""
    real = GroupConnection.__init__

    def vanish(self, queue, *args, **kwargs):
        create = queue.create

        def create_and_lose() -> None:
            create()
            path.unlink()

        queue.create = create_and_lose
        try:
            real(self, queue, *args, **kwargs)
        finally:
            queue.create = create

    monkeypatch.setattr(GroupConnection, "__init__", vanish)
    memory = SQLiteSessionMemory(path)
    with pytest.raises(MemoryUnavailable):
        await memory.append_to_session("a", [user("1")])
    assert not path.exists()
    monkeypatch.undo()
    await memory.append_to_session("a", [user("1")])
    assert mode(path) == 0o600
    await memory.cleanup()


@pytest.mark.usefixtures("open_umask")
async def test_a_log_that_was_left_open_to_everybody_is_made_private(path):
    """A log and an index from a crash get no more rights than the database has."""
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
        copies = path.parent / "copy"
        copies.mkdir()
        for found in ("chat.db", "chat.db-wal", "chat.db-shm"):
            shutil.copyfile(path.parent / found, copies / found)
    (copies / "chat.db").chmod(0o600)
    assert modes(copies)["chat.db-wal"] == 0o666
    async with SQLiteSessionMemory(copies / "chat.db") as memory:
        assert await memory.load_session("a") == [user("1")]
        assert set(modes(copies).values()) == {0o600}


@pytest.mark.parametrize("rights", [0o666, 0o620, 0o602])
async def test_a_file_that_others_can_write_is_told(path, rights):
    """A Python warning names the file, its mode and what to do; the file is used as it is."""
    path.touch()
    path.chmod(rights)
    memory = SQLiteSessionMemory(path)
    with pytest.warns(
        UserWarning, match=f"chat.db can be written by other users .mode {rights:04o}"
    ):
        await memory.append_to_session("a", [user("1")])
    assert mode(path) == rights
    await memory.cleanup()


@pytest.mark.parametrize("rights", [0o600, 0o644, 0o640])
async def test_a_file_that_others_can_only_read_is_the_users_choice(path, rights):
    """Warnings are errors in this suite: none is raised, and the mode stays."""
    path.touch()
    path.chmod(rights)
    async with SQLiteSessionMemory(path) as memory:
        await memory.append_to_session("a", [user("1")])
        assert mode(path) == rights


# --- the file that was opened is the file that is there --------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def remove_all(path: Path) -> None:
    for name in ("chat.db", "chat.db-wal", "chat.db-shm"):
        (path.parent / name).unlink()


def restore(path: Path) -> None:
    """Put a backup in its place, as ``mv`` does."""
    backup = path.parent / "backup.db"
    with closing(sqlite3.connect(path)) as source:
        source.execute(f"VACUUM INTO '{backup}'")
    backup.rename(path)


def remove_log(path: Path) -> None:
    (path.parent / "chat.db-wal").unlink()


def lead_elsewhere(path: Path) -> None:
    """Let a link take the file's place."""
    other = path.parent / "other.db"
    path.rename(other)
    shutil.copyfile(other, path.parent / "third.db")
    path.symlink_to(path.parent / "third.db")


@pytest.mark.parametrize("take_away", [remove, remove_all, restore, remove_log, lead_elsewhere])
async def test_nothing_is_acknowledged_by_a_file_that_is_gone(path, take_away):
    """A file that was removed or replaced under a memory is unavailable to it for good."""
    memory = SQLiteSessionMemory(path)
    lease = (await memory.acquire(request_for("held"))).lease
    await memory.append_to_session("a", [user("1")])
    await memory.load_session("a")
    take_away(path)
    for _ in range(2):
        for work in (
            memory.append_to_session("a", [user("2")]),
            memory.append_items(lease, 1, 0, [user("3")]),
            memory.acquire(request_for("b")),
            memory.load_session("a"),
            memory.clear_session("a"),
            memory.ping(),
        ):
            with pytest.raises(MemoryUnavailable, match=r"removed or replaced.*make a new memory"):
                await work
    await memory.cleanup()


async def test_a_restored_file_is_used_by_a_new_memory(path):
    """After cleanup a new memory opens the file that is there, and the old one stays closed."""
    memory = SQLiteSessionMemory(path)
    await memory.append_to_session("a", [user("1")])
    restore(path)
    with pytest.raises(MemoryUnavailable):
        await memory.append_to_session("a", [user("2")])
    await memory.cleanup()
    async with SQLiteSessionMemory(path) as anew:
        assert await anew.load_session("a") == [user("1")]
        await anew.append_to_session("a", [user("3")])
    async with SQLiteSessionMemory(path) as again:
        assert await again.load_session("a") == [user("1"), user("3")]


async def test_the_cleanup_of_a_replaced_file_leaves_the_new_one_alone(path):
    """Closing the old file takes no log from the file that took its place."""
    memory = SQLiteSessionMemory(path)
    await memory.append_to_session("a", [user("1")])
    restore(path)
    for name in ("chat.db-wal", "chat.db-shm"):
        (path.parent / name).unlink()
    async with SQLiteSessionMemory(path) as anew:
        await anew.append_to_session("a", [user("2")])
        await memory.cleanup()
        assert (path.parent / "chat.db-wal").exists()
        await anew.append_to_session("a", [user("3")])
    async with SQLiteSessionMemory(path) as again:
        assert await again.load_session("a") == [user("1"), user("2"), user("3")]


async def test_a_file_is_not_made_again_when_it_was_removed(path):
    """Opening the connection again, after an error, creates no file in place of the old one."""
    memory = SQLiteSessionMemory(path)
    await memory.append_to_session("a", [user("1")])
    await memory._write(lambda connection: connection.execute("PRAGMA max_page_count = 10"))
    path.unlink()
    for _ in range(3):
        with pytest.raises(MemoryUnavailable):
            await memory.append_to_session("a", [user("x" * 100_000)])
    assert not path.exists()
    await memory.cleanup()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_opens_the_file_that_is_there(path):
    """A child is the next process: it uses the file that took the place of the parent's."""
    memory = SQLiteSessionMemory(path)
    asyncio.run(memory.append_to_session("a", [user("1")]))
    remove_all(path)
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(memory.append_to_session("b", [user("2")]))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    asyncio.run(memory.cleanup())

    async def stored() -> list[str]:
        async with SQLiteSessionMemory(path) as anew:
            return await anew.list_sessions()

    assert asyncio.run(stored()) == ["b"]
