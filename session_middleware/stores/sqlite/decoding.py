"""Items that were read, decoded when the transaction is over, and a large history in pieces.

Decoding holds the interpreter: in one piece, a long history would stall every event loop of the
process, and every other load. Nothing here reads from a database.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from pydantic_core import from_json

from session_middleware.history import Turn
from session_middleware.stores.items import decode_items, decode_joined
from session_middleware.stores.records import Item
from session_middleware.stores.sqlite.group import Steps

PIECE = 2**18
"""Bytes of JSON that are decoded in one step, which takes a millisecond or two."""


def decode_text(text: bytes | None, count: int, lengths: str | None) -> Steps[list[Item] | None]:
    """Decode items that are joined by commas; None where one of them cannot be read.

    Args:
        count: how many items there are.
        lengths: the bytes of each as a JSON array, for a text of more than one piece.
    """
    if text is None or lengths is None:
        return decode_joined(text, count)
    items: list[Item] = []
    for first, after, at, end in _pieces(from_json(lengths)):
        yield
        part = decode_joined(text[at:end], after - first)
        if part is None:
            return None
        items += part
    return items


def _pieces(lengths: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """The first item of each piece and the one after it, and where they begin and end."""
    ends = list(accumulate(length + 1 for length in lengths))  # with the comma behind each
    first = at = 0
    while first < len(ends):
        after = max(bisect_right(ends, at + PIECE), first + 1)
        yield first, after, at, ends[after - 1] - 1
        first, at = after, ends[after - 1]


def decode_each(texts: Sequence[str]) -> Steps[list[Item | None]]:
    """Decode items that come one by one; None in place of each that cannot be read."""
    items: list[Item | None] = []
    for first, after, _, _ in _pieces([len(text) for text in texts]):
        if first:
            yield
        items += decode_items(texts[first:after])[0]
    return items


def decode_rows(rows: Sequence[tuple[int, str]], texts: bool) -> Steps[tuple[list[Turn], int]]:
    """Decode the items of numbered turns; also returns how many cannot be read."""
    items = yield from decode_each([text for _, text in rows])
    readable = [(row, item) for row, item in zip(rows, items, strict=True) if item is not None]
    kept = [text for (_, text), _ in readable] if texts else None
    turns = in_turns([turn for (turn, _), _ in readable], [item for _, item in readable], kept)
    return turns, len(rows) - len(readable)


def in_turns(
    turn_of_each: list[int], items: list[Item], texts: list[str] | None = None
) -> list[Turn]:
    """These items, which are in the order of their turns, turn by turn."""
    turns, first = [], 0
    while first < len(items):
        turn = turn_of_each[first]
        after = bisect_right(turn_of_each, turn, first)
        own_texts = None if texts is None else texts[first:after]
        turns.append(Turn(turn, items[first:after], own_texts))
        first = after
    return turns
