"""What commands write and read beside plain words: JSON, lines, and ages in options.

Pure. Nothing written by these acts on a terminal.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import click

from session_middleware.words import ACTING, shown

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*")


def shown_lines(text: object) -> list[str]:
    """The lines of the text, each like ``shown``."""
    return [shown(line.replace("\t", "    ")) for line in re.split("\r\n|\n", str(text))]


def json_text(value: Any) -> str:
    """The value as JSON on one line, readable, and harmless on a terminal."""
    return harmless_json(json.dumps(value, ensure_ascii=False, default=str))


def harmless_json(text: str) -> str:
    """JSON with the characters that act on a terminal as JSON's own escapes; it means the same."""
    return ACTING.sub(
        lambda found: found[0] if found[0] in "\n\r\t" else f"\\u{ord(found[0]):04x}", text
    )


def age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """The span of an option: a number with s, m, h, d or w; seconds without.

    Raises:
        click.BadParameter: the text is none.
    """
    if value is None:
        return None
    found = _AGE.fullmatch(value)
    if found is None:
        raise click.BadParameter("must be a number with s, m, h, d or w, such as 30d")
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2] or "s"])
    except OverflowError:
        raise click.BadParameter("is longer than there are dates for") from None
