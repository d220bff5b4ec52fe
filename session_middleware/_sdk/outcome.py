"""What a run came to, and the name under which an interrupted one waits for approval.

Nothing here knows of stores, turns or telemetry.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agents import RunResult, RunResultStreaming, RunState

from session_middleware._sdk.states import known_calls, text_of_state, waiting_calls
from session_middleware.history import digest
from session_middleware.stores.records import KeptState


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run says of itself.

    Attributes:
        parked: the state of a run that waits for approval, under its name.
    """

    agent: str | None
    output_text: str | None
    parked: KeptState | None


def outcome_of(result: Any) -> Outcome:
    """Read a RunResult or a finished RunResultStreaming.

    Where Runner's methods were replaced it may be anything, and says nothing then.
    """
    agent = getattr(getattr(result, "last_agent", None), "name", None)
    return Outcome(
        agent=agent if isinstance(agent, str) else None,
        output_text=_text(getattr(result, "final_output", None)),
        parked=_parked(result),
    )


def has_run_loop(result: Any) -> bool:
    """Whether this is a streamed run that is going on, and not what replaced one."""
    return isinstance(getattr(result, "run_loop_task", None), asyncio.Future)


def has_ended_early(result: Any) -> bool:
    """Whether a streamed run was cancelled before it had an answer."""
    if not isinstance(result, RunResultStreaming):
        return False
    return result.final_output is None and not result.interruptions


def _parked(result: Any) -> KeptState | None:
    if not isinstance(result, (RunResult, RunResultStreaming)) or not result.interruptions:
        return None
    state = result.to_state()
    return KeptState(parked_identity(state), waiting_calls(state), text_of_state(state))


_COUNTED = ("requests", "input_tokens", "output_tokens", "total_tokens")
_COUNTED_AMONG = (
    ("cached_input_tokens", "input_tokens_details", "cached_tokens"),
    ("reasoning_output_tokens", "output_tokens_details", "reasoning_tokens"),
)


def usage_of(usage: Any) -> dict[str, int]:
    """The requests and tokens in an object of the SDK's that counts them, as far as it knows them.

    Cached and reasoning tokens are among the input and output tokens; without any, they are left
    out.
    """
    counts: dict[str, int] = {}
    for name in _COUNTED:
        count = getattr(usage, name, None)
        if type(count) is int:
            counts[name] = count
    for name, place, detail in _COUNTED_AMONG:
        count = getattr(getattr(usage, place, None), detail, None)
        if count and type(count) is int:
            counts[name] = count
    return counts


def model_name(agent: Any) -> str | None:
    """The name of the model that the agent asks, where it names one."""
    model = getattr(agent, "model", None)
    name = model if isinstance(model, str) else getattr(model, "model", None)
    return name if isinstance(name, str) else None


def _text(output: Any) -> str | None:
    if output is None or isinstance(output, str):
        return output
    dump = getattr(output, "model_dump_json", None)
    if callable(dump):
        return str(dump())
    try:
        return json.dumps(output, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(output)


def parked_identity(state: RunState[Any, Any]) -> str:
    """The name under which a run waits for approval.

    The same for the state of a result, a copy of it, and one that was stored and read again.
    It is made of the SDK trace's id, or of the original input where tracing is off, and of the
    calls that wait: several runs may wait in one trace, and a run may wait more than once. The
    SDK carries a state forward as it resumes it; once nothing waits in it any more, it keeps the
    name it had before.
    """
    identity = _identity(state)
    if state.get_interruptions():
        if id(state) not in _names:
            weakref.finalize(state, _names.pop, id(state), None).atexit = False
        _names[id(state)] = identity
    return _names.get(id(state), identity)


_names: dict[int, str] = {}
"""The names of states that are in use, by ``id``: a state cannot be hashed."""


def _identity(state: RunState[Any, Any]) -> str:
    calls = [
        raw if isinstance(raw, dict) else raw.model_dump(exclude_none=True)
        for raw in (item.raw_item for item in state.get_interruptions())
    ]
    pending = sorted(digest([_identifying(call)]) for call in calls)
    try:
        stored = state.to_json(context_serializer=lambda _: {})
    except Exception:  # a state the SDK cannot serialise is still known by its calls
        return digest(pending)
    trace = (stored.get("trace") or {}).get("id")
    named: list[Any] = [trace or stored.get("original_input"), pending]
    if not pending:  # it was resumed, and the resume failed: its calls tell it from others
        named.append(sorted(known_calls(state)[0]))
    return digest(named)


def resumed_identity(state: RunState[Any, Any]) -> str:
    """The name under which this state, which was resumed, is known once stored."""
    return _identity(state)


def _identifying(call: dict[str, Any]) -> dict[str, Any]:
    return {name: call.get(name) for name in ("type", "call_id", "id", "name", "arguments")}


def find_state(values: Iterable[Any]) -> RunState[Any, Any] | None:
    """The first state of an interrupted run among these values."""
    return next((value for value in values if isinstance(value, RunState)), None)
