"""Draws the pictures of concepts.md: ``python docs/diagrams/draw.py`` writes the SVG files.

A picture is a list of lanes and of steps, top to bottom. The files need no script and no font from
elsewhere, and follow a dark reader. ``tests/acceptance/test_docs.py`` sees that they are current.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TypeAlias

LANE = 190
"""Pixels from one lane to the next."""
ROW = 34
"""Pixels from one step to the next."""

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933; text-anchor: middle }
  .page { fill: #ffffff }
  .head { font-weight: 600 }
  .small { font-size: 12px }
  line, path { stroke: #52606d; fill: none }
  .lane { stroke: #cbd2d9 }
  .box { fill: #f5f7fa; stroke: #9aa5b1 }
  .hold { fill: #0f9d8a; stroke: none }
  .bad { fill: #fde8e8; stroke: #e12d39 }
  .good { fill: #e3f9e5; stroke: #31a354 }
  .tip { fill: #52606d; stroke: none }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1f2933 } text { fill: #e4e7eb }
    line, path { stroke: #9aa5b1 } .lane { stroke: #3e4c59 }
    .box { fill: #323f4b; stroke: #7b8794 } .tip { fill: #9aa5b1 }
    .bad { fill: #610316; stroke: #e66a6a } .good { fill: #05400a; stroke: #57ae5b }
  }
"""


