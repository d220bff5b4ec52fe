"""Three PostgreSQL servers under Patroni, with etcd: the leader dies, and another takes over.

Patroni is installed into an environment of its own; etcd is Debian's. Replication is synchronous:
a commit is acknowledged when a standby has it, and only that standby is promoted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.interop.environments import python_with
from tests.support.child_processes import children_of, end_with_parent, is_alive
from tests.support.ports import free_port
from tests.support.postgres import USER, programs, warden

_PATIENCE = 180.0  # seconds; a standby is copied from its leader
_TTL = 20  # seconds until the others see that a leader is dead, the least Patroni takes
_AS_ANOTHER = (  # may look into every folder, as the interpreter may be in one that is closed to it
    "setpriv",
    f"--reuid={USER}",
    "--regid=nogroup",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
    "--pdeathsig=KILL",
)


class Member:
    """One server with the Patroni that starts, follows and promotes it."""

    def __init__(self, name: str, folder: Path, etcd_port: int, bin_dir: Path) -> None:
        self.name = name
        self.port = free_port()
        self._rest = free_port()
        self._etcd_port = etcd_port
        self._data = folder / name
        self._log = folder / f"{name}.log"
        self._settings = folder / f"{name}.yml"
        self._settings.write_text(json.dumps(self._configuration(bin_dir)))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    def _configuration(self, bin_dir: Path) -> dict[str, Any]:
        server = {"max_connections": 100, "shared_buffers": "64MB", "unix_socket_directories": ""}
        timing = {"ttl": _TTL, "loop_wait": 1, "retry_timeout": 5}
        user = {"username": "postgres", "password": "none"}  # which nobody asks for
        return {
            "scope": "sessions",
            "name": self.name,
            "restapi": _at(self._rest),
            "etcd3": {"host": f"127.0.0.1:{self._etcd_port}"},
            "bootstrap": {
                "dcs": {
                    **timing,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": server},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "trust"}],
            },
            "postgresql": {
                **_at(self.port),
                "data_dir": str(self._data),
                "pgpass": str(self._settings.with_suffix(".pgpass")),
                "bin_dir": str(bin_dir),
                "authentication": {"superuser": user, "replication": user},
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all all trust"],
            },
        }

    def start(self, python: Path) -> None:
        """Start it, for the first time or where it was killed; ``is_ready`` says when it serves."""
        as_another = _AS_ANOTHER if os.geteuid() == 0 else ()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*as_another, python, "-m", "patroni", self._settings],
                cwd=self._settings.parent,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )

    def kill(self) -> None:
        """SIGKILL Patroni and every process of its server, as the machine's death would."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        with suppress(OSError, ValueError, IndexError):
            postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
            pids = (postmaster, *children_of(postmaster))
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, pids)))

    def cluster(self) -> dict[str, str]:
        """What this member knows: the role of each member that runs as it should."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._rest}/cluster", timeout=5) as got:
                members = json.load(got)["members"]
        except OSError:
            return {}
        return {each["name"]: each["role"] for each in members if each["state"] in _WELL}

    def log(self) -> str:
        return self._log.read_text(errors="replace")


_WELL = ("running", "streaming")


def _at(port: int) -> dict[str, str]:
    return {"listen": f"127.0.0.1:{port}", "connect_address": f"127.0.0.1:{port}"}


class PatroniCluster:
    """Three members and their etcd."""

    def __init__(self) -> None:
        etcd = shutil.which("etcd")
        if etcd is None:
            raise RuntimeError("etcd is not installed: apt-get install etcd-server")
        self._python = python_with("patroni", "patroni[etcd3]", "psycopg[binary]")
        self._folder = Path(tempfile.mkdtemp(prefix="session-middleware-patroni-"))
        self._warden = warden(self._folder)
        self._etcd = self._start_etcd(etcd)
        user = USER if os.geteuid() == 0 else None
        bin_dir = programs(self._folder, user) / "bin"
        self.members = [
            Member(name, self._folder, self._etcd_port, bin_dir) for name in ("one", "two", "three")
        ]

    def _start_etcd(self, program: str) -> subprocess.Popen[bytes]:
        self._etcd_port, peers = free_port(), f"http://127.0.0.1:{free_port()}"
        clients = f"http://127.0.0.1:{self._etcd_port}"
        options = {
            "data-dir": str(self._folder / "etcd"),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        with (self._folder / "etcd.log").open("ab") as log:
            return subprocess.Popen(
                [program, *(f"--{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )

    @property
    def url(self) -> str:
        """Names all members: whoever leads is found by the client."""
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        return f"postgresql://postgres@{hosts}/postgres"

    def start(self) -> None:
        for member in self.members:
            member.start(self._python)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until one leads, one follows it synchronously, and the third follows."""

        def is_whole() -> bool:
            known = [member.cluster() for member in self.members]
            roles = ["leader", "replica", "sync_standby"]
            return all(sorted(roles_known.values()) == roles for roles_known in known)

        try:
            wait_until(is_whole)
        except TimeoutError:
            logs = "\n".join(member.log()[-3000:] for member in self.members)
            raise RuntimeError(f"the cluster did not become whole:\n{logs}") from None

    def leader(self) -> Member:
        """The member that leads, where the cluster is whole."""
        roles = self.members[0].cluster()
        return next(member for member in self.members if roles[member.name] == "leader")

    def restart(self, member: Member) -> None:
        """Start one that was killed, and wait until it follows."""
        member.start(self._python)
        self.wait_until_whole()

    def stop(self) -> None:
        for member in self.members:
            member.kill()
        self._etcd.kill()
        self._etcd.wait()
        assert self._warden.stdin is not None
        self._warden.stdin.close()
        self._warden.wait()


@contextmanager
def patroni_cluster() -> Iterator[PatroniCluster]:
    """A cluster that ends with the block."""
    cluster = PatroniCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)
