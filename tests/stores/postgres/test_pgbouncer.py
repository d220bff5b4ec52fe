"""Behind a real PgBouncer in transaction mode: by marker; it must be installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from session_middleware import PostgresSessionMemory, session_scope
from session_middleware.conformance import MemoryConformance
from session_middleware.conformance.samples import assistant, user
from session_middleware.memory import SessionMemory
from tests.support.conditions import until
from tests.support.ports import free_port

pytestmark = pytest.mark.interop

_SETTINGS = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
logfile = {folder}/log
pidfile = {folder}/pid
"""


@pytest.fixture(scope="module")
def bouncer_port(
    postgres_server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a PgBouncer with three connections to the server, for all its clients."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not Path(program).exists():
        pytest.fail("pgbouncer is not installed: apt-get install pgbouncer, or PATH lacks it")
    server = urlsplit(postgres_server_url)
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    own_port = free_port()
    user = "nobody" if os.geteuid() == 0 else None
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        _SETTINGS.format(host=server.hostname, port=server.port, own_port=own_port, folder=folder)
    )
    if user is not None:
        shutil.chown(folder, user)
    process = subprocess.Popen(
        [program, "-q", str(settings)],
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    async def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", own_port)
        except OSError:
            return False
        writer.close()
        return True

    asyncio.run(asyncio.wait_for(until(answers), 60))
    yield own_port
    process.kill()
    process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def bouncer_url(bouncer_port: int, postgres_url: str) -> str:
    """The URL of the database, through it."""
    return f"postgresql://postgres@127.0.0.1:{bouncer_port}{urlsplit(postgres_url).path}"


class TestBehindPgBouncer(MemoryConformance):
    @pytest.fixture(autouse=True)
    def through_it(self, bouncer_url: str, postgres_url: str) -> None:
        self.url, self.direct = bouncer_url, postgres_url

    def make_memory(self) -> SessionMemory:
        return PostgresSessionMemory(self.url, pgbouncer=True, lease=3)

    def make_peer(self, memory: Any) -> SessionMemory:
        return PostgresSessionMemory(f"{self.url}?pgbouncer=true", lease=3)

    async def expire(self, memory: Any, session_id: str) -> None:
        connection: Any = await asyncpg.connect(self.direct)
        await connection.execute(
            "UPDATE session_middleware_session SET lease_until = 'epoch' WHERE session_id = $1",
            session_id,
        )
        await connection.close()


async def test_many_clients_share_three_connections(
    bouncer_url: str, make_memory: Callable[..., Any]
) -> None:
    """More memories and sessions than connections: no statement reaches another's connection."""
    memories = [make_memory(bouncer_url, pgbouncer=True, max_size=5) for _ in range(6)]

    async def converse(number: int) -> None:
        memory = memories[number % len(memories)]
        for turn in range(5):
            async with session_scope(f"s{number}", memory=memory):
                said = [user(f"{number} {turn}"), assistant(f"{number} {turn}")]
                await memory.append_to_session(f"s{number}", said)

    await asyncio.gather(*(converse(number) for number in range(40)))
    for number in range(40):
        expected = [make(f"{number} {turn}") for turn in range(5) for make in (user, assistant)]
        assert await memories[0].load_session(f"s{number}") == expected
