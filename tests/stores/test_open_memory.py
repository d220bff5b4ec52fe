"""Memories are named by URL or file; a file has one memory in a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from session_middleware import stores
from session_middleware.conformance.samples import user
from session_middleware.errors import InvalidMemoryUrl, InvalidOption
from session_middleware.stores import open_memory, shared
from session_middleware.stores.in_memory import InMemorySessionMemory
from session_middleware.stores.sqlite import SQLiteSessionMemory


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative paths mean a folder of the test's own, and nothing is shared between tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "_shared", {})
    return tmp_path


def opened(url: str) -> SQLiteSessionMemory:
    memory = open_memory(url)
    assert isinstance(memory, SQLiteSessionMemory)
    return memory


# --- open_memory ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///chat.db", "{folder}/chat.db"),
        ("SQLite:///chat.db", "{folder}/chat.db"),
        ("sqlite:///data/chat.db", "{folder}/data/chat.db"),
        ("sqlite:////var/lib/chat.db", "/var/lib/chat.db"),
        ("sqlite:///a%20b%3F.db", "{folder}/a b?.db"),
        ("sqlite:///chat.db?lease=10", "{folder}/chat.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str, in_a_folder: Path) -> None:
    """Three slashes are the current folder, four an absolute path; escapes are decoded."""
    assert opened(url).path == path.format(folder=in_a_folder)


def test_options_may_follow_the_file() -> None:
    """lease in seconds, synchronous in either case, the same as keywords."""
    assert opened("sqlite:///chat.db").lease_seconds == 30
    assert opened("sqlite:///chat.db?synchronous=normal&lease=7.5").lease_seconds == 7.5
    memory = open_memory("sqlite:///chat.db?synchronous=NORMAL", lease=9)
    assert isinstance(memory, SQLiteSessionMemory)
    assert memory.lease_seconds == 9


def test_a_memory_without_a_file() -> None:
    """``:memory:`` is an InMemorySessionMemory, a new one each time."""
    assert isinstance(open_memory(":memory:"), InMemorySessionMemory)
    assert open_memory(":memory:") is not open_memory(":memory:")


def test_nothing_is_opened_before_it_is_used(in_a_folder: Path) -> None:
    """Naming a memory creates no file; using it does."""
    memory = open_memory("sqlite:///chat.db")
    assert list(in_a_folder.iterdir()) == []

    async def use() -> None:
        await memory.append_to_session("s", [user("1")])
        await memory.cleanup()

    asyncio.run(use())
    assert (in_a_folder / "chat.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "chat.db",
        "/var/lib/chat.db",
        "memory",
        "sqlite:chat.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://chat.db",
        "sqlite://u:secret@host/chat.db",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///chat.db",
        "mysql://u:secret@host/db",
        "http://u:secret@host",
        "redis://:secret@host:port/0",
        "redis://:secret@host/name",
        "redis+srv://:secret@host/0",
        None,
        7,
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    """The error names what is possible, and shows no password."""
    for name in (open_memory, shared):
        with pytest.raises(InvalidMemoryUrl) as raised:
            name(url)
        assert "sqlite:///" in str(raised.value) or "redis://" in str(raised.value)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("sqlite:///chat.db?timeout=1", {}),
        ("sqlite:///chat.db", {"journal": "WAL"}),
        ("sqlite:///chat.db?lease=1", {"lease": 2}),
        ("sqlite:///chat.db?lease=1&lease=2", {}),
        ("sqlite:///chat.db?synchronous=OFF", {}),
        ("sqlite:///chat.db?lease=-1", {}),
        (":memory:", {"lease": 1}),
    ],
)
def test_an_option_that_is_wrong_is_refused(url: str, options: dict[str, object]) -> None:
    """Unknown, given twice, or of a wrong value: InvalidOption, before anything is opened."""
    with pytest.raises(InvalidOption):
        open_memory(url, **options)


def test_seconds_are_numbers() -> None:
    """A word in place of seconds is refused with a correct form."""
    with pytest.raises(InvalidMemoryUrl, match="lease=10"):
        open_memory("sqlite:///chat.db?lease=soon")


# --- shared --------------------------------------------------------------------------------


def test_a_file_has_one_memory(in_a_folder: Path) -> None:
    """Named relatively or absolutely: the same object."""
    memory = shared("sqlite:///chat.db")
    assert shared("sqlite:///chat.db") is memory
    assert shared("sqlite:///./chat.db") is memory
    assert shared(f"sqlite:///{in_a_folder}/chat.db") is memory
    assert shared("sqlite:///other.db") is not memory
    assert shared("sqlite:///chat.db?lease=10") is not memory
    assert shared(":memory:") is shared(":memory:")
    assert open_memory("sqlite:///chat.db") is not memory


def test_a_path_is_made_absolute_at_once(in_a_folder: Path) -> None:
    """Going to another folder later changes nothing."""
    memory = shared("sqlite:///chat.db")
    (in_a_folder / "elsewhere").mkdir()
    os.chdir(in_a_folder / "elsewhere")
    assert isinstance(memory, SQLiteSessionMemory)
    assert memory.path == str(in_a_folder / "chat.db")
    assert shared("sqlite:///chat.db") is not memory


@pytest.mark.parametrize("url", [":memory:", "sqlite:///chat.db"])
async def test_a_memory_that_was_cleaned_up_is_replaced(url: str) -> None:
    """After cleanup the next one who names it gets a new one that works."""
    memory = shared(url)
    await memory.append_to_session("s", [user("1")])
    await memory.cleanup()
    replacement = shared(url)
    assert replacement is not memory
    await replacement.append_to_session("s", [user("2")])
    await replacement.cleanup()


def test_many_threads_get_the_same_one() -> None:
    """Whoever names it first, all threads share it."""
    found: list[object] = []
    start = threading.Barrier(8)

    def name_it() -> None:
        start.wait()
        found.append(shared("sqlite:///chat.db"))

    threads = [threading.Thread(target=name_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is what is tested
def test_a_forked_child_can_name_memories() -> None:
    """Even when another thread was naming one at that moment."""
    with stores._lock:
        child = os.fork()
        if child == 0:
            try:
                shared(":memory:")
                os._exit(0)
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- names ---------------------------------------------------------------------------------


def test_stores_are_imported_when_they_are_asked_for() -> None:
    """Importing the package of stores imports no driver; naming a class imports its own."""
    script = (
        "import sys, session_middleware as package\n"
        "print('aiosqlite' in sys.modules)\n"
        "package.InMemorySessionMemory, package.open_memory(':memory:')\n"
        "print('aiosqlite' in sys.modules)\n"
        "package.SQLiteSessionMemory\n"
        "print('aiosqlite' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The package says so as any module does."""
    with pytest.raises(AttributeError, match="NoSuchMemory"):
        stores.NoSuchMemory  # noqa: B018 - looking it up is the test
