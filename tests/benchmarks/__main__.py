"""``python -m tests.benchmarks``: measure, print the table, and write the documentation's.

python -m tests.benchmarks                    everything: about ten minutes
python -m tests.benchmarks --quick            fewer rounds, shorter sessions
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
from pathlib import Path
from typing import Any

from agents import set_trace_processors, set_tracing_disabled

from . import page, runs, scale, throughput
from .measuring import Row

MEASUREMENTS: dict[str, Callable[[Path, bool], Coroutine[Any, Any, list[Row]]]] = {
    "runs": throughput.runs_at_once,
    "load-append": throughput.loads_and_appends,
    "load-1000": throughput.load_of_1000,
    "gain": runs.gains,
    "gain-recording": runs.gains_recording,
    "window": runs.window_on_20000,
    "append-long": scale.append_to_a_million,
    "many": scale.many_sessions,
    "syncs": scale.syncs_of_a_run,
    "import": scale.importing,
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
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            measured = asyncio.run(MEASUREMENTS[name](Path(folder), options.quick))
        print(page.table(measured).split("\n", 2)[2], flush=True)
        rows += measured
    print(f"\n{page.machine()}\n\n{page.table(rows)}")
    if options.write_docs:
        page.write_docs(rows)
    elif options.chart:
        page.write_chart(rows)


if __name__ == "__main__":
    main()
