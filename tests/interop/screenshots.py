"""Make the pictures of docs/tracing.md: a service's sessions, as tools show them today.

    python -m tests.interop.screenshots

Needs Debian's package chromium. The pictures replace those in docs/.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.interop.environments import CHECKOUT, output_of
from tests.interop.receivers import Receiver, ask, mlflow, phoenix
from tests.interop.test_receivers import SENT, SERVICE, environment


def picture(address: str, name: str, height: int) -> None:
    """Take a picture of a page, once it had time to ask for what it shows."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", f"--window-size=1280,{height}"),
            *("--virtual-time-budget=60000", f"--screenshot={CHECKOUT / 'docs' / name}", address),
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=300)


def send(receiver: Receiver, folder: Path) -> None:
    """Let the service make its turns, and wait until the tool has them."""
    os.environ["OTEL_EXPORTER_OTLP_HEADERS"] = receiver.headers
    for part in ("first", "resume"):
        database = str(folder / "service.db")
        output_of(environment("alone"), SERVICE, "alone", receiver.url, database, part)
    while len(receiver.sessions()) < len(SENT):
        time.sleep(0.5)
    time.sleep(5)


def main() -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory() as folder, phoenix(Path(folder)) as receiver:
        send(receiver, Path(folder))
        project = ask(f"{receiver.url}/v1/projects/default")["data"]["id"]
        picture(f"{receiver.url}/projects/{project}/sessions", "phoenix-sessions.png", 520)
        picture(f"{receiver.url}/projects/{project}/spans", "phoenix-spans.png", 720)
    with tempfile.TemporaryDirectory() as folder, mlflow(Path(folder)) as receiver:
        send(receiver, Path(folder))
        picture(f"{receiver.url}/#/experiments/0/traces", "mlflow-traces.png", 720)


if __name__ == "__main__":
    main()
