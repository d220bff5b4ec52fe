"""How values are written for people: times, sizes, numbers, and the words of others, made harmless.

Pure. A conversation is written by others: whatever it holds is shown as text, never obeyed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

# Control characters (C0, DEL, C1), lone surrogates, and what changes the direction of a text or
# ends a line for some programs.
ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Characters that act on a terminal, or on how a text is read."""


def harmless(text: str) -> str:
    """The text with its lines, each other character that acts as an escape such as ``\\x1b``."""
    return ACTING.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), text)


def shown(text: object, width: int | None = None) -> str:
    """The text as one line, each character that acts on a terminal as an escape such as ``\\x1b``.

    Args:
        width: cut it to so many characters.
    """
    line = ACTING.sub(_escape, str(text))
    if width is not None and len(line) > width:
        return line[: max(width - 1, 0)] + "…"
    return line


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def moment(value: datetime | None) -> str:
    """A moment as ``2026-01-31 09:15:00`` in UTC, or a dash."""
    return "-" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(value: datetime, now: datetime | None = None) -> str:
    """How long ago a moment was: ``3 min ago``."""
    seconds = ((now or datetime.now(UTC)) - value).total_seconds()
    return f"{duration(max(seconds, 0))} ago"


def duration(seconds: float) -> str:
    """A span of time in its largest unit: ``0.45 s``, ``3 min``, ``2 days``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int | float) -> str:
    """A number of bytes: ``512 B``, ``1.5 kB``, ``20 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1_000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:.1f} GB"


def counted(number: int, noun: str) -> str:
    """The number with its noun: ``1 turn``, ``2 turns``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
