"""What a failing disk and a power failure leave of turns that were acknowledged."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.faults import SURVIVES, Call, Disk, Faults, Outcome, needs_compiler
from tests.support.store_scripts import Scripts

pytestmark = needs_compiler

TALK = """
from session_middleware.stores.sqlite import wal
wal._CHANGES = 60  # so that a few turns see checkpoints

memory = SQLiteSessionMemory(path, operation_timeout=5)
notes = os.open(path + ".notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
failures = []

async def turn(text):
    try:
        lease = (await acquire(text)).lease  # a session for each turn: a failed one stays held
        await memory.append_items(lease, 1, 0, [user(text), user(text + " again")])
        os.write(notes, f"{text} ".encode())
        await memory.end_turn(lease, completed())
    except MemoryUnavailable as error:
        failures.append(error)

async def turns(name):
    for number in range(6):
        await turn(f"{name}-{number}")

async def main():
    await asyncio.gather(*map(turns, "abcd"))
    say(len(failures))

asyncio.run(main())
"""


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "chat.db", tmp_path, log=True)


@pytest.fixture
def scripts(tmp_path: Path, faults: Faults) -> Iterator[Scripts]:
    with Scripts(tmp_path / "chat.db", faults.environment) as made:
        yield made


def faults_of(folder: Path, notes: list[bytes]) -> list[str]:
    """What is wrong with the file in the folder: lost turns, half ones, or corruption."""
    path = folder / "chat.db"
    if not path.exists():
        return list(map(bytes.decode, notes))
    try:
        with closing(sqlite3.connect(path)) as connection:
            (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
            if sound != "ok":
                return [sound]
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
            rows = connection.execute("SELECT item FROM item").fetchall() if tables else []
    except sqlite3.Error as error:
        return [str(error)]
    stored = {json.loads(text)["content"] for (text,) in rows}
    half = [text for text in stored if text.removesuffix(" again") not in stored]
    half += [
        text for text in stored if not text.endswith("again") and text + " again" not in stored
    ]
    return half + [note for note in map(bytes.decode, notes) if note.strip() not in stored]


def after_power_failures(log: Path, folder: Path, every: int = 1) -> tuple[int, list[str]]:
    """How many disks a power failure may leave, and what is wrong with them."""
    looked_at, wrong = 0, []
    for number, disk in enumerate(Disk.at_each_flush(log)):
        for survives in SURVIVES:
            if (number + SURVIVES.index(survives)) % every:
                continue
            disk.write_to(folder, survives, seed=number)
            looked_at += 1
            for fault in faults_of(folder, disk.notes):
                wrong.append(f"{number}, {survives}: {fault}")
    return looked_at, wrong


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A folder for the files that a power failure leaves."""
    folder = tmp_path / "left"
    folder.mkdir()
    return folder


def test_a_power_failure_takes_nothing_that_was_acknowledged(scripts, faults, left):
    """Whenever it comes, and whatever it keeps, loses or tears of what was not flushed."""
    assert scripts.run(TALK) == "0\n"
    assert faults.counts["fsync"] >= 10
    looked_at, wrong = after_power_failures(faults.log, left)
    assert wrong == []
    assert looked_at > 60


def fail_a_flush(
    scripts: Scripts, faults: Faults, left: Path, nth: int, times: int, every: int
) -> int:
    """One story with flushes that fail; returns how many disks were looked at."""
    faults.arm("fsync", nth, times=times)
    failed = int(scripts.run(TALK))
    assert faults.counts["fsync"] >= nth
    looked_at, wrong = after_power_failures(faults.log, left, every)
    assert wrong == []
    assert failed <= 4 * (times + 2)
    return looked_at


@pytest.mark.parametrize(
    ("nth", "times", "every"),
    [(5, 1, 4), (8, 1, 4), (9, 2, 4), (11, 3, 4), (14, 1, 4), (14, 2, 1), (17, 2, 4)],
)
def test_a_flush_that_failed_is_behind_nothing_that_is_acknowledged(
    scripts, faults, left, nth, times, every
):
    """After it, the log is written anew and emptied before anybody is told that a turn is kept."""
    fail_a_flush(scripts, faults, left, nth, times, every=every)


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("nth", range(3, 24))
def test_every_flush_that_fails(scripts, faults, left, nth, times):
    """The same for each flush of the story, and every disk that may be left."""
    fail_a_flush(scripts, faults, left, nth, times, every=1)


def test_a_disk_that_never_flushes_again_acknowledges_nothing(scripts, faults, left):
    """Every turn is unavailable from then on, and those before it are kept."""
    faults.arm("fsync", 9, times=-1)
    assert int(scripts.run(TALK)) >= 4
    _, wrong = after_power_failures(faults.log, left, every=3)
    assert wrong == []


def test_both_connections_are_opened_anew_behind_a_flush_that_failed(scripts, faults):
    """One that stays open keeps the log, with what its pages were before."""
    out = scripts.run(
        """
        memory = SQLiteSessionMemory(path)
        def note(name, connect):
            async def noted():
                say(name)
                return await connect()
            return noted
        async def main():
            await memory.append_to_session("a", [user("1")])
            await memory.load_session("a")
            database = memory._database
            database.writes._connect = note("writes", database.writes._connect)
            database.reads._connect = note("reads", database.reads._connect)
            say("armed")
            input()
            try:
                await memory.append_to_session("a", [user("2")])
            except MemoryUnavailable:
                say("unavailable")
            await memory.append_to_session("a", [user("3")])
            say(len(await memory.load_session("a")))
        asyncio.run(main())
        """,
        meanwhile=lambda: faults.arm("fsync", 1),
    )
    assert sorted(out.split()) == sorted(["armed", "unavailable", "writes", "reads", "2"])


def test_another_reader_keeps_a_torn_log_from_being_trusted(scripts, faults, tmp_path):
    """As long as the log cannot be emptied, nothing is acknowledged; then everything is."""
    out = scripts.run(
        """
        import sqlite3
        memory = SQLiteSessionMemory(path, operation_timeout=0.3)
        async def main():
            await memory.append_to_session("a", [user("1")])
            await memory.load_session("a")
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM item").fetchone()
            say("armed")
            input()
            for _ in range(3):
                try:
                    await memory.append_to_session("a", [user("2")])
                except MemoryUnavailable as error:
                    say(type(error.__cause__).__name__)
            reader.execute("COMMIT")
            await memory.append_to_session("a", [user("3")])
            say(len(await memory.load_session("a")))
            assert not memory._database._log.torn
        asyncio.run(main())
        """,
        meanwhile=lambda: faults.arm("fsync", 1),
    )
    assert out.split() == ["armed", "OperationalError", "NoneType", "NoneType", "2"]


# --- other faults of the disk ----------------------------------------------------------------

SAMPLE = [
    ("write", 1, "fail"),
    ("write", 7, "fail"),
    ("write", 30, "short"),
    ("write", 41, "fail"),
    ("write", 90, "short"),
    ("open", 2, "fail"),
    ("open", 5, "fail"),
    ("truncate", 1, "fail"),
    ("fsync", 10, "kill"),
    ("write", 60, "kill"),
]
ALL = [
    *(("write", nth, outcome) for nth in range(1, 200, 3) for outcome in ("fail", "short", "kill")),
    *(("fsync", nth, outcome) for nth in range(1, 24) for outcome in ("fail", "kill")),
    *(("open", nth, "fail") for nth in range(2, 12)),  # the first opens the story's own notes
    *(("truncate", nth, "fail") for nth in range(1, 4)),
    *(("read", nth, "fail") for nth in range(1, 30)),
    *(("unlink", nth, "fail") for nth in range(1, 4)),
]


def fail_once(tmp_path: Path, call: Call, nth: int, outcome: Outcome) -> None:
    """One story with a call that fails; a fresh process looks at what is there after it."""
    faults = Faults(tmp_path / "chat.db", tmp_path)
    faults.arm(call, nth, outcome=outcome)
    with Scripts(tmp_path / "chat.db", faults.environment) as scripts:
        process = scripts.start(TALK)
        _, err = process.communicate()
    killed = outcome == "kill" and faults.counts[call] >= nth
    assert process.returncode == (-signal.SIGKILL if killed else 0), err
    assert (err == "") or killed
    notes = tmp_path / "chat.db.notes"
    noted = notes.read_bytes().split() if notes.exists() else []
    assert faults_of(tmp_path, noted) == []


@pytest.mark.parametrize(("call", "nth", "outcome"), SAMPLE)
def test_a_fault_of_the_disk_is_survived(tmp_path, call, nth, outcome):
    """The process goes on, or its death takes nothing; a fresh process finds all that was kept."""
    fail_once(tmp_path, call, nth, outcome)


@pytest.mark.long
@pytest.mark.parametrize(("call", "nth", "outcome"), ALL)
def test_every_fault_of_the_disk_is_survived(tmp_path, call, nth, outcome):
    """The same for every call of the story."""
    fail_once(tmp_path, call, nth, outcome)
