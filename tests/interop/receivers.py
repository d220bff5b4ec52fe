"""Tools that receive traces, started on this machine, and what they say of their sessions.

Each runs in an environment of its own and is asked over its own HTTP interface.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.interop.environments import python_with
from tests.support.ports import free_port

STARTS_WITHIN = 300.0  # seconds; the first start of a new installation takes its time


@dataclass(frozen=True)
class SessionSeen:
    """A session as a tool has it.

    Attributes:
        traces: how many it groups.
        tokens: how many it adds up, over all traces.
        first_input, last_output: what it shows beside the session; MLflow shows it by trace.
    """

    traces: int
    tokens: int
    first_input: str | None = None
    last_output: str | None = None


@dataclass
class Receiver:
    """A running tool.

    Attributes:
        url: of its page and its interface.
        headers: what an OTLP exporter must send along.
        sessions: what it has now, by session id.
        kinds: the kind that it shows for each of our spans, by the span's name; where it has any.
    """

    url: str
    sessions: Callable[[], dict[str, SessionSeen]]
    headers: str = ""
    kinds: Callable[[], dict[str, set[str]]] = field(default=lambda: {})


def ask(url: str, body: Any = None) -> Any:
    """What an HTTP interface answers, in JSON."""
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@contextmanager
def _server(
    command: list[str | Path],
    folder: Path,
    environment: Mapping[str, str],
    is_up: Callable[[], Any],
) -> Iterator[None]:
    said = folder / "server.log"
    with said.open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        give_up = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                is_up()
                break
            except OSError:  # refused, reset, or an HTTP status that is no success
                if server.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"no answer:\n{said.read_text()[-2000:]}") from None
                time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait(60)


# --- Phoenix ---------------------------------------------------------------------------------

_SESSIONS = """
    query ($id: ID!) { node(id: $id) { ... on Project { sessions(first: 100) { edges { node {
        sessionId numTraces tokenUsage { total } firstInput { value } lastOutput { value }
    } } } } } }
"""


@contextmanager
def phoenix(folder: Path) -> Iterator[Receiver]:
    """Phoenix, with its data in ``folder``."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }

    def sessions() -> dict[str, SessionSeen]:
        project = ask(f"{url}/v1/projects/default")["data"]["id"]
        answer = ask(f"{url}/graphql", {"query": _SESSIONS, "variables": {"id": project}})
        found = {}
        for edge in answer["data"]["node"]["sessions"]["edges"]:
            seen = edge["node"]
            found[seen["sessionId"]] = SessionSeen(
                seen["numTraces"],
                int(seen["tokenUsage"]["total"]),
                (seen["firstInput"] or {}).get("value"),
                (seen["lastOutput"] or {}).get("value"),
            )
        return found

    def kinds() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for span in ask(f"{url}/v1/projects/default/spans?limit=1000")["data"]:
            found.setdefault(span["name"], set()).add(span["span_kind"])
        return found

    python = python_with("phoenix", "arize-phoenix")
    command: list[str | Path] = [python, "-m", "phoenix.server.main", "serve"]
    with _server(command, folder, environment, lambda: ask(f"{url}/v1/projects")):
        yield Receiver(url, sessions, kinds=kinds)


# --- MLflow ----------------------------------------------------------------------------------


@contextmanager
def mlflow(folder: Path) -> Iterator[Receiver]:
    """MLflow, with its data in ``folder``."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def sessions() -> dict[str, SessionSeen]:
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
        asked = {"locations": [place], "max_results": 100}
        found: dict[str, SessionSeen] = {}
        for trace in ask(f"{url}/ajax-api/3.0/mlflow/traces/search", asked).get("traces", ()):
            metadata = trace.get("trace_metadata", {})
            session = metadata.get("mlflow.trace.session")
            if session is None:
                continue
            usage = json.loads(metadata.get("mlflow.trace.tokenUsage", "{}"))
            seen = found.get(session, SessionSeen(0, 0))
            tokens = seen.tokens + int(usage.get("total_tokens", 0))
            found[session] = SessionSeen(seen.traces + 1, tokens)
        return found

    python = python_with("mlflow", "mlflow")
    command: list[str | Path] = [
        *(python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
    ]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with _server(command, folder, environment, lambda: _up(url)):
        yield Receiver(url, sessions, headers="x-mlflow-experiment-id=0")


def _up(url: str) -> None:
    urllib.request.urlopen(f"{url}/health", timeout=10).close()


RECEIVERS = {"phoenix": phoenix, "mlflow": mlflow}
