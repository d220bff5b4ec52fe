"""What a turn that is made again does about the tools of the attempt before: pure rules.

A call that ended is never run again: its output is given to the model. A call that began and did
not end is unknown: the model is told so, or the call is left for the model to make again. No
clock, no storage, no SDK; the items are the SDK's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, TypeAlias

from session_middleware.pairs import CALL_OUTPUTS, is_output, pair_id
from session_middleware.stores.records import CallRecord, Item, JournalEntry

OnUnknown: TypeAlias = Literal["tell", "raise", "rerun"]
Rerun: TypeAlias = Callable[[str], bool] | Collection[str]

UNKNOWN_TEXT = (
    "The outcome of this tool call is unknown: the process stopped while the tool was running, so "
    "its effect may or may not have happened. It was not run again. Check whether the effect "
    "happened before you repeat the call."
)
"""What the model is told in place of the output of an unknown call."""


def base_of(name: str, arguments: str) -> str:
    """A text that is equal for calls of the same tool with the same arguments."""
    try:
        plain = json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        plain = str(arguments)
    return f"{name}\n{plain}"


def key_of(scope: str, base: str, ordinal: int) -> str:
    """The stable key of a call: 32 hexadecimal digits.

    Args:
        scope: what makes the turn the same one when it is made again.
        base: of the tool and its arguments, see ``base_of``.
        ordinal: how many equal calls the turn has made before this one.
    """
    text = json.dumps([scope, base, ordinal], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def may_rerun(name: str, on_unknown: OnUnknown, rerun: Rerun | None) -> bool:
    """Whether the user said that a tool of this name may simply run again."""
    if on_unknown == "rerun":
        return True
    if rerun is None:
        return False
    return bool(rerun(name)) if callable(rerun) else name in rerun


def output_for(call: Item, text: str) -> Item | None:
    """An output item that answers this call with a text.

    None for a call whose output cannot be a text, such as a computer's screenshot.
    """
    kind = CALL_OUTPUTS.get(str(call.get("type")))
    answer: Item = {"type": kind, "call_id": call.get("call_id")}
    if kind in ("function_call_output", "custom_tool_call_output", "local_shell_call_output"):
        return {**answer, "output": text}
    if kind == "shell_call_output":
        failed = {"type": "exit", "exit_code": 1}
        return {**answer, "output": [{"stdout": "", "stderr": text, "outcome": failed}]}
    if kind == "apply_patch_call_output":
        return {**answer, "status": "failed", "output": text}
    return None


def unknown_calls(
    entries: Sequence[JournalEntry], on_unknown: OnUnknown, rerun: Rerun | None
) -> list[CallRecord]:
    """The calls among these that began, did not end, and may not simply run again."""
    return [
        entry.call
        for entry in entries
        if entry.call is not None
        and entry.output is None
        and not may_rerun(entry.call.name, on_unknown, rerun)
    ]


def continuation(
    entries: Sequence[JournalEntry], on_unknown: OnUnknown, rerun: Rerun | None
) -> list[Item]:
    """The items behind which a run goes on whose process stopped while tools were at work.

    The response's items come first, then the outputs, as the SDK stores them. A call that may
    run again is left out, so that the model makes it again; with no call left, nothing is.
    """
    response: list[Item] = []
    outputs: list[Item] = []
    for entry in sorted(entries, key=lambda entry: entry.place):
        if entry.item is None:
            continue
        item: Item = json.loads(entry.item)
        if entry.call is None:
            response.append(item)
            continue
        answer = _answer(entry, item, on_unknown, rerun)
        if answer is not None:
            response.append(item)
            outputs.append(answer)
    return [*response, *outputs] if outputs else []


def _answer(
    entry: JournalEntry, item: Item, on_unknown: OnUnknown, rerun: Rerun | None
) -> Item | None:
    if entry.output is not None:
        answer: Any = json.loads(entry.output)
        return answer if isinstance(answer, dict) else None
    assert entry.call is not None  # noqa: S101 - the caller has looked
    if may_rerun(entry.call.name, on_unknown, rerun):
        return None
    return output_for(item, UNKNOWN_TEXT)


def without_stored(items: Sequence[Item], stored: Sequence[Item]) -> list[Item]:
    """Those of a continuation's items that are not among the stored ones of its run.

    Outputs are always new. A call is known by its id, an item beside calls, such as reasoning, by
    its own ``id`` or else as a whole.
    """
    calls = set(map(pair_id, stored))
    beside = {item["id"] for item in stored if isinstance(item.get("id"), str)}
    return [
        item
        for item in items
        if is_output(item)
        or (
            pair not in calls
            if (pair := pair_id(item)) is not None
            else item not in stored and item.get("id") not in beside
        )
    ]


def spoke_last(items: Sequence[Item]) -> str | None:
    """The name of the agent that the newest handoff among these items went to."""
    for item in reversed(items):
        if item.get("type") != "function_call_output" or not isinstance(item.get("output"), str):
            continue
        try:
            told: Any = json.loads(item["output"])
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and set(told) == {"assistant"}:
            return str(told["assistant"])
    return None
