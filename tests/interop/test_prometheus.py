"""The rules and the dashboard of docs/, on a real Prometheus that scrapes services under faults.

One service for each fault, all at once, as jobs of one server. Needs Debian's package prometheus.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.environments import CHECKOUT, python_with
from tests.support.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

DOCS = CHECKOUT / "docs"
FIRES = {
    "none": set(),
    "lost": {"SessionLost"},
    "died": {"SessionTakenOver"},
    "unknown": {"EffectsUnknown"},
    "slow": {"StorageSlow"},
    "gone": {"StorageGone"},
    "forgotten": {"TurnsForgotten"},
    "waiting": {"SessionsWaitLong"},
    "parked": {"TurnParkedLong"},
}
"""The alerts of each fault."""

MAY_FIRE = {"gone": {"SessionTakenOver"}, "forgotten": {"SessionTakenOver"}}
"""Also these, where the fault came just before the end of a turn: its lease is taken over."""

SOON = 300.0  # seconds within which every alert is to fire; nine services share a small machine
AFTERWARDS = 20.0  # seconds for which nothing else may fire


def shortened(rules: str) -> str:
    """The rules with seconds in the place of minutes, so that a test has the time.

    Storage is slow from 5 s on, as nine services on a small machine are slow without any fault.
    """
    rules = rules.replace("> 0.5\n", "> 5\n")
    return re.sub(r"\b5m\b", "30s", re.sub(r"\b1m\b", "3s", rules))


@contextmanager
def process(*command: str | Path, log: Path) -> Iterator[None]:
    """A program that runs for the length of the block."""
    with log.open("w") as output:
        running = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            running.terminate()
            running.wait(30)


class Prometheus:
    """A running server, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answered: set[str] = set()

    def get(self, path: str, **query: str) -> Any:
        """What its interface says."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30
        ) as response:
            return json.load(response)["data"]

    def firing(self) -> dict[str, set[str]]:
        """The alerts that fire now, by job."""
        found: dict[str, set[str]] = {job: set() for job in FIRES}
        for alert in self.get("alerts")["alerts"]:
            if alert["state"] == "firing":
                found[alert["labels"]["job"]].add(alert["labels"]["alertname"])
        return found

    def is_up(self) -> bool:
        """Whether it answers, and every service has answered it."""
        try:
            targets = self.get("targets")["activeTargets"]
        except OSError:
            return False
        self.answered |= {one["scrapePool"] for one in targets if one["health"] == "up"}
        return self.answered == set(FIRES)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The server with its nine services."""
    python = python_with("prometheus", "opentelemetry-exporter-prometheus")
    service = Path(__file__).with_name("observed_service.py")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "alerts.yml").write_text(shortened((DOCS / "alerts.yml").read_text()))
    jobs = {fault: free_port() for fault in FIRES}
    port = free_port()
    settings = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]}
            for job, at in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML, too
    with ExitStack() as stack:
        services = [f"{fault}={at}" for fault, at in jobs.items()]
        stack.enter_context(
            process(python, service, folder, *services, log=folder / "services.log")
        )
        stack.enter_context(
            process(
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                log=folder / "prometheus.log",
            )
        )
        server = Prometheus(port)
        give_up = time.monotonic() + SOON
        while not server.is_up():
            assert time.monotonic() < give_up, [
                FIRES.keys() - server.answered,
                *(log.read_text()[-1000:] for log in folder.glob("*.log")),
            ]
            time.sleep(0.5)
        yield server


def test_each_alert_fires_for_its_fault_and_for_no_other(prometheus: Prometheus) -> None:
    """Under load alone none fires; under each fault its own do, and stay the only ones."""
    seen: dict[str, set[str]] = {job: set() for job in FIRES}
    give_up = time.monotonic() + SOON
    ends: float | None = None
    while time.monotonic() < (ends or give_up):
        for job, alerts in prometheus.firing().items():
            seen[job] |= alerts
        if ends is None and all(FIRES[job] <= alerts for job, alerts in seen.items()):
            ends = time.monotonic() + AFTERWARDS
        time.sleep(0.5)
    print(json.dumps({job: sorted(alerts) for job, alerts in seen.items()}))
    assert {job: seen[job] - MAY_FIRE.get(job, set()) for job in seen} == FIRES


def test_every_panel_of_the_dashboard_shows_something(prometheus: Prometheus) -> None:
    """Each query of each panel is answered with at least one series."""
    dashboard = json.loads((DOCS / "dashboard.json").read_text())
    queries = {
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    assert len(queries) > 12
    empty = []
    for title, query in sorted(queries):
        asked = query.replace("$__rate_interval", "30s").replace("$backend", ".*")
        if not prometheus.get("query", query=asked.replace("$job", ".*"))["result"]:
            empty.append((title, asked))
    assert empty == []
