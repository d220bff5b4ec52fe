"""What goes wrong is one clear line and an exit code; nothing is lost, and no escape gets out."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from agents import Runner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_middleware import SQLiteSessionMemory
from session_middleware.cli import main
from session_middleware.stores.sqlite.schema import VERSION
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.cli.conftest import Shell
from tests.support.conditions import until
from tests.support.sessions import tool

READING = (
    ("list",),
    ("show", "alice"),
    ("tail",),
    ("pending",),
    ("export",),
    ("prune", "--older-than", "0", "--yes"),
    ("delete", "alice", "--yes"),
    ("undo", "alice", "--yes"),
    ("fork", "alice", "b"),
    ("unlock", "alice"),
    ("decide", "alice", "1", "c", "--approve"),
)
EVIL = (
    "\x1b[31m red \x1b]0;title\x07 \x9b31m \r\x08\x7f \u202etxt\u2066 \u2028 [bold]x[/bold] :smile:"
)
ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]")


async def filled(path: Path, sessions: int = 3, size: int = 10) -> None:
    async with SQLiteSessionMemory(path) as memory:
        for number in range(sessions):
            item = {"role": "user", "content": f"No. {number} " + "x" * size}
            await memory.append_to_session(f"s{number}", [item])


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", READING, ids=lambda each: each[0])
def test_no_file(shell: Shell, command: tuple[str, ...]) -> None:
    """A file that is not there is named, and not made; the default as well."""
    told = shell.bad(1, *command, "--memory", "absent.db")
    assert "there is no file" in told
    assert "absent.db" in told
    assert "agent_sessions.db" in shell.bad(1, *command)
    assert list(shell.folder.iterdir()) == []


@pytest.mark.parametrize("command", [("list",), ("import", "x.jsonl")], ids=lambda each: each[0])
async def test_no_database(shell: Shell, command: tuple[str, ...]) -> None:
    """A file that is no database, another program's, a folder or an empty file stays as it is."""
    (shell.folder / "x.jsonl").write_text(
        '{"format": "session_middleware", "version": 1}\n{"sessions": 0}\n'
    )
    text = shell.folder / "notes.txt"
    text.write_text("not a database, but longer than a header of one hundred bytes. " * 20)
    other = shell.folder / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    for file in (text, other):
        before = file.read_bytes()
        assert str(file) in shell.bad(1, *command, "--memory", file.name)
        assert file.read_bytes() == before
    assert "folder" in shell.bad(1, *command, "--memory", str(shell.folder))
    (shell.folder / "empty.db").touch()
    if command[0] == "list":
        assert "empty" in shell.bad(1, "list", "--memory", "empty.db")
        assert (shell.folder / "empty.db").stat().st_size == 0


async def test_other_layouts(shell: Shell) -> None:
    """A newer file and an older one are refused, and not changed."""
    path = shell.folder / "a.db"
    await filled(path)
    for version in (VERSION + 1, VERSION - 1):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE layout SET readable_from = ?", (version,))
            connection.execute(f"PRAGMA user_version = {version}")
            connection.commit()
        before = path.read_bytes()
        told = shell.bad(1, "list", "--memory", "a.db")
        assert ("upgrade session-middleware" if version > VERSION else "migrate'") in told
        assert path.read_bytes() == before


def test_wrong_urls(shell: Shell) -> None:
    """A URL that no memory has, and a server that is not there, show no password."""
    for url in ("mysql://root:secret@host/x", "redis://:secret@127.0.0.1:1/0"):
        told = shell.bad(1, "list", "--memory", url)
        assert "secret" not in told


