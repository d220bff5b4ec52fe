"""``python -m tests.benchmarks.scaling``: the figures of docs/scaling.md.

python -m tests.benchmarks.scaling                        a million sessions: about half an hour
python -m tests.benchmarks.scaling --sessions 20000       fewer
python -m tests.benchmarks.scaling --only valkey          one server, or: postgresql, partitions
python -m tests.benchmarks.scaling --seconds 60           a shorter day

For each server: what a turn costs while there are no other sessions; a million sessions, which are
copies of conversations that the memory wrote; what a turn costs then; and a day's traffic,
compressed, beside a model of it. The server, the client and whatever else runs share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from contextlib import AsyncExitStack
from statistics import median

from .costs import AT_ONCE, Pace, on_the_wire, pace
from .subjects import Subject, started
from .traffic import Latencies, alone, draw, live, predicted

_SUBJECTS = ("postgresql", "valkey", "partitions")
_FEW = 10_000
_ROUNDS = 5
_USE = 0.3
"""The day's turns, on average, as a share of those that the machine can make."""


async def measure(subject: Subject, sessions: int, seconds: float) -> None:
    """Measure one server, and print as it goes."""
    print(f"\n## {subject.name}\n\n| of a turn | first of a session | with 20 turns of history |")
    print("|---|---:|---:|")
    first, long = await on_the_wire(subject)
    for what, field in (
        ("round trips", "trips"),
        ("bytes to the server", "sent"),
        ("bytes from the server", "received"),
        ("bytes it adds to the store", "stored"),
    ):
        print(f"| {what} | {getattr(first, field):,.1f} | {getattr(long, field):,.1f} |")
    paces = {}
    for numbers in (range(_FEW), range(_FEW, sessions)):
        before, began = await subject.stored(), time.perf_counter()
        await subject.fill(numbers)
        await asyncio.to_thread(os.sync)  # else what comes next waits for the disk to take it all
        filled = await subject.stored() - before
        print(f"\n{len(numbers):,} sessions in {time.perf_counter() - began:.0f} s: ", end="")
        print(f"{filled / 1e9:.2f} GB, {filled / len(numbers):,.0f} bytes a session")
        paces[numbers.stop] = await pace(subject, numbers.stop)
    tell_pace(paces)
    await the_day(subject, sessions, seconds, paces[sessions])


def tell_pace(paces: dict[int, Pace]) -> None:
    """Print the pace by the number of sessions in the store."""
    print(f"\n| sessions | turns/s, {AT_ONCE} at once | client, ms | server, ms |")
    print("|---:|---:|---:|---:|")
    for sessions, each in paces.items():
        own, theirs = each.client * 1000, each.server * 1000
        print(f"| {sessions:,} | {each.rate:,.0f} | {own:.2f} | {theirs:.2f} |", flush=True)


async def the_day(subject: Subject, sessions: int, seconds: float, pace: Pace) -> None:
    """Print the day as it was, beside the model's."""
    unhindered = await alone(subject)
    day = draw(seconds, round(_USE * pace.rate * seconds), sessions)
    measured = await live(subject, day)
    model = predicted(day, unhindered, pace.rate)
    print(
        f"\nA day in {seconds:g} s: {len(day):,} turns on {len({t.session for t in day}):,} ",
        end="",
    )
    print(f"sessions; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| ms | p50 | p50 of the model | p99 | p99 of the model |\n|---|---:|---:|---:|---:|")
    for what, field in (
        ("a round trip", "operations"),
        ("waiting for the session", "waits"),
        ("a turn, without its model calls", "turns"),
    ):
        figures = (
            f"{_quantile(latencies, field, share) * 1000:,.1f}"
            for share in (0.5, 0.99)
            for latencies in (measured, model)
        )
        print(f"| {what} | {' | '.join(figures)} |", flush=True)


def _quantile(latencies: Latencies, field: str, share: float) -> float:
    ordered = sorted(getattr(latencies, field))
    return float(ordered[int(share * (len(ordered) - 1))])


async def partitions() -> None:
    """Print the pace on tables in one part and in many, measured in turns."""
    paces: dict[int, list[Pace]] = {1: [], 16: []}
    async with AsyncExitStack() as stack:
        subjects = {
            parts: await stack.enter_async_context(started("postgresql", parts)) for parts in paces
        }
        for subject in subjects.values():
            await subject.fill(range(_FEW))
        for _ in range(_ROUNDS):
            for parts, subject in subjects.items():
                paces[parts].append(await pace(subject, _FEW, 5))
    print("\n| partitions | turns/s | client, ms | server, ms |\n|---:|---:|---:|---:|")
    for parts, measured in paces.items():
        rate, client, server = (
            median(getattr(each, field) for each in measured)
            for field in ("rate", "client", "server")
        )
        print(f"| {parts} | {rate:,.0f} | {client * 1000:.2f} | {server * 1000:.2f} |", flush=True)


async def main(names: list[str], sessions: int, seconds: float) -> None:
    """Measure these."""
    for name in names:
        if name == "partitions":
            await partitions()
            continue
        async with started(name) as subject:
            await measure(subject, sessions, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.benchmarks.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sessions", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the day, compressed")
    parser.add_argument("--only", choices=_SUBJECTS)
    options = parser.parse_args()
    chosen = [options.only] if options.only else [*_SUBJECTS]
    asyncio.run(main(chosen, options.sessions, options.seconds))
