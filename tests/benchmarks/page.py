"""The figures as a table in the terminal, as the table of docs/benchmarks.md, and as a chart."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count, getloadavg
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

from .measuring import LIST, OURS, Row, spread

DOCS = Path(__file__).parents[2] / "docs"
MARKS = "<!-- {name}: begin -->\n", "<!-- {name}: end -->"

_COLOURS = {OURS: "#1f6feb", LIST: "#54aeff"}
_OTHERS = ("#8c959f", "#afb8c1", "#d0d7de")


def machine(load_before: float, quick: bool) -> str:
    """What the figures were measured on and with; ``load_before`` is the load when it began."""
    load = f"load average {load_before:.1f} when it began and {getloadavg()[0]:.1f} when it ended"
    if max(load_before, getloadavg()[0]) > (cpu_count() or 1):
        load += " (**the machine was busy with other work**: only ratios say something)"
    how = "with `--quick`: fewer rounds, shorter sessions" if quick else "everything"
    packages = ", ".join(f"{name} {version(name)}" for name in ("openai-agents", "aiosqlite"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {how}, {cpu_count()} cores ({platform.machine()}, "
        f"{platform.system()}), {load}, Python "
        f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}"
    )


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: medians, with the middle half of the rounds in brackets."""
    lines = [
        "| what is measured | figures (middle half of the rounds) | processor time of a run "
        "| ratio or count | target | reached |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [f"{name} {_figure(row, series)}" for name, series in row.figures.items()]
        spent = [f"{name} {median(series):.2f} ms" for name, series in row.processor.items()]
        low, high = spread(row.values)
        value = _number(row.value)
        value += f" ({_number(low)} to {_number(high)})" if low != high else ""
        lines.append(
            f"| {row.what} | {'; '.join([*figures, *row.notes])} | {'; '.join(spent)} | {value} "
            f"| {row.target} | {'yes' if row.reached else '**no**'} |"
        )
    return "\n".join(lines)


def not_reached(rows: Sequence[Row]) -> str:
    """A Markdown list of the rows whose target is not reached."""
    lines = [
        f"- {row.what.removesuffix('.')}: {_number(row.value)}, and the target is {row.target}."
        for row in rows
        if not row.reached
    ]
    return "\n".join(lines) or "- Nothing: every target is reached."


def _figure(row: Row, series: Sequence[float]) -> str:
    low, high = spread(series)
    between = f" ({_number(low)} to {_number(high)})" if low != high else ""
    return f"{_number(median(series))}{between} {row.unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_docs(rows: Sequence[Row], machine: str) -> None:
    """Put table, targets that are not reached, and chart into docs/, in place of those there."""
    page = DOCS / "benchmarks.md"
    text = page.read_text("utf-8")
    text = _between(text, "not reached", not_reached(rows))
    text = _between(text, "figures", f"{machine}\n\n{table(rows)}")
    page.write_text(text, "utf-8")
    write_chart(rows)


def _between(text: str, name: str, new: str) -> str:
    """The text with ``new`` between the marks of that name."""
    begin, end = (mark.format(name=name) for mark in MARKS)
    before, begin, rest = text.partition(begin)
    _, end, after = rest.partition(end)
    if not end:
        raise RuntimeError(f"docs/benchmarks.md must have the marks of {name!r}")
    return f"{before}{begin}{new}\n{end}{after}"


def write_chart(rows: Sequence[Row]) -> None:
    """Draw the rows in which more is better, each against its own best."""
    (DOCS / "benchmarks.svg").write_text(chart(rows), "utf-8")


def chart(rows: Sequence[Row]) -> str:
    """Bars in SVG: one group for each row that is drawn, one bar for each contender."""
    parts: list[str] = []
    y = 14
    for row in (row for row in rows if row.drawn):
        y += 16
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(row.drawn)}</text>')
        y += 8
        medians = {name: median(series) for name, series in row.figures.items()}
        others = iter(_OTHERS)
        for name, value in medians.items():
            width = max(1, round(360 * value / max(medians.values())))
            colour = _COLOURS.get(name) or next(others, _OTHERS[-1])
            parts.append(
                f'<rect x="160" y="{y}" width="{width}" height="14" fill="{colour}"/>'
                f'<text x="152" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
                f'<text x="{166 + width}" y="{y + 11}">{_number(value)} {escape(row.unit)}</text>'
            )
            y += 18
        y += 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{y + 10}" '
        f'viewBox="0 0 640 {y + 10}" font-family="sans-serif" font-size="11" role="img" '
        'aria-label="Throughput of memories side by side; longer is faster">\n'
        f'<rect width="640" height="{y + 10}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
