"""Numbers that callers give a store: refused by name, or cut to what every storage can hold."""

from __future__ import annotations

from session_middleware.errors import InvalidOption
from session_middleware.history import LastItems, LastTurns

MOST = 2**31 - 1
"""No session has so many turns or items, and every storage can hold the number."""

LONGEST = 366 * 86_400.0
"""The most seconds that an option may have: a leap year, which every clock and date can add."""


def seconds(name: str, value: object) -> float:
    """The value of an option that is a number of seconds.

    Raises:
        InvalidOption: it is no number, not positive, or longer than a year.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, (int, float)) and is_number and 0 < value <= LONGEST:
        return float(value)
    raise InvalidOption(
        f"{name} must be a positive number of seconds, at most a year, got {_shown(value)}"
    )


def whole_number(name: str, value: object, *, at_least: int) -> int:
    """The value of an option that is a whole number.

    Raises:
        InvalidOption: it is none, or less than ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InvalidOption(
            f"{name} must be a whole number from {at_least} on, got {_shown(value)}"
        )
    return value


def cut(name: str, value: int | None) -> int | None:
    """A limit or the number of a turn, which may be any whole number or None; cut to MOST.

    Raises:
        InvalidOption: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidOption(f"{name} must be a whole number or None, got {_shown(value)}")
    return max(-MOST, min(value, MOST))


def cut_window(newest: LastTurns | LastItems | None) -> LastTurns | LastItems | None:
    """The same window with its numbers cut to MOST."""
    if isinstance(newest, LastTurns):
        return LastTurns(min(newest.n, MOST), min(newest.step, MOST))
    return None if newest is None else LastItems(min(newest.n, MOST))


def _shown(value: object) -> str:
    """The value if it is a short number, else its kind: it may be anything."""
    short = isinstance(value, float) or (isinstance(value, int) and abs(value) <= MOST)
    return repr(value) if short else type(value).__name__
