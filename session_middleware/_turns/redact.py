"""Items on their way into the memory, and what the user's ``redact`` leaves of them.

A tool call and its output are one thing to a model's provider, so both are kept or neither is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from session_middleware.errors import InvalidItem
from session_middleware.pairs import is_output, pair_id
from session_middleware.stores.records import Item, KeptState, PendingCall

WITHHELD = "[redacted]"


@dataclass(frozen=True, eq=False, slots=True)
class _Redacted:
    """An item, what a call and its output have in common, and what ``redact`` left of it."""

    pair: str | None
    item: Item
    kept: Item | None

    @property
    def is_output(self) -> bool:
        return is_output(self.item)


class Redaction:
    """Applies ``redact`` to the batches of one run.

    Args:
        redact: item -> item, or None to leave it out.
        resumed: the run goes on with calls whose first half an earlier run has stored, or not.
    """

    def __init__(
        self, redact: Callable[[Item], Item | None] | None, *, resumed: bool = False
    ) -> None:
        self._redact = redact
        self._dropped: set[str] = set()
        self._stored: set[str] = set()
        self.asks_for_stored = redact is not None and resumed
        self._resumed = resumed
        self._answer: str | None = None

    def knows_stored(self, items: Iterable[Item]) -> None:
        """These items of the turn are stored already."""
        self._stored.update(pair for item in items if (pair := pair_id(item)) is not None)
        self.asks_for_stored = False

    def apply(self, items: list[Item]) -> list[Item]:
        """The items to store.

        A call whose output is left out in the same batch is left out with it, and an output
        whose call was left out likewise. Where the call is stored already (it waited for
        approval), its output stays with its content withheld.
        """
        if self._redact is None:
            return items
        redacted = [self._redacted(position, item) for position, item in enumerate(items)]
        self._drop_halves(redacted)
        result = [kept for one in redacted if (kept := self._kept(one)) is not None]
        self._answer = next(filter(None, map(_answer, reversed(result))), None)
        return result

    def _redacted(self, position: int, item: Item) -> _Redacted:
        assert self._redact is not None  # noqa: S101 - the caller has looked
        kept = self._redact(copy.deepcopy(item))  # what the model sees must not change with it
        if kept is not None and not isinstance(kept, dict):
            raise InvalidItem(position, f"redact gave a {type(kept).__name__} for it")
        return _Redacted(pair_id(item), item, kept)

    def _drop_halves(self, redacted: list[_Redacted]) -> None:
        """Note the pairs of which one half is left out, so that neither is stored."""
        calls = {one.pair for one in redacted if one.pair is not None and not one.is_output}
        for one in redacted:
            if one.pair is None or (one.pair in self._stored and one.is_output):
                continue
            without_call = self._resumed and one.is_output and one.pair not in calls
            if one.kept is None or without_call:
                self._dropped.add(one.pair)

    def _kept(self, one: _Redacted) -> Item | None:
        """What is stored of an item, or None."""
        if one.pair is None:
            return one.kept
        if one.pair in self._dropped:
            return None
        self._stored.add(one.pair)
        return {**one.item, "output": WITHHELD} if one.kept is None else one.kept

    def kept_state(self, state: KeptState | None, *, keep: bool) -> KeptState | None:
        """What is stored of the state of a parked run.

        Args:
            keep: its text as well, which nothing is left out of.
        """
        if state is None:
            return None
        calls = tuple(map(self._kept_call, state.calls))
        return replace(state, calls=calls, text=state.text if keep else None)

    def _kept_call(self, call: PendingCall) -> PendingCall:
        if self._redact is None:
            return call
        item = {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        kept = self._redact(item)
        return replace(call, arguments=str((kept or {}).get("arguments", "")))

    def output_text(self, output: str | None) -> str | None:
        """What the turn's record may keep of the output: no more than what was stored of it."""
        return output if self._redact is None else self._answer


def _answer(item: Item) -> str | None:
    """The text of an assistant's message."""
    content = item.get("content")
    if item.get("role") != "assistant" or not content:
        return None
    if isinstance(content, str):
        return content
    return "".join(
        part["text"]
        for part in content
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    )
