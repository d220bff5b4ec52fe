"""What a turn costs while somebody looks: 64 sessions at once, with the page open and without.

    python -m tests.benchmarks.inspecting
    python -m tests.benchmarks.inspecting --pairs 12 --seconds 4

Three processes: a service, the page as ``session-middleware inspect`` serves it, and somebody who
looks, who does what the script of the page does: follows the events, and fetches what is live
whenever they say so. The page was opened before a round begins. Rounds with and without somebody
who looks take turns, each with sessions of its own; pairs of rounds without stand beside them and
tell how far two rounds differ by themselves. What is compared are the medians of two rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SESSIONS = 64
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.inspecting")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of rounds of each kind")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        asyncio.run({"service": _serve, "looker": _look}[options.role](options.at))
        return
    with tempfile.TemporaryDirectory() as folder:
        _report(_measure(Path(folder) / "chat.db", options.pairs, options.seconds))


# --- the one who measures ----------------------------------------------------------------------


def _measure(path: Path, pairs: int, seconds: float) -> list[dict[str, Any]]:
    with _process("service", str(path)) as service:
        _asked(service, {"seconds": 0.5})  # what a first round makes is made
        with _page(path) as (page, address), _process("looker", address) as looker:
            rounds = []
            for number in range(2 * pairs):
                looked_at = number % 2 == 0
                order = (True, False) if number % 4 < 2 else (False, True)
                pair = {}
                for first in order:
                    looks = looked_at and first
                    _asked(looker, {"look": looks})
                    before = _processor(page.pid), _processor(looker.pid), time.monotonic()
                    pair[first] = _asked(service, {"seconds": seconds})
                    lasted = time.monotonic() - before[2]
                    fetched = _asked(looker, {"look": False})["fetched"]
                    if looks:
                        pair["page"] = (_processor(page.pid) - before[0]) / lasted
                        pair["looker"] = (_processor(looker.pid) - before[1]) / lasted
                        pair["fetched"] = fetched / lasted
                rounds.append({"looked_at": looked_at, **pair})
            return rounds


def _report(rounds: Sequence[dict[str, Any]]) -> None:
    for looked_at, name in ((True, "while the page is open"), (False, "without, twice over")):
        pairs = [each for each in rounds if each["looked_at"] is looked_at]
        for figure in ("median", "p95", "turns"):
            ratios = sorted(each[True][figure] / each[False][figure] for each in pairs)
            print(
                f"{name}: {figure} {statistics.median(ratios):.3f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}; {len(ratios)} pairs)"
            )
    looked = [each for each in rounds if each["looked_at"]]
    told = {
        name: statistics.median(each[name] for each in looked)
        for name in ("page", "looker", "fetched")
    }
    alone = [each[False] for each in rounds]
    print(
        f"processor time of the page {told['page']:.1%} of the time, of who looks "
        f"{told['looker']:.1%}; what is live was fetched {told['fetched']:.2f} times a second; "
        f"{statistics.median(each['turns'] for each in alone):.0f} turns in a round of {SESSIONS} "
        f"sessions, median {1e3 * statistics.median(each['median'] for each in alone):.1f} ms"
    )


def _processor(number: int) -> float:
    """Seconds of processor time that the process has taken."""
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- processes ---------------------------------------------------------------------------------


@contextmanager
def _process(role: str, at: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.benchmarks.inspecting", "--role", role, "--at", at]
    with _started(command) as process:
        yield process


@contextmanager
def _page(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "session_middleware.cli", "inspect", "--json"]
    with _started([*command, "--memory", str(path)]) as process:
        yield process, _said(process)["address"]


@contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _asked(process: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return _said(process)


def _said(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


async def _order() -> dict[str, Any] | None:
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else None


def _tell(**told: Any) -> None:
    print(json.dumps(told), flush=True)


# --- the service -------------------------------------------------------------------------------


async def _serve(path: str) -> None:
    """Rounds of turns in 64 sessions at once, for so many seconds each."""
    from agents import Runner, set_tracing_disabled

    from session_middleware import SQLiteSessionMemory, last_turns, with_session_memory
    from tests.benchmarks.subjects import QUESTION, null_agent

    set_tracing_disabled(True)
    memory = SQLiteSessionMemory(path)
    agent = null_agent()
    run = with_session_memory(Runner.run, memory=memory, window=last_turns(3))
    number = 0
    while (order := await _order()) is not None:
        number += 1
        lasted: list[float] = []
        ends = time.perf_counter() + order["seconds"]

        async def converse(session_id: str, lasted: list[float], ends: float) -> None:
            while (began := time.perf_counter()) < ends:
                await run(agent, QUESTION, session_id=session_id)
                lasted.append(time.perf_counter() - began)

        names = (f"{number}-{each}" for each in range(SESSIONS))
        await asyncio.gather(*(converse(name, lasted, ends) for name in names))
        lasted.sort()
        _tell(
            turns=len(lasted),
            median=statistics.median(lasted),
            p95=lasted[len(lasted) * 95 // 100],
        )
    await memory.cleanup()


# --- somebody who looks ------------------------------------------------------------------------


async def _look(address: str) -> None:
    """Open the page when told to, and close it; tell how often what is live was fetched."""
    import httpx

    async with httpx.AsyncClient(follow_redirects=True, timeout=None) as client:
        base = str((await client.get(address)).url)
        fetched = 0
        opened = asyncio.Event()

        async def follow() -> None:
            nonlocal fetched
            await client.get(base)
            async with client.stream("GET", f"{base}events") as events:
                opened.set()
                async for line in events.aiter_lines():
                    if line.startswith("data"):
                        await client.get(base, headers={"x-inspect-fragment": "1"})
                        fetched += 1

        following: asyncio.Task[None] | None = None
        while (order := await _order()) is not None:
            if following is not None:
                following.cancel()
                await asyncio.wait([following])
                following = None
            told, fetched = fetched, 0
            if order["look"]:
                opened.clear()
                following = asyncio.create_task(follow())
                await opened.wait()
            _tell(fetched=told)


if __name__ == "__main__":
    main()
