"""Numbers of callers: what is refused, and what is cut."""

from __future__ import annotations

from typing import Any

import pytest

from session_middleware.errors import InvalidOption
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores import open_memory
from session_middleware.stores.numbers import LONGEST, MOST, cut, cut_window, seconds, whole_number


@pytest.mark.parametrize("value", [0.001, 1, 10, 2.5, LONGEST])
def test_seconds_are_positive_numbers(value: float) -> None:
    """Whole or not, up to a year."""
    assert seconds("lease", value) == value


@pytest.mark.parametrize(
    "value",
    [0, -1, 1e12, LONGEST + 1, 10**400, float("nan"), float("inf"), True, None, "10", "hidden"],
)
def test_anything_else_is_no_number_of_seconds(value: Any) -> None:
    """The error names the option, and shows no text that was given."""
    with pytest.raises(InvalidOption, match="lease must be a positive number of") as raised:
        seconds("lease", value)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("option", ["lease", "operation_timeout"])
@pytest.mark.parametrize(
    "url", ["sqlite:///chat.db", "postgresql://u@h/d", "redis://h", "valkey://h"]
)
def test_no_memory_takes_a_lease_without_end(url: str, option: str) -> None:
    """A lease of 1e12 seconds ends after every date; it is refused before anything is opened."""
    with pytest.raises(
        InvalidOption, match=f"{option} must be .* at most a year, got 1000000000000"
    ):
        open_memory(url, **{option: 1e12})


def test_whole_numbers() -> None:
    """No fraction, no truth value, and not less than is sensible."""
    assert whole_number("replicas", 0, at_least=0) == 0
    for wrong in (-1, 1.0, True, "1", None):
        with pytest.raises(InvalidOption, match="replicas must be a whole number from 0 on"):
            whole_number("replicas", wrong, at_least=0)


@pytest.mark.parametrize(
    ("given", "kept"), [(None, None), (0, 0), (7, 7), (-7, -7), (10**30, MOST), (-(10**30), -MOST)]
)
def test_a_limit_is_cut(given: int | None, kept: int | None) -> None:
    """To a number that every storage can hold."""
    assert cut("limit", given) == kept


@pytest.mark.parametrize("wrong", [1.5, True, "1", [1]])
def test_a_limit_is_a_whole_number(wrong: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(InvalidOption, match="limit must be a whole number or None"):
        cut("limit", wrong)


def test_a_window_is_cut() -> None:
    """Its numbers are; a small one stays as it is."""
    assert cut_window(None) is None
    assert cut_window(LastTurns(3, 2)) == LastTurns(3, 2)
    assert cut_window(LastTurns(10**30, 10**30)) == LastTurns(MOST, MOST)
    assert cut_window(LastItems(10**30)) == LastItems(MOST)
