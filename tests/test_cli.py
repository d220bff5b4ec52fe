"""The command line, as a person or a script meets it: a process, its output, its exit code."""

from __future__ import annotations

import os
import pty
import re
import select
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from loopback import Loopback

COMMAND = [sys.executable, "-W", "error", "-m", "session_middleware.cli"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in a pipe."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_demo_shows_what_memory_does(tmp_path: Path) -> None:
    """The demo remembers, keeps sessions apart, survives its process, and shows trace and rows."""
    done = run("demo", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    assert "Model: local" in shown
    first, again = shown.split("opened by a new process")
    again, rows = again.split("SELECT * FROM sessions")
    for part in (first, again):  # each name comes from an earlier turn of the same session
        alice, bob = part.index("Your name is Alice."), part.index("Your name is Bob.")
        assert alice < bob
    assert "You told me: Hi, I'm Alice." in first
    assert "Hi, I'm" not in again
    assert len(re.findall(r"group_id=alice$", shown, re.MULTILINE)) == 4
    assert len(re.findall(r"group_id=bob$", shown, re.MULTILINE)) == 3
    assert "alice: 8 items" in rows
    assert "bob: 6 items" in rows
    assert "\x1b" not in shown
    assert list(tmp_path.iterdir()) == []  # the temporary file is gone


def test_demo_keeps_the_file_it_is_given(tmp_path: Path) -> None:
    """--db names the file; the conversations stay in it, and --continue asks it again."""
    db = tmp_path / "kept.db"
    assert run("demo", "--db", str(db)).returncode == 0
    connection = sqlite3.connect(db)
    rows = dict(connection.execute("SELECT session_id, conversation_history FROM sessions"))
    connection.close()
    assert set(rows) == {"alice", "bob"}
    assert "Alice" not in rows["bob"]
    more = run("demo", "--db", str(db), "--continue")
    assert (more.returncode, more.stderr) == (0, "")
    assert "Your name is Alice." in more.stdout


def test_demo_talks_to_a_provider(provider: Loopback) -> None:
    """With OPENAI_API_KEY and OPENAI_BASE_URL the turns go over HTTP, each with its history."""
    done = run("demo", OPENAI_API_KEY="test", OPENAI_BASE_URL=provider.base_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Model: the provider's, at {provider.base_url}" in done.stdout
    assert "Your name is Alice." in done.stdout
    assert provider.refused == []
    assert [len(body["input"]) for body in provider.bodies("/responses")] == [1, 3, 1, 3, 5, 7, 5]


def test_no_credential_is_shown(provider: Loopback) -> None:
    """Credentials within OPENAI_BASE_URL are not printed."""
    url = provider.base_url.replace("http://", "http://user:secret@")
    done = run("demo", OPENAI_API_KEY="sk-hidden", OPENAI_BASE_URL=url)
    assert done.returncode == 0
    assert "secret" not in done.stdout + done.stderr
    assert "sk-hidden" not in done.stdout + done.stderr


def test_unreachable_provider_is_one_line() -> None:
    """A provider that does not answer ends the demo with one line and exit code 1."""
    done = run("demo", OPENAI_API_KEY="test", OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("session-middleware: APIConnectionError: ")


def test_not_a_database_is_one_line(tmp_path: Path) -> None:
    """A file that is no database is named in one line and left as it is."""
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but longer than a header of one hundred bytes. " * 20)
    before = text.read_bytes()
    done = run("demo", "--db", str(text))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "NotADatabase" in done.stderr
    assert text.read_bytes() == before


@pytest.mark.parametrize("db", [(), ("--db", "absent.db")])
def test_continue_needs_a_file(db: tuple[str, ...]) -> None:
    """--continue without the file of an earlier demo says what is missing."""
    done = run("demo", "--continue", *db)
    assert done.returncode == 2
    assert "--continue needs --db" in done.stderr


def test_version() -> None:
    """--version prints the installed version."""
    assert run("--version").stdout == f"session-middleware {version('session-middleware')}\n"


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    """Piped into a reader that stops early, the demo writes no traceback."""
    process = subprocess.Popen(
        [*COMMAND, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 0
    assert "Traceback" not in said


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_only_on_a_terminal(no_color: str, coloured: bool) -> None:
    """A terminal gets colours unless NO_COLOR is set."""
    master, slave = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color}
    process = subprocess.Popen(
        [*COMMAND, "demo"], stdout=slave, stderr=slave, stdin=slave, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        select.select([master], [], [])
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the process has closed its end
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    assert process.wait() == 0
    assert (b"\x1b[" in shown) is coloured
    assert b"Your name is Alice." in shown
