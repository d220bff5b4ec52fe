"""Runs that wait for approval, for tests: an agent that pays, and states kept in several ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents import RunState

from session_middleware.testing.models import assistant, call, calls, scripted_agent
from tests.support.sessions import counted

Keep = Callable[[Any, Any], Any]
"""How a state is kept until it is resumed: state, agent -> state."""


async def live(state: Any, agent: Any) -> Any:
    """The state as it is."""
    return state


async def serialised(state: Any, agent: Any) -> Any:
    """The state as it comes back from wherever it was kept meanwhile."""
    return await RunState.from_json(agent, state.to_json())


def paying(counts: list[str], *steps: Any, call_id: str | None = None) -> Any:
    """An agent that calls "pay", which needs approval, and then does the steps."""
    return scripted_agent(
        call("pay", call_id=call_id),
        *(steps or (assistant("paid"),)),
        tools=[counted("pay", counts, needs_approval=True)],
    )


def paying_and_shipping(counts: list[str]) -> Any:
    """An agent that calls "pay" and "ship" at once, which both need approval."""
    return scripted_agent(
        calls(("pay", {}), ("ship", {})),
        assistant("done"),
        tools=[counted(name, counts, needs_approval=True) for name in ("pay", "ship")],
    )


async def approved(result: Any, kept: Keep, agent: Any, *, only: int | None = None) -> Any:
    """The state of a result, kept, with its calls (or one of them) approved."""
    state = await kept(result.to_state(), agent)
    pending = state.get_interruptions()
    for item in pending if only is None else [pending[only]]:
        state.approve(item)
    return state
