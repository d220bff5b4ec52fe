"""What ``doctor`` found, and how it is told. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from session_middleware.repair import FaultKind, Receipt
from session_middleware.stores.managed_store import SessionInfo
from session_middleware.stores.managing.mending import Examined
from session_middleware.words import counted, duration, size

Level = Literal["good", "attention", "bad"]


@dataclass(slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what was looked at.
        level: whether anything has to be done.
        text: what was found, and what to do.
        sessions: where.
    """

    subject: str
    level: Level
    text: str
    sessions: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The finding as ``--json`` tells it."""
        return {
            "subject": self.subject,
            "level": self.level,
            "text": self.text,
            "sessions": self.sessions,
        }


@dataclass(slots=True)
class Seen:
    """What was seen of all sessions."""

    sessions: int = 0
    turns: int = 0
    items: int = 0
    bytes: int = 0
    corrupt: Counter[str] = field(default_factory=Counter)
    faulty: dict[str, Receipt] = field(default_factory=dict)
    abandoned: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    parked: Counter[str] = field(default_factory=Counter)
    oldest_parked: float = 0.0
    unknown: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, info: SessionInfo, found: Examined) -> None:
        """Count what was found in a session."""
        self.sessions += 1
        self.turns += found.turns
        self.items += found.items
        self.bytes += info.bytes
        name = info.session_id
        for counter, number in (
            (self.corrupt, found.corrupt),
            (self.abandoned, found.abandoned),
            (self.parked, found.parked),
            (self.unknown, len(found.unknown)),
        ):
            if number:
                counter[name] += number
        self.tools.update(found.unknown)
        if found.receipt:
            self.faulty[name] = found.receipt
        if found.left:
            self.left.append(name)

    def findings(self) -> list[Finding]:
        """One for each subject."""
        repaired = Counter[FaultKind]()
        for receipt in self.faulty.values():
            repaired.update(receipt.counts)
        return [
            Finding(
                "sessions",
                "good",
                f"{self.sessions:,} with {counted(self.turns, 'turn')}, "
                f"{counted(self.items, 'item')}, {size(self.bytes)}",
            ),
            _where(
                Finding("records", "bad", "cannot be read: restore these from a backup"),
                self.unreadable,
            ),
            _where(
                Finding(
                    "corrupt items",
                    "bad",
                    f"{self.corrupt.total():,} that are no JSON objects, which every load leaves "
                    "out; --fix removes them",
                ),
                self.corrupt,
            ),
            _where(
                Finding(
                    "histories",
                    "attention",
                    f"repair mends {Receipt(dict(repaired))} in each load; --fix stores them so",
                ),
                self.faulty,
            ),
            _where(
                Finding(
                    "turns of dead processes",
                    "attention",
                    f"{len(self.left):,}; the next turn takes each over, and --fix settles them",
                ),
                self.left,
            ),
            _where(
                Finding(
                    "abandoned turns",
                    "good",
                    f"{self.abandoned.total():,} that were taken over when a process had died",
                ),
                self.abandoned,
            ),
            _where(
                Finding(
                    "parked turns",
                    "attention",
                    f"{self.parked.total():,}, the oldest for {duration(self.oldest_parked)}: see "
                    "'session-middleware pending'",
                ),
                self.parked,
            ),
            _where(
                Finding(
                    "unknown effects",
                    "attention",
                    f"{self.unknown.total():,} calls whose outcome nobody saw "
                    f"({', '.join(sorted(self.tools))}): ask the system that the tool works on",
                ),
                self.unknown,
            ),
        ]


def _where(finding: Finding, sessions: Iterable[str]) -> Finding:
    """The finding in these sessions; a good one where there are none."""
    named = list(sessions)
    if not named:
        return Finding(finding.subject, "good", "none")
    return replace(finding, sessions=named)
