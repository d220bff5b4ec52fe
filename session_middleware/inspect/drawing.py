"""Templates, and the two small pictures of a session: tokens by turn, and who held it when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from session_middleware import TurnRecord, words
from session_middleware.errors import MissingExtra

try:
    from jinja2 import Environment, FileSystemLoader
except ImportError as error:
    raise MissingExtra(
        "the page needs jinja2, which is not installed: pip install 'session-middleware[inspect]'"
    ) from error

_WIDTH, _HEIGHT = 600, 60


def folder(name: str) -> Path:
    """Where the package has its files of that kind."""
    return Path(__file__).parent / name


TEMPLATES = Environment(
    loader=FileSystemLoader(folder("templates")), autoescape=True, trim_blocks=True
)
TEMPLATES.filters |= {
    "clean": words.harmless,
    "size": words.size,
    "ago": words.ago,
    "several": words.counted,
}


def tokens_chart(records: Sequence[TurnRecord]) -> list[dict[str, Any]]:
    """A bar for each turn: how many tokens it spent."""
    counts = [(record.turn, int((record.usage or {}).get("total_tokens", 0))) for record in records]
    most = max((count for _, count in counts), default=0)
    if not most:
        return []
    width = _WIDTH / len(counts)
    return [
        {
            "x": round(number * width, 1),
            "y": round(_HEIGHT - count / most * _HEIGHT, 1),
            "width": round(max(1.0, width - 2), 1),
            "height": round(count / most * _HEIGHT, 1),
            "label": f"turn {turn}: {count:,} tokens",
        }
        for number, (turn, count) in enumerate(counts)
    ]


def timeline(records: Sequence[TurnRecord]) -> list[dict[str, Any]]:
    """A line for each turn: how long it waited for the session, and how long it held it."""
    if not records:
        return []
    began = min(record.started_at for record in records)
    ended = max(record.ended_at or record.started_at for record in records)
    whole = max((ended - began).total_seconds(), 0.001)

    def place(seconds: float) -> float:
        return round(seconds / whole * _WIDTH, 1)

    lines = []
    for number, record in enumerate(records):
        start = (record.started_at - began).total_seconds()
        waited = record.waited or 0.0
        last = ((record.ended_at or ended) - began).total_seconds()
        lines.append(
            {
                "y": number * 14,
                "wait_x": place(start),
                "wait_width": place(waited),
                "hold_x": place(start + waited),
                "hold_width": max(2.0, place(max(0.0, last - start - waited))),
                "state": record.state,
                "label": f"turn {record.turn}: waited {words.duration(waited)}, "
                f"held it {words.duration(max(0.0, last - start - waited))}",
            }
        )
    return lines
