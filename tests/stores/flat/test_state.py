"""Which run may write to a flat history, and where its items lie in it."""

from __future__ import annotations

import pytest

from session_middleware.conformance.samples import user
from session_middleware.stores.flat.state import places


@pytest.mark.parametrize(
    ("stored", "history", "found"),
    [
        ("ab", "ab", [0, 1]),
        ("ab", "xaxxbx", [1, 4]),
        ("a", "aaa", [2]),
        ("aa", "a", [-1, 0]),
        ("ba", "ab", [-1, 0]),
        ("axb", "ab", [0, -1, 1]),
        ("bb", "ab", [-1, 1]),
        ("", "ab", []),
        ("a", "", [-1]),
    ],
)
def test_items_are_looked_for_from_the_end_in_order(
    stored: str, history: str, found: list[int]
) -> None:
    """Each is found once at most, before the one that was stored after it."""
    items = [(1, user(letter)) for letter in stored]
    assert places(items, [user(letter) for letter in history]) == found
