"""The demo, and the program as it is installed: processes that import everything themselves."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from session_middleware.testing.provider import Provider
from tests.cli.conftest import Shell
from tests.cli.test_bad_input import on_terminal

REMEMBER = ("demo", "--only", "remember")


def test_the_installed_program(tmp_path: Path) -> None:
    """The script and ``python -m`` are the command line, and warn of nothing."""
    for command in (
        [str(Path(sys.executable).with_name("session-middleware"))],
        [sys.executable, "-W", "error", "-m", "session_middleware.cli"],
    ):
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"session-middleware {version('session-middleware')}\n"


def test_a_shell_completes(shell: Shell, tmp_path: Path) -> None:
    """Click's own completion: names of commands, of options, and ids of the memory."""
    lines = (
        '{"format": "session_middleware", "version": 1}\n'
        '{"session": "alice", "created_at": "2026-01-01T00:00:00", "updated_at": '
        '"2026-01-01T00:00:00", "title": null, "metadata": {}, "fence": 0}\n'
    )
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    lines += f'{{"end": 0, "sha256": "{empty}"}}\n{{"sessions": 1}}\n'
    shell.good("import", "-", stdin=lines)

    def completed(words: str, run: Callable[..., Any] = shell) -> list[str]:
        count = str(len(words.split(" ")) - 1)
        asked = {"COMP_WORDS": words, "COMP_CWORD": count}
        done = run(_SESSION_MIDDLEWARE_COMPLETE="bash_complete", **asked)
        return [line.partition(",")[2] for line in done.stdout.split()]

    def installed(**asked: str) -> Any:
        return subprocess.run(
            [str(Path(sys.executable).with_name("session-middleware"))],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **asked},
            check=False,
        )

    assert completed("session-middleware show al", installed) == ["alice"]
    assert completed("session-middleware ex") == ["export"]
    assert completed("session-middleware show al") == ["alice"]
    assert completed("session-middleware show --memory absent.db al") == []
    assert not (tmp_path / "absent.db").exists()


# --- the conversation ------------------------------------------------------------------------


def test_demo_shows_what_memory_does(shell: Shell, tmp_path: Path) -> None:
    """The demo remembers, keeps sessions apart, survives its process, and shows trace and rows."""
    shown = shell.good(*REMEMBER, TMPDIR=str(tmp_path)).stdout
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


def test_demo_keeps_the_file_it_is_given(shell: Shell, tmp_path: Path) -> None:
    """--db names the file; the conversations stay in it, and --continue asks it again."""
    shell.good(*REMEMBER, "--db", "kept.db")
    connection = sqlite3.connect(tmp_path / "kept.db")
    rows = dict(connection.execute("SELECT session_id, conversation_history FROM sessions"))
    connection.close()
    assert set(rows) == {"alice", "bob"}
    assert "Alice" not in rows["bob"]
    shown = shell.good("demo", "--db", "kept.db", "--continue").stdout
    assert "Your name is Alice." in shown
    assert "Hi, I'm" not in shown


def test_demo_talks_to_a_provider(shell: Shell, provider: Provider) -> None:
    """With OPENAI_API_KEY and OPENAI_BASE_URL the turns go over HTTP, each with its history.

    What is printed names the address, and neither the key nor credentials within the address.
    """
    url = provider.base_url.replace("http://", "http://user:secret@")
    shown = shell.good(*REMEMBER, OPENAI_API_KEY="sk-hidden", OPENAI_BASE_URL=url).stdout
    assert provider.base_url.removeprefix("http://") in shown
    assert "Your name is Alice." in shown
    assert provider.refused == []
    assert [len(body["input"]) for body in provider.bodies("/responses")] == [1, 3, 1, 3, 5, 7, 5]
    assert "secret" not in shown
    assert "sk-hidden" not in shown


def test_a_dead_provider(shell: Shell, provider: Provider) -> None:
    """A provider that does not answer, or refuses, is told by its address and what to set."""
    told = shell.bad(1, *REMEMBER, OPENAI_API_KEY="t", OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert "http://127.0.0.1:9/v1 does not answer" in told
    assert "OPENAI_BASE_URL" in told
    assert "OPENAI_API_KEY" in told
    provider.script(401)
    told = shell.bad(1, *REMEMBER, OPENAI_API_KEY="t", OPENAI_BASE_URL=provider.base_url)
    assert f"{provider.base_url} answered 401" in told


def test_not_a_database_is_one_line(shell: Shell, tmp_path: Path) -> None:
    """A file that is no database is named in one line and left as it is."""
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but longer than a header of one hundred bytes. " * 20)
    before = text.read_bytes()
    told = shell.bad(1, *REMEMBER, "--db", "notes.txt")
    assert told.startswith("session-middleware: NotADatabase: ")
    assert "notes.txt" in told
    assert text.read_bytes() == before


@pytest.mark.parametrize("db", [(), ("--db", "absent.db")])
def test_continue_needs_a_file(shell: Shell, db: tuple[str, ...]) -> None:
    """--continue without the file of an earlier demo says what is missing."""
    assert "--continue needs --db" in shell.bad(2, "demo", "--continue", *db)


def test_a_reader_that_leaves_ends_it_quietly(shell: Shell) -> None:
    """Piped into a reader that stops early, the demo writes no traceback."""
    reads, writes = os.pipe()
    os.close(reads)
    done = shell(*REMEMBER, stdout=writes)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_gets_colours(shell: Shell, tmp_path: Path) -> None:
    """Written to a terminal, the demo is coloured."""
    (tmp_path / "empty.db").touch()
    code, shown = on_terminal(shell, "demo", "--db", "empty.db", "--continue")
    assert code == 0
    assert b"\x1b[32m        < You have not told me your name.\x1b[0m" in shown


# --- the scenes ------------------------------------------------------------------------------

SAID = {
    "callers": ("torn apart", "Q C O A Q C O A: the second waits"),
    "twice": ("Q A Q A: ", "Q A: answered 'Nice to meet you, Alice.', then DuplicateTurn"),
    "killed": ("charged 2 times", "charged once"),
    "approval": ("charged 2 times", "gets DuplicateTurn; charged once"),
}
"""What is said of the SDK's session and of ours in each scene; each is run for real."""


def test_the_scenes(shell: Shell, tmp_path: Path) -> None:
    """Each scene is three lines, with what the SDK's own session does; then what to do next."""
    (tmp_path / "temporary").mkdir()
    only = [each for name in SAID for each in ("--only", name)]
    shown = shell.good("demo", *only, TMPDIR=str(tmp_path / "temporary")).stdout
    parts = [part.splitlines() for part in shown.strip().split("\n\n")]
    scenes, (legend, following) = parts[: len(SAID)], parts[len(SAID) :]
    for (sdk, ours), lines in zip(SAID.values(), scenes, strict=True):
        assert len(lines) == 3
        assert lines[1].startswith("  the SDK's session ")
        assert sdk in lines[1]
        assert lines[2].startswith("  ours ")
        assert ours in lines[2]
    assert "C a tool call" in legend[0]
    assert following[0] == "What to do next"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_one_scene_as_json(shell: Shell) -> None:
    """--only plays one, and --json tells it as an object."""
    (told,) = shell.good("demo", "--only", "twice", "--json").json()
    assert told["part"] == "twice"
    assert "DuplicateTurn" in told["ours"]
    assert "DuplicateTurn" not in told["sdk"]
    assert "callers" in shell.bad(2, "demo", "--only", "nope")
