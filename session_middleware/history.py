"""Histories as data: turns, the windows that choose among them, and their repair.

Pure functions on items. No I/O, no clock, no random values, nothing of the SDK at run time.
What makes a history one that a provider accepts is in ``repair`` and handed on from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pydantic_core

from session_middleware.errors import InvalidOption
from session_middleware.pairs import is_output
from session_middleware.repair import Fault, Receipt, check, repair

__all__ = [
    "Turn",
    "Window",
    "LastTurns",
    "LastItems",
    "TokenBudget",
    "last_turns",
    "last_items",
    "token_budget",
    "apply_windows",
    "Fault",
    "Receipt",
    "check",
    "repair",
    "split",
    "holds_output",
    "up_to_last_output",
    "digest",
    "size_and_digest",
    "text_of",
]


@dataclass(slots=True)
class Turn:
    """One turn of a history, as a window sees it.

    Attributes:
        turn: its number in the session.
        items: its items, in order.
        texts: the stored text of each item, where they were asked for.
    """

    turn: int
    items: list[dict[str, Any]] = field(repr=False)
    texts: list[str] | None = field(default=None, repr=False)


Window: TypeAlias = Callable[[list[Turn]], list[Turn]]
"""Takes turns, oldest first, and returns those that the model is to see, in the same order."""


# --- windows -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LastTurns:
    """The newest ``n`` turns; the cut moves in steps of ``step`` turn numbers.

    With ``step`` greater than 1 the oldest turn that is kept stays the same for ``step`` turns,
    so the prompt keeps its beginning and the provider's cache stays warm; up to ``step - 1``
    turn numbers more than ``n`` are kept meanwhile.
    """

    n: int
    step: int = 1

    def __post_init__(self) -> None:
        n = _whole_number("n", self.n, at_least=0, correct="last_turns(n=20)")
        step = _whole_number("step", self.step, at_least=1, correct="last_turns(n=20, step=5)")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "step", step)

    def __call__(self, turns: list[Turn]) -> list[Turn]:
        if self.n == 0:
            return []
        if len(turns) < self.n:
            return list(turns)
        newest = turns[-self.n].turn
        cut = newest - newest % self.step
        return [turn for turn in turns if turn.turn >= cut]


@dataclass(frozen=True, slots=True)
class LastItems:
    """Whole turns with at most ``n`` items together; never less than the newest turn; 0: none."""

    n: int

    def __post_init__(self) -> None:
        n = _whole_number("n", self.n, at_least=0, correct="last_items(n=100)")
        object.__setattr__(self, "n", n)

    def __call__(self, turns: list[Turn]) -> list[Turn]:
        return _newest_within(self.n, turns, lambda turn: len(turn.items))


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Whole turns with at most ``n`` tokens together; never less than the newest turn; 0: none.

    ``count`` takes one item and returns its tokens. Without it an item has a quarter of the
    characters of its JSON text, rounded up: a rule of thumb for English, too few for others.
    """

    n: int
    count: Callable[[dict[str, Any]], int] | None = None

    def __post_init__(self) -> None:
        n = _whole_number("n", self.n, at_least=0, correct="token_budget(n=8000)")
        object.__setattr__(self, "n", n)
        if self.count is not None and not callable(self.count):
            raise InvalidOption(
                "count must be a function from one item to its tokens, got a value of type "
                f"{type(self.count).__name__}"
            )

    def __call__(self, turns: list[Turn]) -> list[Turn]:
        count = self.count or _estimated_tokens
        return _newest_within(self.n, turns, lambda turn: sum(map(count, turn.items)))


def last_turns(n: int, step: int = 1) -> LastTurns:
    """A window on the newest ``n`` turns, whose cut moves in steps of ``step`` turn numbers.

    Let t be the number of the n-th newest turn; the turns from the largest multiple of ``step``
    that is not greater than t are kept. 0 turns is no history.

    Raises:
        InvalidOption: ``n`` is no whole number from 0, or ``step`` none from 1.
    """
    return LastTurns(n, step)


def last_items(n: int) -> LastItems:
    """A window on the newest whole turns that have at most ``n`` items together.

    The newest turn is kept even if it alone has more; 0 items is no history.

    Raises:
        InvalidOption: ``n`` is no whole number from 0.
    """
    return LastItems(n)


def token_budget(n: int, count: Callable[[dict[str, Any]], int] | None = None) -> TokenBudget:
    """A window on the newest whole turns that have at most ``n`` tokens together.

    The newest turn is kept even if it alone has more; 0 tokens is no history.

    Args:
        n: the budget, in tokens.
        count: takes one item and returns its tokens; left out, the characters of its JSON text
            divided by 4, rounded up.

    Raises:
        InvalidOption: ``n`` is no whole number from 0, or ``count`` cannot be called.
    """
    return TokenBudget(n, count)


def apply_windows(turns: list[Turn], window: Window | Sequence[Window] | None) -> list[Turn]:
    """Return what is left of ``turns`` after one window, or several one after the other.

    A compaction item stands for all before it: what is left begins with the newest one, and has
    it whatever the windows say, unless they leave nothing at all.

    Raises:
        InvalidOption: a window cannot be called, or did not return a list of turns.
    """
    known = turns
    windows: Sequence[Window]
    if window is None:
        windows = ()
    elif isinstance(window, Sequence):
        windows = window
    else:
        windows = (window,)
    for each in windows:
        if not callable(each):
            raise InvalidOption(
                "a window must be a function from a list of turns to a list of turns, such as "
                f"last_turns(20), got a value of type {type(each).__name__}"
            )
        turns = each(list(turns))
        if not isinstance(turns, list) or not all(isinstance(turn, Turn) for turn in turns):
            raise InvalidOption(
                f"the window {_name_of(each)} must return those of the turns that it was given "
                "that the model is to see, as a list"
            )
    return _from_newest_compaction(known, list(turns))