@dataclass(frozen=True)
class Arrow:
    """One lane tells another something."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Box:
    """Something happens in a lane, which may hold the session from here or up to here."""

    lane: int
    text: str
    kind: str = "box"
    holds: bool | None = None


Step: TypeAlias = Arrow | Box


@dataclass(frozen=True)
class Picture:
    """Lanes and what happens in them."""

    title: str
    lanes: list[str]
    steps: list[Step] = field(default_factory=list)

    def svg(self) -> str:
        """The picture as a file."""
        width, height = LANE * len(self.lanes), ROW * (len(self.steps) + 2)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
        ]
        for lane, name in enumerate(self.lanes):
            x = _middle(lane)
            parts.append(f'<text class="head" x="{x}" y="20">{escape(name)}</text>')
            parts.append(f'<line class="lane" x1="{x}" y1="30" x2="{x}" y2="{height - 6}"/>')
        parts += self._holds()
        for row, step in enumerate(self.steps):
            parts += _arrow(step, row) if isinstance(step, Arrow) else _box(step, row)
        return "\n".join([*parts, "</svg>\n"])

    def _holds(self) -> list[str]:
        """A bar in a lane for as long as it holds the session."""
        since: dict[int, int] = {}
        bars = []
        for row, step in enumerate(self.steps):
            if not isinstance(step, Box) or step.holds is None:
                continue
            if step.holds:
                since[step.lane] = row
                continue
            first = since.pop(step.lane)
            x, y = _middle(step.lane) - 4, _top(first)
            bars.append(
                f'<rect class="hold" x="{x}" y="{y}" width="8" height="{_top(row) - y}" rx="4"/>'
            )
        return bars


def _middle(lane: int) -> int:
    return LANE * lane + LANE // 2


def _top(row: int) -> int:
    return ROW * (row + 1) + 8


def _arrow(step: Arrow, row: int) -> list[str]:
    y = _top(row) + 16
    right = step.end > step.start
    start, end = _middle(step.start), _middle(step.end)
    start, end = (start + 6, end - 6) if right else (start - 6, end + 6)
    back = -7 if right else 7
    return [
        f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}"/>',
        f'<path class="tip" d="M {end} {y} l {back} -4 v 8 z"/>',
        f'<text class="small" x="{(start + end) // 2}" y="{y - 5}">{escape(step.text)}</text>',
    ]


def _box(step: Box, row: int) -> list[str]:
    width = LANE - 14
    x, y = _middle(step.lane) - width // 2, _top(row)
    return [
        f'<rect class="{step.kind}" x="{x}" y="{y}" width="{width}" height="24" rx="5"/>',
        f'<text class="small" x="{_middle(step.lane)}" y="{y + 16}">{escape(step.text)}</text>',
    ]


PICTURES = {
    "turn": Picture(
        "A turn holds its session until its last run is over; the next turn waits for it.",
        ["worker 1", "session user_1", "worker 2"],
        [
            Arrow(0, 1, "acquire"),
            Box(0, "turn 1: input stored", holds=True),
            Arrow(2, 1, "acquire: held, so wait"),
            Box(0, "run: model, tools, model"),
            Arrow(0, 1, "store answer, end turn"),
            Box(0, "turn 1 completed", "good", holds=False),
            Arrow(1, 2, "granted, with turn 1"),
            Box(2, "turn 2", holds=True),
            Arrow(2, 1, "store answer, end turn"),
            Box(2, "turn 2 completed", "good", holds=False),
        ],
    ),
    "lease": Picture(
        "A lease is renewed while its process lives, and ends by itself when the process dies.",
        ["worker 1", "session user_1", "worker 2"],
        [
            Arrow(0, 1, "acquire"),
            Box(0, "lease for 30 s", holds=True),
            Arrow(0, 1, "renew, every few seconds"),
            Box(0, "killed", "bad", holds=False),
            Arrow(2, 1, "acquire: held, so wait"),
            Box(1, "30 s without renewal"),
            Arrow(1, 2, "granted: turn 1 abandoned"),
            Box(2, "turn 2", "good", holds=True),
            Box(2, "turn 2 completed", "good", holds=False),
        ],
    ),
    "fence": Picture(
        "A worker that lost its session and does not know it writes nothing.",
        ["worker 1", "session user_1", "worker 2"],
        [
            Arrow(0, 1, "acquire: token 7"),
            Box(0, "turn 1", holds=True),
            Box(0, "frozen past its lease"),
            Arrow(2, 1, "acquire: token 8"),
            Box(2, "turn 2", holds=True),
            Arrow(0, 1, "write with token 7"),
            Box(0, "TurnLost", "bad", holds=False),
            Arrow(2, 1, "write with token 8"),
            Box(2, "turn 2 completed", "good", holds=False),
        ],
    ),
    "retry": Picture(
        "A request that is made again under its key takes the place of the attempt that failed.",
        ["client", "worker", "session user_1"],
        [
            Arrow(0, 1, "request, key 17"),
            Arrow(1, 2, "question, call, output"),
            Box(1, "provider fails", "bad"),
            Arrow(0, 1, "request, key 17"),
            Arrow(2, 1, "go on behind the output"),
            Arrow(1, 2, "answer: turn completed"),
            Arrow(1, 0, "answer"),
            Arrow(0, 1, "request, key 17"),
            Arrow(1, 0, "DuplicateTurn: the answer"),
        ],
    ),
    "park": Picture(
        "A run that waits for a person lets its session go, and is resumed as the same turn.",
        ["worker 1", "session user_1", "person", "worker 2"],
        [
            Box(0, "turn 1: pay needs approval", holds=True),
            Arrow(0, 1, "park turn 1"),
            Box(0, "session is free", "good", holds=False),
            Arrow(3, 1, "turn 2: something else"),
            Arrow(2, 3, "approve, a day later"),
            Arrow(3, 1, "resume turn 1"),
            Box(3, "pay runs; turn 1 completed", "good"),
            Arrow(2, 3, "approve, once more"),
            Box(3, "DuplicateTurn, no tool", "bad"),
        ],
    ),
    "journal": Picture(
        "The calls of a response are in the journal before the first tool begins.",
        ["model", "worker", "journal", "card"],
        [
            Arrow(0, 1, "call mail, call charge"),
            Arrow(1, 2, "both begin (flushed)"),
            Arrow(1, 2, "mail ended: its output"),
            Arrow(1, 3, "charge"),
            Box(1, "killed inside charge", "bad"),
            Box(1, "the request comes again"),
            Arrow(2, 1, "mail: done, charge: unknown"),
            Arrow(1, 0, "output; outcome unknown"),
            Arrow(0, 1, "checks, or tells the user"),
        ],
    ),
}


def write(folder: Path) -> None:
    """Write every picture as a file."""
    for name, picture in PICTURES.items():
        (folder / f"{name}.svg").write_text(picture.svg())


if __name__ == "__main__":
    write(Path(__file__).parent)
