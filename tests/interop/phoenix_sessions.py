"""Two sessions of several turns each, sent to a Phoenix server and asked for again.

    python tests/interop/phoenix_sessions.py [--show]

It runs in an environment that has arize-phoenix. The server is started on a free port of
127.0.0.1, with its data in a new folder; ``examples/tracing_phoenix.py`` sends it two sessions;
it is asked for them over HTTP, and stopped. With ``--show`` that waits for Enter, for a look at
the page of the sessions.

Exits with status 1 where Phoenix does not have the sessions as they were.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "tracing_phoenix.py"
SENT = {"user_alice": 3, "user_bob": 2}
"""How many turns of each session the example makes."""

STARTS_WITHIN = 300.0  # seconds; the first start of a new installation takes its time
WRITES_WITHIN = 60.0  # seconds; what was accepted is written in the background


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def phoenix(folder: Path) -> Iterator[str]:
    """A Phoenix server with its data in ``folder``; gives its URL.

    Raises:
        RuntimeError: it ended, or does not answer; with the end of what it said.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    said = folder / "server.log"
    with said.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "phoenix.server.main", "serve"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        give_up = time.monotonic() + STARTS_WITHIN
        while not answers(f"{url}/v1/projects"):
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"Phoenix does not answer:\n{said.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    """Whether the server is there yet."""
    try:
        get(url)
    except OSError:  # refused, reset, or an HTTP status that is no success
        return False
    return True


def get(url: str) -> Any:
    """What the server's HTTP interface says."""
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def sessions(url: str) -> dict[str, int]:
    """The sessions Phoenix has: how many traces, by session id."""
    found = get(f"{url}/v1/projects/default/sessions")["data"]
    return {session["session_id"]: len(session["traces"]) for session in found}


def main() -> int:
    """Send, ask, compare."""
    with tempfile.TemporaryDirectory() as folder, phoenix(Path(folder)) as url:
        environment = {**os.environ, "PHOENIX_COLLECTOR_ENDPOINT": url}
        subprocess.run(
            [sys.executable, EXAMPLE], env=environment, stdout=subprocess.DEVNULL, check=True
        )
        give_up = time.monotonic() + WRITES_WITHIN
        while (found := sessions(url)) != SENT and time.monotonic() < give_up:
            time.sleep(0.5)
        print(json.dumps({"version": version("arize-phoenix"), "sessions": found}), flush=True)
        if "--show" in sys.argv:
            project = get(f"{url}/v1/projects/default")["data"]["id"]
            input(f"{url}/projects/{project}/sessions\nPress Enter to stop the server. ")
    return 0 if found == SENT else 1


if __name__ == "__main__":
    sys.exit(main())