def _from_newest_compaction(known: list[Turn], kept: list[Turn]) -> list[Turn]:
    """The turns that are kept, from the newest compaction item of those that are known on."""
    if not kept:
        return kept
    own = {turn.turn: turn for turn in kept}
    for turn in reversed(known):
        turn = own.get(turn.turn, turn)
        for at in reversed(range(len(turn.items))):
            if _is_compaction(turn.items[at]):
                first = turn if at == 0 else Turn(turn.turn, turn.items[at:])
                return [first, *(one for one in kept if one.turn > turn.turn)]
    return kept


def _name_of(window: object) -> str:
    """A window's name: its repr may show what it holds."""
    return str(getattr(window, "__qualname__", None) or type(window).__qualname__)


def _newest_within(limit: int, turns: list[Turn], size: Callable[[Turn], int]) -> list[Turn]:
    """The newest turns that fit into ``limit`` together, and always the newest; none for 0."""
    if limit == 0 or not turns:
        return []
    left = limit - size(turns[-1])
    first = len(turns) - 1
    while first > 0 and (left := left - size(turns[first - 1])) >= 0:
        first -= 1
    return turns[first:]


def _estimated_tokens(item: dict[str, Any]) -> int:
    return -(-len(text_of(item)) // 4)


MOST = 2**53
"""Stands for every larger number: no session has as many turns, items or tokens."""


def _whole_number(name: str, value: object, *, at_least: int, correct: str) -> int:
    """The number, or the largest that a storage can be asked for."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        # A window that was given without being called gets the history: it must not be shown.
        is_plain = isinstance(value, (bool, int, float))
        shown = repr(value) if is_plain else f"a value of type {type(value).__name__}"
        raise InvalidOption(
            f"{name} must be a whole number of at least {at_least}, such as {correct}, got {shown}"
        )
    return min(value, MOST)


# --- flat histories ------------------------------------------------------------------------


def digest(items: Iterable[Any]) -> str:
    """A stable SHA-256 of items: the same for the same JSON, whatever the order of keys."""
    text = json.dumps(list(items), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_of(item: dict[str, Any]) -> str:
    """The JSON text of an item as it would be stored; what is no JSON is written as its str()."""
    text = json.dumps(item, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: written as an escape
        return json.dumps(item, default=str)
    return text


def size_and_digest(items: Sequence[Any]) -> tuple[int, str]:
    """The bytes of a history as one JSON array without spaces, and their SHA-256.

    A quarter of what ``digest`` costs, but the order of keys counts.
    """
    try:
        text = pydantic_core.to_json(items)
    except pydantic_core.PydanticSerializationError:  # a lone surrogate: written as an escape
        text = json.dumps(items, separators=(",", ":"), default=str).encode()
    return len(text), hashlib.sha256(text).hexdigest()


def split(items: Sequence[Any]) -> list[list[Any]]:
    """Cut a flat history into turns: a user message that follows another kind of item begins one.

    The turns joined together are ``items`` again, the same objects in the same order.
    """
    turns: list[list[Any]] = []
    after_user = False
    for item in items:
        user = _is_user_message(item)
        if not turns or (user and not after_user):
            turns.append([])
        turns[-1].append(item)
        after_user = user
    return turns


def _is_user_message(item: object) -> bool:
    return (
        isinstance(item, dict)
        and item.get("role") == "user"
        and item.get("type", "message") in (None, "message")
    )


# --- what a run that did not complete left behind ------------------------------------------


def holds_output(items: Sequence[Any]) -> bool:
    """Whether a tool has done its work in these items, so that starting over would repeat it."""
    return any(map(_is_work_done, items))


def up_to_last_output(items: Sequence[Any]) -> int:
    """How many leading items to keep to continue after the last tool output; 0 without any."""
    for at in range(len(items) - 1, -1, -1):
        if _is_work_done(items[at]):
            return at + 1
    return 0


def holds_compaction(items: Sequence[Any]) -> bool:
    """Whether one of these stands for all that was before it."""
    return any(map(_is_compaction, items))


def behind_compaction(older: Sequence[Turn], turns: list[Turn]) -> list[Turn]:
    """These turns, behind the newest of the older ones that holds a compaction item, if need be.

    Nothing is added where one of the turns holds such an item, or where there are none.
    """
    if not turns or any(holds_compaction(turn.items) for turn in turns):
        return turns
    holding = [turn for turn in older if holds_compaction(turn.items)]
    return [*holding[-1:], *turns]


def _is_compaction(item: object) -> bool:
    return isinstance(item, dict) and item.get("type") == "compaction"


def only_words(items: Sequence[Any]) -> bool:
    """Whether these are a model's words and thoughts alone: no call, nothing of anybody else's."""
    return all(item.get("role") == "assistant" or item.get("type") == "reasoning" for item in items)


def _is_work_done(item: object) -> bool:
    if isinstance(item, dict) and item.get("type") == "mcp_call":
        return item.get("output") is not None  # a server did it, with whatever effect there
    return is_output(item)
