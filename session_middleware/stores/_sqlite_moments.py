"""A moment as our files keep it: a text that people, SQLite and Python can all read."""

from __future__ import annotations

from datetime import UTC, datetime


def text_of(moment: datetime) -> str:
    """The moment in UTC, to the microsecond, ordered as text."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")


def moment_of(text: str) -> datetime:
    """The moment of a stored text, in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)