@pytest.fixture
def for_nobody() -> Iterator[Path]:
    """A folder that a user without rights may only look into."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_no_permission(commands: Any, for_nobody: Path) -> None:
    """A file that may not be read, and a folder that may not be written to."""
    await filled(for_nobody / "a.db")
    shell = Shell(commands, for_nobody)
    for mode in (0o600, 0o644):
        (for_nobody / "a.db").chmod(mode)
        told = shell.bad(1, "list", "--memory", "a.db", user=65534)
        assert "a.db" in told
    shell.good("export", "--memory", "a.db", "-o", "out.jsonl")
    lines = (for_nobody / "out.jsonl").read_bytes()
    told = shell.bad(1, "import", "-", "--memory", "new.db", user=65534, stdin=lines)
    assert "cannot be created" in told
    assert "out.jsonl" in shell.bad(1, "import", "out.jsonl", "--memory", ":memory:", user=65534)


# --- exports ---------------------------------------------------------------------------------


async def test_a_faulty_export(shell: Shell) -> None:
    """Half an export, a faulty line, no text: the line is named, its session is not there."""
    await filled(shell.folder / "a.db")
    lines = shell.good("export", "--memory", "a.db").stdout.splitlines(keepends=True)
    assert len(lines) == 11  # one, three for each session, and the last
    faults = {
        "line 5 ": [*lines[:5]],
        "line 6 ": [*lines[:5], lines[5][:20]],
        "line 4 ": [*lines[:3], '{"end": 1, "sha256": "0"}\n'],
        "line 1 ": ["x"],
        "line 8 ": [*lines[:7]],
        "line 1 of the export cannot be read: it is not there": [],
        "line 2 ": [lines[0], "\udcff\n"],
    }
    for number, (where, text) in enumerate(faults.items()):
        file = shell.folder / f"{number}.jsonl"
        file.write_bytes("".join(text).encode(errors="surrogateescape"))
        told = shell.bad(1, "import", file.name, "--memory", f"{number}.db")
        assert where in told
        if (shell.folder / f"{number}.db").exists():
            left = shell("list", "--json", "--memory", f"{number}.db").json()
            whole = sum('"end"' in line for line in text) if number != 2 else 0
            assert sorted(each["session_id"] for each in left) == ["s0", "s1"][:whole]
    assert "No such file" in shell.bad(1, "import", "absent.jsonl", "--memory", "a.db")


async def test_an_export_that_fails_leaves_nothing(shell: Shell) -> None:
    """A full disk, or an id that is not there: no half file, and the old one stays."""
    await filled(shell.folder / "a.db", size=30_000)
    there = {file.name for file in shell.folder.iterdir()}
    limits = {"RLIMIT_FSIZE": 65_536}
    told = shell.bad(1, "export", "--memory", "a.db", "-o", "out.jsonl", limits=limits)
    assert "File too large" in told
    assert "no session 'nobody'" in shell.bad(
        1, "export", "s0", "nobody", "--memory", "a.db", "-o", "out.jsonl"
    )
    assert {file.name for file in shell.folder.iterdir()} - {"a.db-shm", "a.db-wal"} == there
    old = shell.folder / "old.jsonl"
    old.write_text("old")
    shell.bad(2, "export", "--memory", "a.db", "-o", "old.jsonl")
    shell.bad(1, "export", "--memory", "a.db", "-o", "old.jsonl", "--yes", limits=limits)
    assert old.read_text() == "old"
    shell.good("export", "--memory", "a.db", "-o", "old.jsonl", "--yes")
    assert len(old.read_text().splitlines()) == 11


async def test_a_full_disk(shell: Shell) -> None:
    """Output that cannot be written, and a file that cannot grow, are one line."""
    await filled(shell.folder / "a.db", size=30_000)
    export = shell.good("export", "--memory", "a.db").stdout
    for command in (("export",), ("list",), ("--help",)):
        full = os.open("/dev/full", os.O_WRONLY)
        told = shell.bad(1, *command, stdout=full, SESSION_MIDDLEWARE_MEMORY="a.db")
        os.close(full)
        assert "No space left" in told
    limits = {"RLIMIT_FSIZE": 200_000}
    told = shell.bad(1, "import", "-", "--memory", "b.db", stdin=export, limits=limits)
    assert "MemoryUnavailable" in told
    assert "disk has room" in told
    assert "imported" in shell.good("import", "-", "--memory", "b.db", stdin=export).stdout
    fence = re.compile(r'"fence": \d+')
    again = shell.good("export", "--memory", "b.db").stdout
    assert fence.sub("", again) == fence.sub("", export)


async def test_a_reader_that_leaves(shell: Shell) -> None:
    """``| head``: no word on the standard error, and the code of a broken pipe."""
    await filled(shell.folder / "a.db", sessions=50, size=10_000)
    for command in (("export",), ("export", "s1", "s2"), ("show", "s1"), ("list",)):
        reads, writes = os.pipe()
        os.close(reads)
        done = shell(*command, stdout=writes, SESSION_MIDDLEWARE_MEMORY="a.db")
        os.close(writes)
        assert (done.returncode, done.stderr) == (141, "")


async def test_an_interruption(shell: Shell) -> None:
    """Ctrl-C while an import waits for its input: 130, no word, and what was whole is stored."""
    await filled(shell.folder / "a.db")
    lines = shell.good("export", "--memory", "a.db").stdout.splitlines(keepends=True)
    reads, writes = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        running = shell.commands.start(
            "import",
            "-",
            "--memory",
            "b.db",
            cwd=shell.folder,
            descriptors=(reads, out.fileno(), err.fileno()),
        )
        os.close(reads)
        os.write(writes, "".join(lines[:5]).encode())
        await until((shell.folder / "b.db").exists)
        async with SQLiteSessionMemory(shell.folder / "b.db") as memory:
            await until(lambda: memory.session_exists("s0"))
        running.signal(signal.SIGINT)
        assert running.wait() == 130
        os.close(writes)
        err.seek(0)
        assert err.read() == b""
    assert len(shell.good("list", "--memory", "b.db", "--json").json()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nope",),
        ("list", "--limit", "0"),
        ("list", "--sort", "x"),
        ("list", "--nope"),
        ("undo",),
    ],
    ids=" ".join,
)
def test_usage(shell: Shell, arguments: tuple[str, ...]) -> None:
    """What is no command line is one line that names the help, with code 2."""
    assert "--help'" in shell.bad(2, *arguments)


# --- terminals -------------------------------------------------------------------------------


CTRL_C = b"\x03"


def on_terminal(
    shell: Shell, *arguments: str, answer: bytes = b"", **environment: str
) -> tuple[int, bytes]:
    """Run a command on a terminal; its code, and every byte that it wrote there."""
    terminal, slave = pty.openpty()
    running = shell.commands.start(
        *arguments, cwd=shell.folder, descriptors=(slave, slave, slave), **environment
    )
    os.close(slave)
    written = b""
    while answer and b"[y/N]" not in written:
        written += os.read(terminal, 4096)
    if answer:
        os.write(terminal, answer)
    with suppress(OSError):  # raised when the process has closed its end
        while True:
            # A Ctrl-C that comes just before the process waits for a line waits for the next one.
            while answer == CTRL_C and not select.select([terminal], [], [], 1.0)[0]:
                os.write(terminal, CTRL_C)
            if not (chunk := os.read(terminal, 4096)):
                break
            written += chunk
    os.close(terminal)
    return running.wait(), written


COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


async def evil_memory(folder: Path) -> None:
    def work() -> str:
        return EVIL

    async with SQLiteSessionMemory(folder / "evil.db") as memory:
        agent = scripted_agent(
            call("work", {"a": EVIL}), assistant(EVIL), name=EVIL, tools=[tool("work", work)]
        )
        await Runner.run(agent, EVIL, session=memory.session("\u202eevil [bold]id[/bold]"))
        await memory.append_to_session("alice", [{"role": "user", "content": EVIL}])
        await memory.append_to_session("alice", [{"type": EVIL, "evil": EVIL}])
        await memory.set_title("alice", EVIL.replace("\x1b", "\x1b"))
        await memory.set_metadata("alice", {EVIL: EVIL})


@pytest.mark.parametrize("no_rich", [False, True], ids=["rich", "plain"])
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("list", "--json"),
        ("show", "alice"),
        ("show", "\u202eevil [bold]id[/bold]"),
        ("show", "\u202eevil [bold]id[/bold]", "--json"),
        ("show", "\u202eevil [bold]id[/bold]", "--turn", "1", "--as-seen"),
        ("export",),
        ("show", "no\u202e\x1b[31msession"),
        ("undo", "\u202eevil [bold]id[/bold]", "--yes"),
        ("delete", "\u202eevil [bold]id[/bold]", "--yes"),
    ],
    ids=" ".join,
)
async def test_no_escape_reaches_a_terminal(
    shell: Shell, command: tuple[str, ...], no_rich: bool
) -> None:
    """Whatever a conversation holds, ids and names included: only our own colours get out."""
    await evil_memory(shell.folder)
    environment = {"TERM": "xterm", "COLUMNS": "200"}
    if no_rich:
        environment["TESTS_WITHOUT_RICH"] = "1"
    _, written = on_terminal(shell, *command, "--memory", "evil.db", **environment)
    text = COLOUR.sub(b"", written).decode().replace("\r\n", "\n")
    assert ACTING.findall(text) == []
    assert "\x1b[31m" not in written.decode().replace("\x1b[31mfailed", "")
    if command == ("list",):
        assert "[bold]id[/bold]" in text


async def test_tables_with_rich_and_without(shell: Shell) -> None:
    """A terminal has colour; a pipe and NO_COLOR have none; both have the same words."""
    await filled(shell.folder / "a.db")
    memory = ("--memory", "a.db")
    age = re.compile(r"\S+ \S+ ago")
    plain = age.sub("", shell.good("list", *memory).stdout)
    for extra in ({}, {"TESTS_WITHOUT_RICH": "1"}):
        code, written = on_terminal(shell, "list", *memory, TERM="xterm", COLUMNS="200", **extra)
        assert code == 0
        assert b"\x1b[" in written
        assert age.sub("", COLOUR.sub(b"", written).decode()).split() == plain.split()
        _, grey = on_terminal(
            shell, "list", *memory, TERM="xterm", COLUMNS="200", NO_COLOR="1", **extra
        )
        assert age.sub("", COLOUR.sub(b"", grey).decode()).split() == plain.split()
        assert b"\x1b[3" not in grey


async def test_a_terminal_is_asked(shell: Shell) -> None:
    """What destroys asks on a terminal: no changes nothing, yes goes on."""
    await filled(shell.folder / "a.db")
    memory = ("--memory", "a.db")
    code, written = on_terminal(shell, "delete", "s1", *memory, answer=b"n\n")
    assert code == 1
    assert b"Delete s1 from a.db?" in written
    assert b"nothing was changed" in written
    assert len(shell.good("list", "--json", *memory).json()) == 3
    code, _ = on_terminal(shell, "delete", "s1", *memory, answer=b"y\n")
    assert code == 0
    assert len(shell.good("list", "--json", *memory).json()) == 2
    code, _ = on_terminal(shell, "delete", "s2", *memory, answer=CTRL_C)
    assert code == 130
    assert len(shell.good("list", "--json", *memory).json()) == 2


# --- arguments -------------------------------------------------------------------------------

_WORDS = st.one_of(
    st.sampled_from(
        ["list", "show", "tail", "export", "--limit", "--memory", "--json", "--scope", "--", "-"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(_WORDS, max_size=5))
def test_any_arguments(tmp_path: Path, arguments: list[str]) -> None:
    """Whatever the arguments: a known code, no traceback, no escape, no file."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    assert code in (0, 1, 2)
    assert "Traceback" not in err.getvalue()
    assert err.getvalue().count("\n") == (code != 0)
    assert ACTING.findall(err.getvalue()) == []
    assert list(tmp_path.iterdir()) == []


async def test_new_files_are_private(shell: Shell) -> None:
    """A memory that an import makes, and an export, may be read by their owner only."""
    await filled(shell.folder / "a.db")
    shell.good("export", "--memory", "a.db", "-o", "x.jsonl")
    shell.good("import", "x.jsonl", "--memory", "new.db")
    for name in ("x.jsonl", "new.db"):
        assert stat.S_IMODE((shell.folder / name).stat().st_mode) == 0o600
