"""How a parked run is resumed when an earlier resume of it did not complete: a pure rule.

The state that a user kept may be older than the items of its turn: an earlier resume ran tools,
stored their outputs, even called the model again. No tool that ended may run again, whatever state
comes back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from session_middleware.effects import UNKNOWN_TEXT, OnUnknown, Rerun, may_rerun, output_for
from session_middleware.pairs import answered_in, calls_in, is_output, pair_id
from session_middleware.stores.records import CallRecord, Item, JournalEntry


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """What is to be done with a state.

    Attributes:
        way: "resume" the state as it is; "settle" some of its calls in a copy, and resume that; or
            "continue" behind the turn's stored items with no state at all.
        outputs: the text for each call that is settled.
        items: outputs to be stored before the run continues.
        unknown: the calls that began in an earlier resume and did not end.
    """

    way: Literal["resume", "settle", "continue"]
    outputs: dict[str, str] = field(default_factory=dict, repr=False)
    items: list[Item] = field(default_factory=list, repr=False)
    unknown: tuple[CallRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What a state knows of its calls, by their ids.

    Attributes:
        pending: those that wait for approval, or did.
        known: all that it has seen.
        answered: those that have outputs.
        begun: those that began in an earlier resume and have none.
    """

    pending: tuple[str, ...]
    known: frozenset[str]
    answered: frozenset[str] = frozenset()
    begun: frozenset[str] = frozenset()


def plan(
    state: StateFacts,
    stored: Sequence[Item],
    journal: Sequence[JournalEntry],
    on_unknown: OnUnknown,
    rerun: Rerun | None,
) -> ResumePlan:
    """Decide how the state is resumed.

    Args:
        stored: the items of the parked turn.
        journal: the entries of the turn's calls.
    """
    calls = {one: item for one, item in calls_in(stored).items() if one in state.known}
    answered = answered_in(stored) & state.known
    nested = any(call_id not in calls for call_id in state.pending)
    waiting = [call_id for call_id in calls if call_id not in answered]
    outer = [call_id for call_id in waiting if call_id not in state.pending] if nested else []
    ended = {
        entry.call.call_id: json.loads(entry.output)
        for entry in journal
        if entry.call is not None and entry.output is not None and entry.call.call_id in waiting
    }
    unknown = tuple(
        entry.call
        for entry in journal
        if entry.call is not None
        and entry.call.call_id in waiting
        and entry.call.call_id not in ended
        and entry.call.state in ("begun", "unknown", "failed")
        and not may_rerun(entry.call.name, on_unknown, rerun)
    )
    told = {call.call_id for call in unknown}
    concerned = [*(call_id for call_id in state.pending if call_id in calls), *outer]
    beyond = _went_on(state, journal)
    if not (beyond or answered - state.answered or ended or told or state.begun):
        return ResumePlan("resume")
    if beyond or all(one in answered or one in ended or one in told for one in concerned):
        items = [
            answer
            for call_id in waiting
            if (answer := ended.get(call_id) or _told(calls[call_id], call_id in told)) is not None
        ]
        return ResumePlan("continue", items=items, unknown=unknown)
    texts = {
        call_id: _text(item)
        for item in stored
        if is_output(item) and (call_id := pair_id(item)) in state.pending and call_id is not None
    }
    texts |= {call_id: _text(item) for call_id, item in ended.items()}
    texts |= dict.fromkeys(told, UNKNOWN_TEXT)
    if told & set(outer):  # the agent behind it goes on, and hears of its own calls
        inner = (call_id for call_id in state.pending if call_id not in calls)
        texts |= dict.fromkeys(inner, UNKNOWN_TEXT)
    return ResumePlan("settle", outputs=texts, unknown=unknown)


def _went_on(state: StateFacts, journal: Sequence[JournalEntry]) -> bool:
    """Whether a run of the state's own calls made others that the state does not know.

    Other runs of the turn have nothing to do with it.
    """
    made = [(entry.run, entry.call.call_id) for entry in journal if entry.call is not None]
    own = {run for run, call_id in made if call_id in state.known}
    return any(run in own and call_id not in state.known for run, call_id in made)


def unanswered(stored: Sequence[Item], pending: Collection[str]) -> list[Item]:
    """The stored calls that are answered by nothing and wait for nobody's approval.

    They are calls of agents used as tools whose own calls wait for approval.
    """
    settled = answered_in(stored) | set(pending)
    return [item for call_id, item in calls_in(stored).items() if call_id not in settled]


def _told(call: Item, is_told: bool) -> Item | None:
    return output_for(call, UNKNOWN_TEXT) if is_told else None


def _text(item: Item) -> str:
    output = item.get("output")
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
