"""What is written for people and programs: harmless on a terminal, and the same in meaning."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import timedelta

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware.cli.text import age, json_text, shown_lines
from session_middleware.words import duration, shown, size

TEXT = st.text(st.characters(exclude_categories=[]), max_size=50) | st.from_regex(
    "(\x1b\\[[0-9;]*m|\x1b\\]0;x\x07|\x9b|\r|\n|\t|\u202e|[a-z])*", fullmatch=True
)
DIRECTIONS = set(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


def harmful(text: str) -> list[str]:
    return [
        each
        for each in text
        if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or each in DIRECTIONS
    ]


@given(TEXT)
def test_no_character_acts(text: str) -> None:
    """Neither a line nor a text of lines nor JSON has a character that acts on a terminal."""
    assert harmful(shown(text)) == []
    assert harmful("".join(shown_lines(text))) == []
    assert harmful(json_text({text: [text]})) == []


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_other_characters_stay(text: str) -> None:
    """What acts on nothing is shown as it is."""
    assert shown(text) == text


@given(TEXT, st.integers(1, 60))
def test_a_line_is_cut(text: str, width: int) -> None:
    """A width is never exceeded, and a text that fits is whole."""
    assert len(shown(text, width)) <= width
    if len(shown(text)) <= width:
        assert shown(text, width) == shown(text)


@given(st.recursive(st.none() | st.integers() | TEXT, st.lists, max_leaves=8))
def test_json_means_the_same(value: object) -> None:
    """Whoever reads the JSON has the value."""
    assert json.loads(json_text(value)) == value


@given(st.integers(0, 10_000), st.sampled_from(["", "s", "m", "h", "d", "w"]))
def test_ages(number: int, unit: str) -> None:
    """A number with a unit; seconds without."""
    seconds = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}[unit]
    found = _age(f"{number}{unit}")
    assert found == timedelta(seconds=number * seconds)


@given(TEXT)
def test_any_age(text: str) -> None:
    """Any other text is refused as an argument."""
    try:
        assert _age(text) is not None
    except click.BadParameter:
        assert not re.fullmatch(r"[0-9]{1,9}[smhd]?", text)


@pytest.mark.parametrize("text", ["", "d", "-1d", "1y", "1e3", "inf", "nan", "9" * 40, "1 d d"])
def test_no_ages(text: str) -> None:
    """Neither a negative number nor one that no date has."""
    with pytest.raises(click.BadParameter):
        _age(text)


def _age(text: str) -> timedelta | None:
    command = click.Command("prune")
    return age(click.Context(command), click.Option(["--older-than"]), text)


def test_amounts() -> None:
    """Spans and sizes are told in their largest unit."""
    assert [duration(each) for each in (0.012, 9.96, 59, 119, 120, 7_200, 172_800)] == [
        "0.012 s",
        "10 s",
        "59 s",
        "119 s",
        "2 min",
        "2 h",
        "2 days",
    ]
    assert [size(each) for each in (0, 999, 1_000, 20_500, 3_000_000, 5e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "20 kB",
        "3.0 MB",
        "5000.0 GB",
    ]
