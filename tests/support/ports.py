"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket

# Below those from which systems take the ports of outgoing connections: between the choice and the
# start of a server, and while it is started again, no connection of another test gets its port.
_PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    while True:
        port = random.SystemRandom().choice(_PORTS)  # no test's seed counts
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
