"""A user's run hooks beside those of a turn: they hear what they would hear without a session."""

from __future__ import annotations

from typing import Any

import pytest
from agents import RunHooks, handoff

from session_middleware import InMemorySessionMemory
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.sessions import METHODS, carried_out, counted, run_by


class Heard(RunHooks[Any]):
    """Notes the name of each hook that is called."""

    def __init__(self) -> None:
        self.names: list[str] = []


def _noting(name: str) -> Any:
    async def hook(self: Heard, *args: Any, **named: Any) -> None:
        self.names.append(name)

    return hook


for _name in [name for name in dir(RunHooks) if name.startswith("on_")]:
    setattr(Heard, _name, _noting(_name))


def handing_over() -> Any:
    """An agent that uses a tool and hands over to one that answers."""
    other = scripted_agent(assistant("done"))
    other.name = "Other"
    over = handoff(other)
    return scripted_agent(
        call("look"), call(over.tool_name), tools=[counted("look", [])], handoffs=[over]
    )


@pytest.mark.parametrize("method", METHODS)
async def test_a_users_hooks_hear_every_event_of_a_run(method: str) -> None:
    """Every hook of the SDK is called as often and in the same order as without a session."""
    alone, beside = Heard(), Heard()
    await run_by(method, handing_over(), "Hi", hooks=alone)
    await carried_out(method, handing_over(), "Hi", InMemorySessionMemory(), hooks=beside)
    assert beside.names == alone.names
    assert set(alone.names) == {name for name in dir(RunHooks) if name.startswith("on_")}
