"""Commands as processes, on every memory that can be managed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import set_tracing_disabled

from session_middleware import open_memory
from tests.support.command_line import CommandLine, command_line
from tests.support.programs import Ended, Program, Programs

MEMORIES = (
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.long),
    pytest.param("redis", marks=pytest.mark.long),
)


@pytest.fixture(scope="session")
def commands(programs: Programs) -> Iterator[CommandLine]:
    """The process that forks commands."""
    with command_line(programs) as made:
        yield made


class Shell:
    """Runs commands in a folder, on a memory.

    Attributes:
        url: of the memory; None: what the command says.
    """

    def __init__(self, commands: CommandLine, folder: Path, url: str | None = None) -> None:
        self.commands = commands
        self.folder = folder
        self.url = url

    @property
    def _environment(self) -> dict[str, str]:
        return {} if self.url is None else {"SESSION_MIDDLEWARE_MEMORY": self.url}

    def __call__(self, *arguments: str, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.commands.run(*arguments, cwd=self.folder, **{**self._environment, **options})

    def good(self, *arguments: str, **options: Any) -> Ended:
        """Run a command that must succeed and say nothing besides."""
        done = self(*arguments, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return done

    def bad(self, code: int, *arguments: str, **options: Any) -> str:
        """Run a command that must fail with this code; return its one line."""
        done = self(*arguments, **options)
        assert done.returncode == code, done
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("session-middleware: ")
        return done.stderr

    def start(self, *arguments: str, descriptors: tuple[int, int, int]) -> Program:
        """Start a command."""
        return self.commands.start(
            *arguments, cwd=self.folder, descriptors=descriptors, **self._environment
        )


@pytest.fixture
def shell(commands: CommandLine, tmp_path: Path) -> Shell:
    """Commands in an empty folder, which name no memory."""
    return Shell(commands, tmp_path)


@pytest.fixture(params=MEMORIES)
def memory_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty memory, of each kind that can be managed."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/chat.db"
    if request.param == "postgres":
        from tests.support.postgres import make_database

        server = request.getfixturevalue("postgres_server_url")
        return asyncio.run(make_database(server))
    from tests.support.valkey import own_prefix

    return f"{request.getfixturevalue('redis_url')}?key_prefix={own_prefix()}"


@pytest.fixture
async def memory(memory_url: str) -> AsyncIterator[Any]:
    """That memory, opened by the test as by a service beside the commands."""
    set_tracing_disabled(True)
    made = open_memory(memory_url)
    yield made
    await made.cleanup()


@pytest.fixture
def managed(commands: CommandLine, tmp_path: Path, memory_url: str) -> Shell:
    """Commands on that memory."""
    return Shell(commands, tmp_path, memory_url)
