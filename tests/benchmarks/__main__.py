"""``python -m tests.benchmarks``: measure, print the table, and write the documentation's.

python -m tests.benchmarks                    everything: about ten minutes
python -m tests.benchmarks --quick            fewer rounds, shorter sessions: two and a half minutes
python -m tests.benchmarks --only runs        some rows; several names with commas
python -m tests.benchmarks --chart            those rows that are drawn, into the chart
python -m tests.benchmarks --write-docs       everything, into docs/benchmarks.md and .svg
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import Callable, Coroutine
from os import getloadavg
from pathlib import Path
from typing import Any

from agents import set_trace_processors, set_tracing_disabled

from . import pace, page, runs, scale, servers, stalls, throughput
from .measuring import Row

MEASUREMENTS: dict[str, Callable[[Path, bool], Coroutine[Any, Any, list[Row]]]] = {
    "pace": pace.at_a_models_pace,
    "several": pace.several_at_a_models_pace,
    "alone": pace.alone,
    "runs": throughput.runs_at_once,
    "processes": throughput.runs_of_processes,
    "load-append": throughput.loads_and_appends,
    "load-1000": throughput.load_of_1000,
    "recording": runs.recording,
    "journal": runs.journal,
    "stalls": stalls.stalls,
    "window": runs.window_on_20000,
    "append-long": scale.append_to_a_million,
    "many": scale.many_sessions,
    "syncs": scale.syncs_of_a_run,
    "import": scale.importing,
    "postgres": servers.beside_sqlalchemy_session,
    "redis": servers.beside_redis_session,
}
DRAWN = ("runs", "load-append", "load-1000")


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter sessions")
    parser.add_argument("--only", metavar="NAMES", help=", ".join(MEASUREMENTS))
    parser.add_argument("--chart", action="store_true", help="write docs/benchmarks.svg")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md too")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(MEASUREMENTS)
    if options.chart and not options.only and not options.write_docs:
        names = list(DRAWN)
    if unknown := sorted(set(names) - set(MEASUREMENTS)):
        parser.error(f"there is no {', '.join(unknown)}: choose from {', '.join(MEASUREMENTS)}")
    set_trace_processors([])
    set_tracing_disabled(True)
    logging.getLogger("session_middleware").setLevel(logging.WARNING)
    rows: list[Row] = []
    load_before = getloadavg()[0]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            measured = asyncio.run(MEASUREMENTS[name](Path(folder), options.quick))
        print(page.table(measured).split("\n", 2)[2], flush=True)
        rows += measured
    machine = page.machine(load_before, options.quick)
    print(f"\n{machine}\n\n{page.table(rows)}")
    print(f"\nNot reached:\n\n{page.not_reached(rows)}")
    if options.write_docs:
        page.write_docs(rows, machine)
    elif options.chart:
        page.write_chart(rows)


if __name__ == "__main__":
    main()
