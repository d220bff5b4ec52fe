"""What the SDK says of the calls that tools are run for, as plain values.

Nothing here knows of stores or turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agents import Agent, ItemHelpers
from agents.tool_context import ToolContext

LOCAL_CALLS = frozenset(
    {
        "function_call",
        "custom_tool_call",
        "computer_call",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
    }
)
"""The types of calls for which a tool runs in this process."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call in a model's response: its id, the tool's name, and the arguments as text."""

    call_id: str
    name: str
    arguments: str


def has_local_calls(response: Any) -> bool:
    """Whether a model's response has a call for which a tool may run in this process."""
    return any(
        (output.get("type") if isinstance(output, dict) else getattr(output, "type", None))
        in LOCAL_CALLS
        for output in response.output
    )


def response_items(response: Any) -> list[dict[str, Any]]:
    """The items of a model's response, as a run stores them."""
    return [dict(item) for item in response.to_input_items()]


def local_call(item: dict[str, Any], handoffs: frozenset[str] = frozenset()) -> ModelCall | None:
    """The call that an item of a response is, if a tool of this process runs for it.

    Args:
        handoffs: the names under which the agent hands over; those calls run no tool.
    """
    kind, call_id = item.get("type"), item.get("call_id")
    if kind not in LOCAL_CALLS or not isinstance(call_id, str):
        return None
    name = str(item.get("name") or kind)
    if name in handoffs:
        return None
    arguments = item.get("arguments", item.get("input", item.get("action", item.get("operation"))))
    return ModelCall(call_id, name, arguments if isinstance(arguments, str) else repr(arguments))


def handoff_names(agent: Any) -> frozenset[str]:
    """The tool names under which this agent hands over to others."""
    names = set()
    for handoff in getattr(agent, "handoffs", None) or ():
        name = getattr(handoff, "tool_name", None)
        if name is None and isinstance(handoff, Agent):
            name = "transfer_to_" + "".join(
                character if character.isalnum() else "_" for character in handoff.name
            )
        if name is not None:
            names |= {str(name), str(name).lower()}
    return frozenset(names)


def call_of(context: Any) -> ModelCall | None:
    """The call that a tool is being run for; None where the context is not a tool's."""
    if not isinstance(context, ToolContext):
        return None
    return ModelCall(context.tool_call_id, context.tool_name, context.tool_arguments)


def call_item(context: Any) -> dict[str, Any] | None:
    """The item of the call that a tool is being run for, where the SDK tells it."""
    call = getattr(context, "tool_call", None)
    return None if call is None else dict(call.model_dump(exclude_unset=True))


def output_item(context: Any, result: Any) -> dict[str, Any] | None:
    """The output item that the SDK makes of a tool's result; None where it is no function's."""
    call = getattr(context, "tool_call", None)
    if call is None:
        return None
    if getattr(call, "type", None) == "custom_tool_call":
        text = result if isinstance(result, str) else str(result)
        return {"type": "custom_tool_call_output", "call_id": call.call_id, "output": text}
    return dict(ItemHelpers.tool_call_output_item(call, result))


def agent_named(start: Any, name: str) -> Any:
    """The agent of this name that ``start`` can hand over to, directly or not; else ``start``."""
    return next((agent for agent in _reachable(start) if agent.name == name), start)


def _reachable(start: Any) -> Iterator[Any]:
    seen: set[int] = set()
    ahead = [start]
    while ahead:
        agent = ahead.pop(0)
        if agent is None or id(agent) in seen or not hasattr(agent, "handoffs"):
            continue
        seen.add(id(agent))
        yield agent
        for handoff in agent.handoffs or ():
            reference = getattr(handoff, "_agent_ref", None)
            ahead.append(reference() if reference is not None else handoff)
