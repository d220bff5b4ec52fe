"""A network that is torn and healed: a namespace on a bridge of this machine (Linux, root).

Packets of the namespace are dropped without a word while it is cut off: no connection is refused
or reset, and both ends believe in theirs, as behind a switch that died.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


class PartitionedNetwork:
    """A bridge, which has an address of this machine, and a namespace plugged into it.

    Attributes:
        near: this machine's address, for servers; ``far`` is the namespace's.
        network: both, as a prefix, of the addresses that are set aside for such tests.
    """

    def __init__(self) -> None:
        self._name = f"smw{secrets.token_hex(3)}"
        self._port = f"{self._name}p"
        third = secrets.randbelow(254) + 1
        self.near, self.far = f"198.18.{third}.1", f"198.18.{third}.2"
        self.network = f"198.18.{third}.0/24"

    def make(self) -> None:
        """Make it; a machine that does not let us fails the test."""
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._name, "type", "bridge")
            _ip("addr", "add", f"{self.near}/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
            peer = ("peer", "name", "eth0", "netns", self._name)
            _ip("link", "add", self._port, "type", "veth", *peer)
            _ip("link", "set", self._port, "master", self._name, "up")
            _ip("-n", self._name, "addr", "add", f"{self.far}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", self._name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", "")
            raise RuntimeError(
                "a network namespace cannot be made, which needs Linux, root and iproute2 "
                f"(apt-get install iproute2): {error} {told}"
            ) from error

    def remove(self) -> None:
        for link in (self._port, self._name):
            with suppress(OSError, subprocess.CalledProcessError):
                _ip("link", "delete", link)
        with suppress(OSError, subprocess.CalledProcessError):
            _ip("netns", "delete", self._name)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command, to be run in the namespace."""
        return ["ip", "netns", "exec", self._name, *command]

    def cut(self) -> None:
        """Drop every packet, in both directions."""
        _run("bridge", "link", "set", "dev", self._port, "state", "0")

    def heal(self) -> None:
        _run("bridge", "link", "set", "dev", self._port, "state", "3")

    def bytes_under_way(self) -> int:
        """What the namespace has sent, of which it does not know that it arrived."""
        listed = _run(*self.inside(["ss", "-tnH"])).splitlines()
        return sum(int(line.split()[2]) for line in listed)


@contextmanager
def partitioned_network() -> Iterator[PartitionedNetwork]:
    """A network that goes with the block."""
    network = PartitionedNetwork()
    try:
        network.make()
        yield network
    finally:
        network.remove()


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
