"""Which items of a history belong together: a call and its output, a program and what it made.

Pure functions on items, and nothing else decides it. What a provider accepts is in ``repair``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

CALL_OUTPUTS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
}
"""Each type of call that is answered by an item of its own, and the type of that item."""

ID_FIELDS = {
    **dict.fromkeys(CALL_OUTPUTS, "call_id"),
    **dict.fromkeys(CALL_OUTPUTS.values(), "call_id"),
    "mcp_approval_request": "id",
    "mcp_approval_response": "approval_request_id",
}
"""The field that ties the two halves of a pair, by the type of either half."""

ANSWERED_TYPES = {output: call for call, output in CALL_OUTPUTS.items()} | {
    "mcp_approval_response": "mcp_approval_request"
}
"""Each type that answers another one, and the type that it answers."""

INPUT_ROLES = ("user", "system", "developer")

Item: TypeAlias = dict[str, Any]
Entry: TypeAlias = tuple[int, Item]  # the position in the history that was given, and the item
Key: TypeAlias = tuple[str, str | None]  # the type of a call, and its id


# --- one item ------------------------------------------------------------------------------


def is_output(item: object) -> bool:
    """Whether this is the output of a call; a type that is not known here says it by its name."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    return isinstance(kind, str) and kind.endswith("_output")


def pair_id(item: Mapping[str, Any]) -> str | None:
    """The id that a call and its output have in common; None for items that are no half of a pair.

    A type that is not known here is a half if it has a ``call_id``.
    """
    kind = item.get("type")
    found = item.get(ID_FIELDS.get(kind, "call_id") if isinstance(kind, str) else "call_id")
    return found if isinstance(found, str) else None


def calls_in(items: Iterable[Item]) -> dict[str, Item]:
    """The calls among these items that are answered by an item of its own, by their ids."""
    return {
        call_id: item
        for item in items
        if item.get("type") in CALL_OUTPUTS and (call_id := pair_id(item)) is not None
    }


def answered_in(items: Iterable[Mapping[str, Any]]) -> set[str]:
    """The ids of the calls whose outputs are among these items."""
    return {call_id for item in items if is_output(item) and (call_id := pair_id(item)) is not None}


def is_input_message(item: Item) -> bool:
    """Whether this is a message that no model made; no pair and no thought goes across it."""
    return item.get("role") in INPUT_ROLES and item.get("type") in (None, "message")


def call_key(item: Item) -> Key | None:
    """What a call has in common with its output; None for other items and calls without an id.

    Only the calls of a hosted tool search have no id; those are told apart by their order.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in ID_FIELDS:
        return None
    call = ANSWERED_TYPES.get(kind, kind)
    call_id = pair_id(item)
    if call_id is not None:
        return call, call_id
    return (call, None) if call == "tool_search_call" else None


def program_of(item: Item) -> str | None:
    """The call id of the program that made this item."""
    caller: object = item.get("caller")
    if not isinstance(caller, dict) or caller.get("type") != "program":
        return None
    caller_id = caller.get("caller_id")
    return caller_id if isinstance(caller_id, str) else None


def without_open_calls(items: Sequence[Item]) -> list[Item]:
    """The items but for the calls that nothing answers, and the reasoning right before each.

    The SDK leaves them out of what a model is given: they wait for an approval, or never ran.
    """
    answered = answered_in(items)
    kept: list[Item] = []
    for item in items:
        if item.get("type") in CALL_OUTPUTS and (pair_id(item) not in answered):
            while kept and kept[-1].get("type") == "reasoning":
                kept.pop()
        else:
            kept.append(item)
    return kept


# --- a history -----------------------------------------------------------------------------


class Answer(NamedTuple):
    """The call that an output answers, by its index, and whether the output is not behind it."""

    call: int
    misplaced: bool


def calls_answered(entries: list[Entry]) -> dict[int, Answer]:
    """Which call each output answers, both by their index in ``entries``; orphans are left out.

    Ids may repeat. An output answers the first open call of its id in the newest stretch
    between input messages that has one; where no call is open yet, the first one that stays
    open after it in its own stretch.
    """
    open_calls: dict[Key, dict[int, deque[int]]] = {}
    early: list[tuple[int, Key, int]] = []
    answers: dict[int, Answer] = {}
    stretch = 0
    for at, (_, item) in enumerate(entries):
        if is_input_message(item):
            stretch += 1
            continue
        key = call_key(item)
        if key is None:
            continue
        if item["type"] not in ANSWERED_TYPES:
            open_calls.setdefault(key, {}).setdefault(stretch, deque()).append(at)
        elif stretches := open_calls.get(key):
            newest = next(reversed(stretches))
            answers[at] = Answer(_first_open(stretches, newest), misplaced=newest != stretch)
        else:
            early.append((at, key, stretch))
    for at, key, stretch in early:
        stretches = open_calls.get(key, {})
        if stretch in stretches:
            answers[at] = Answer(_first_open(stretches, stretch), misplaced=True)
    return answers


def _first_open(stretches: dict[int, deque[int]], stretch: int) -> int:
    calls = stretches[stretch]
    call = calls.popleft()
    if not calls:
        del stretches[stretch]
    return call
