"""Short forms of the SDK's scripted model, for tests that say what a model answers.

agent = scripted_agent(call("add", {"a": 1, "b": 2}), assistant("3"))
"""

from __future__ import annotations

import itertools
from typing import Any

from agents import Agent
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from session_middleware._demo_model import LocalModel

_numbers = itertools.count(1)


def assistant(text: str) -> ModelStep:
    """A model turn that says ``text``; every one has a message id of its own."""
    return ModelStep(output=[assistant_message(text, item_id=f"msg_{next(_numbers)}")])


def call(name: str, args: dict[str, Any] | None = None, *, call_id: str | None = None) -> ModelStep:
    """A model turn that calls one tool."""
    call_id = call_id or f"call_{next(_numbers)}"
    return ModelStep(output=[function_call(name, args or {}, call_id=call_id)])


def calls(*named: tuple[str, dict[str, Any]]) -> ModelStep:
    """A model turn that calls several tools at once."""
    return ModelStep(
        output=[function_call(name, args, call_id=f"call_{next(_numbers)}") for name, args in named]
    )


def scripted_agent(*steps: Any, **agent_options: Any) -> Agent[Any]:
    """An agent whose model gives these steps in order; reach it as ``agent.model``."""
    return Agent(name="Assistant", model=ScriptedModel(steps), **agent_options)


def local_agent(**agent_options: Any) -> Agent[Any]:
    """An agent whose model answers only from the input it is given, any number of times."""
    return Agent(name="Assistant", model=LocalModel(), **agent_options)


def model_of(agent: Agent[Any]) -> ScriptedModel:
    """The scripted model of an agent made by ``scripted_agent``."""
    assert isinstance(agent.model, ScriptedModel)
    return agent.model
