"""Histories as data: turns, windows, faults and their repair.

Pure functions on items. No I/O, no clock, no random values, nothing of the SDK.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Turn:
    """One turn of a history, as a window sees it.

    Attributes:
        turn: its number in the session.
        items: its items, in order.
        texts: the stored text of each item, where they were asked for.
    """

    turn: int
    items: list[dict[str, Any]]
    texts: list[str] | None = None


@dataclass(frozen=True, slots=True)
class LastTurns:
    """The newest ``n`` turns; the cut moves in steps of ``step`` turn numbers."""

    n: int
    step: int = 1

    def __call__(self, turns: list[Turn]) -> list[Turn]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class LastItems:
    """Whole turns with at most ``n`` items together; never less than the newest turn; 0: none."""

    n: int

    def __call__(self, turns: list[Turn]) -> list[Turn]:
        raise NotImplementedError


def digest(items: Iterable[Any]) -> str:
    """A stable SHA-256 of items: the same for the same JSON, whatever the order of keys."""
    text = json.dumps(list(items), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
