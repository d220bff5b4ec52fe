"""States of runs that wait for approval: what they know, and copies in which calls are settled.

Nothing here knows of stores or turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agents import RunState

from session_middleware.pairs import answered_in
from session_middleware.stores.records import PendingCall


def pending_calls(state: RunState[Any, Any]) -> list[str]:
    """The ids of the calls that wait for approval, or did when the state was made."""
    return [call_id for item in state.get_interruptions() if (call_id := _id_of(item)) is not None]


def waiting_calls(state: RunState[Any, Any]) -> tuple[PendingCall, ...]:
    """The calls that wait for approval, as a memory tells of them."""
    return tuple(
        PendingCall(call_id, str(item.name or ""), _arguments_of(item.raw_item))
        for item in state.get_interruptions()
        if (call_id := _id_of(item)) is not None
    )


def text_of_state(state: RunState[Any, Any]) -> str | None:
    """The state as JSON; None where the SDK cannot write it.

    A context object is left out unless it is a mapping that JSON can hold.
    """
    try:
        stored = state.to_json(context_serializer=lambda _: {})
    except Exception:  # as where two agents cannot be told apart
        return None
    for left_out in (False, True):
        if left_out:
            stored["context"]["context"] = {}
        try:
            return json.dumps(stored)
        except (TypeError, ValueError):
            continue
    return None


async def restored(
    text: str, calls: Sequence[PendingCall], agent: Any, context: Any
) -> RunState[Any, Any]:
    """The state that this is the text of, with the decisions on its calls.

    Args:
        context: the context object of the run; None: what the text has of it.
    """
    given = {} if context is None else {"context_override": context}
    state: RunState[Any, Any] = await RunState.from_json(agent, json.loads(text), **given)
    decided = {call.id: call for call in calls if call.approved is not None}
    for item in state.get_interruptions():
        call = decided.get(_id_of(item) or "")
        if call is not None and call.approved:
            state.approve(item)
        elif call is not None:
            state.reject(item, rejection_message=call.message)
    return state


class KnownCalls(NamedTuple):
    """The ids of calls that a state knows of.

    Attributes:
        known: all of them.
        answered: those whose outputs it has.
        begun: those whose tools began in an earlier resume, and gave no output. The SDK refuses
            a state that holds one.
    """

    known: frozenset[str]
    answered: frozenset[str]
    begun: frozenset[str]


def known_calls(state: RunState[Any, Any]) -> KnownCalls:
    """The calls that the state knows of."""
    stored = state.to_json(context_serializer=lambda _: {})
    found = list(_items_with_call_ids(stored))
    begun = frozenset(
        call_id
        for calls in _invocations(stored)
        for call_id, one in calls.items()
        if one.get("executed") and not one.get("completed")
    )
    known = frozenset(item["call_id"] for item in found)
    return KnownCalls(known, frozenset(answered_in(found)), begun)


def context_of(state: RunState[Any, Any]) -> Any:
    """The user's context object of the run, which its JSON may leave out."""
    return getattr(getattr(state, "_context", None), "context", None)


async def settled(
    state: RunState[Any, Any], agent: Any, outputs: Mapping[str, str]
) -> RunState[Any, Any]:
    """A copy of the state in which these calls are answered without running their tools.

    The state itself stays as it was. The copy holds no call that began: each of them is answered,
    or is to run again.

    Args:
        agent: the one that the run is resumed with.
        outputs: the text for each call id.
    """
    stored = state.to_json(context_serializer=lambda _: {})
    for calls in _invocations(stored):
        for one in calls.values():
            one["executed"] = bool(one.get("completed"))
    copy: RunState[Any, Any] = await RunState.from_json(
        agent, stored, context_override=context_of(state)
    )
    for item in copy.get_interruptions():
        text = outputs.get(_id_of(item) or "")
        if text is not None:
            copy.reject(item, rejection_message=text)
    return copy


def _arguments_of(raw: Any) -> str:
    found = raw.get("arguments") if isinstance(raw, dict) else getattr(raw, "arguments", None)
    return found if isinstance(found, str) else ""


def _id_of(item: Any) -> str | None:
    raw = item.raw_item
    found = raw.get("call_id") if isinstance(raw, dict) else getattr(raw, "call_id", None)
    return found if isinstance(found, str) else None


def _invocations(value: Any) -> Iterator[dict[str, dict[str, Any]]]:
    """What this part of a state's JSON says of the calls of a run, and of runs within it."""
    if isinstance(value, dict):
        calls = value.get("tool_invocations")
        if isinstance(calls, dict):
            yield calls
        for child in value.values():
            yield from _invocations(child)
    elif isinstance(value, list):
        for child in value:
            yield from _invocations(child)


def _items_with_call_ids(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in this part of a state's JSON that has a call id."""
    if isinstance(value, dict):
        if isinstance(value.get("call_id"), str):
            yield value
        for child in value.values():
            yield from _items_with_call_ids(child)
    elif isinstance(value, list):
        for child in value:
            yield from _items_with_call_ids(child)
