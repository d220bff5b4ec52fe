"""The command line, as a person or a script meets it: a process, its output, its exit code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from loopback import Loopback

from session_middleware.cli import Page, main

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


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The command silences the SDK's logger in its process, which here is the tests' own."""
    logger = logging.getLogger("openai.agents")
    before = logger.level
    yield
    logger.setLevel(before)


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


def test_demo_keeps_the_file_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--db names the file; the conversations stay in it, and --continue asks it again."""
    db = str(tmp_path / "kept.db")
    assert main(["demo", "--db", db]) == 0
    connection = sqlite3.connect(db)
    rows = dict(connection.execute("SELECT session_id, conversation_history FROM sessions"))
    connection.close()
    assert set(rows) == {"alice", "bob"}
    assert "Alice" not in rows["bob"]
    capsys.readouterr()
    assert main(["demo", "--db", db, "--continue"]) == 0
    shown, said = capsys.readouterr()
    assert "Your name is Alice." in shown
    assert "Hi, I'm" not in shown
    assert said == ""


def test_demo_talks_to_a_provider(provider: Loopback) -> None:
    """With OPENAI_API_KEY and OPENAI_BASE_URL the turns go over HTTP, each with its history.

    What is printed names the address, and neither the key nor credentials within the address.
    """
    url = provider.base_url.replace("http://", "http://user:secret@")
    done = run("demo", OPENAI_API_KEY="sk-hidden", OPENAI_BASE_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Model: the provider's, at {provider.base_url}" in done.stdout
    assert "Your name is Alice." in done.stdout
    assert provider.refused == []
    assert [len(body["input"]) for body in provider.bodies("/responses")] == [1, 3, 1, 3, 5, 7, 5]
    assert "secret" not in done.stdout
    assert "sk-hidden" not in done.stdout


def test_unreachable_provider_is_one_line() -> None:
    """A provider that does not answer ends the demo with one line and exit code 1."""
    done = run("demo", OPENAI_API_KEY="test", OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("session-middleware: APIConnectionError: ")


def test_not_a_database_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no database is named in one line and left as it is."""
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but longer than a header of one hundred bytes. " * 20)
    before = text.read_bytes()
    assert main(["demo", "--db", str(text)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("session-middleware: NotADatabase: ")
    assert "notes.txt" in said
    assert text.read_bytes() == before


@pytest.mark.parametrize("db", [(), ("--db", "absent.db")])
def test_continue_needs_a_file(db: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """--continue without the file of an earlier demo says what is missing."""
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--continue", *db])
    assert "--continue needs --db" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the installed version."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"session-middleware {version('session-middleware')}\n"


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


def test_a_terminal_gets_colours(tmp_path: Path) -> None:
    """Written to a terminal, the demo is coloured."""
    (tmp_path / "empty.db").touch()
    terminal, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "demo", "--db", "empty.db", "--continue"],
        stdout=slave,
        stderr=slave,
        stdin=slave,
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # raised when the process has closed its end
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert (process.wait(), shown.decode()) == (0, shown.decode())
    assert b"\x1b[32m        < You have not told me your name.\x1b[0m" in shown


@pytest.mark.parametrize(
    ("terminal", "no_color", "written"),
    [(True, "", "\x1b[1mhello\x1b[0m\n"), (True, "1", "hello\n"), (False, "", "hello\n")],
)
def test_colour_is_for_terminals_without_no_color(
    terminal: bool, no_color: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe gets plain text, and so does a terminal with NO_COLOR set to anything."""
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    Page(stream).write("hello", "1")
    assert stream.getvalue() == written
