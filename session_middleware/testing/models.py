"""Models that run here: one that answers from its input, and the steps of a scripted one.

An answer of ``LocalModel`` that needs an earlier turn is right only when that turn is in the
model's input. It keeps nothing between calls, reads no file and opens no connection. The scripted
model is the SDK's; here are short forms of its steps.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

from agents import (
    Agent,
    AgentOutputSchemaBase,
    FunctionTool,
    Handoff,
    ModelResponse,
    ModelSettings,
    Tool,
)
from agents.models.interface import Model, ModelTracing
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseTextDeltaEvent

from session_middleware.testing.replies import answer, messages_of, next_call, outputs_of

__all__ = [
    "LocalModel",
    "assistant",
    "call",
    "calls",
    "failure",
    "handoff_to",
    "local_agent",
    "model_of",
    "scripted_agent",
]


class LocalModel(Model):
    """A model that answers only from the history it is given; it streams word by word.

    It knows the names that people give themselves ("I'm Alice", "What's my name?"), the city and
    the state of the Golden Gate Bridge, and what it was told first ("What did I tell you?"). To
    anything else it says how many messages it has heard. It can be copied and sent to other
    processes.

    Args:
        uses_tools: call a tool, or hand over to an agent, that the user's message names, with the
            numbers and the quoted text of the message as arguments; then tell the tool's output.
            Default False: it never does.

    Example:
        agent = Agent(name="Assistant", model=LocalModel())
    """

    def __init__(self, *, uses_tools: bool = False) -> None:
        self.uses_tools = uses_tools

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Any],
        tracing: ModelTracing,
        **kwargs: Any,
    ) -> ModelResponse:
        """Answer in one piece."""
        return await self._next(input, tools, handoffs).get_response(
            *(system_instructions, input, model_settings, tools, output_schema, handoffs, tracing),
            **kwargs,
        )

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Any],
        tracing: ModelTracing,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Answer as the provider's own stream of events."""
        events = self._next(input, tools, handoffs).stream_response(
            *(system_instructions, input, model_settings, tools, output_schema, handoffs, tracing),
            **kwargs,
        )
        async for event in events:
            if isinstance(event, ResponseTextDeltaEvent):
                for word in re.findall(r"\S+\s*", event.delta):
                    yield event.model_copy(update={"delta": word})
            else:
                yield event

    def _next(
        self, given: str | list[Any], tools: list[Tool], handoffs: list[Any]
    ) -> ScriptedModel:
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        step = self._tool_step(items, tools, handoffs) if self.uses_tools else None
        return ScriptedModel([step or assistant(answer(messages_of(items)))])

    def _tool_step(
        self, items: list[Any], tools: list[Tool], handoffs: list[Any]
    ) -> ModelStep | None:
        schemas = {
            tool.name: tool.params_json_schema for tool in tools if isinstance(tool, FunctionTool)
        }
        agents = {each.tool_name: each.agent_name for each in handoffs}
        made = next_call(items, schemas, agents)
        if made is not None:
            return call(made.name, made.arguments)
        outputs = outputs_of(items)
        return assistant(f"The tool says: {', '.join(outputs)}") if outputs else None


# --- scripts -------------------------------------------------------------------------------


def _new_id(kind: str) -> str:
    # Of its own, since the SDK takes items with the same id for the same item.
    return f"{kind}_{secrets.token_hex(8)}"


def assistant(text: str) -> ModelStep:
    """A step of a scripted model: it answers with this text."""
    return ModelStep(output=[assistant_message(text, item_id=_new_id("msg"))])


def call(name: str, args: dict[str, Any] | None = None, *, call_id: str | None = None) -> ModelStep:
    """A step of a scripted model: it calls one tool.

    Args:
        name: the tool's name.
        args: the call's arguments. Default none.
        call_id: the id of the call. Default a new one.
    """
    return ModelStep(output=[function_call(name, args or {}, call_id=call_id or _new_id("call"))])


def calls(*named: tuple[str, dict[str, Any]]) -> ModelStep:
    """A step of a scripted model: it calls several tools at once, each (name, arguments)."""
    return ModelStep(
        output=[function_call(name, args, call_id=_new_id("call")) for name, args in named]
    )


def handoff_to(agent: Agent[Any]) -> ModelStep:
    """A step of a scripted model: it hands the conversation over to one of its ``handoffs``."""
    return call(Handoff.default_tool_name(agent))


def failure(error: Exception | str = "the model is down") -> ModelStep:
    """A step of a scripted model: it raises this error, or a RuntimeError with this text."""
    return ModelStep.raise_error(RuntimeError(error) if isinstance(error, str) else error)


def scripted_agent(*steps: Any, name: str = "Assistant", **agent_options: Any) -> Agent[Any]:
    """An agent whose model takes these steps in order, one for each call of the model.

    Args:
        steps: ``assistant``, ``call``, ``calls``, ``handoff_to``, ``failure``, or whatever else
            ``agents.testing.ScriptedModel`` takes.
        name: the agent's name. Default "Assistant".
        agent_options: further options of the Agent, such as ``tools=``.

    Example:
        agent = scripted_agent(call("add", {"a": 1, "b": 2}), assistant("3"), tools=[add])
    """
    return Agent(name=name, model=ScriptedModel(steps), **agent_options)


def local_agent(
    *, name: str = "Assistant", uses_tools: bool = False, **agent_options: Any
) -> Agent[Any]:
    """An agent whose model answers only from the history it is given: see ``LocalModel``.

    Args:
        name: the agent's name. Default "Assistant".
        uses_tools: call tools and hand over as a message asks. Default False.
        agent_options: further options of the Agent.

    Example:
        agent = local_agent(instructions="Reply very concisely.")
    """
    return Agent(name=name, model=LocalModel(uses_tools=uses_tools), **agent_options)


def model_of(agent: Agent[Any]) -> ScriptedModel:
    """The scripted model of an agent, with the ``calls`` that it has had.

    Raises:
        TypeError: the agent was not made by ``scripted_agent``.
    """
    if not isinstance(agent.model, ScriptedModel):
        raise TypeError(
            f"model_of() needs an agent of scripted_agent(), got one whose model is "
            f"{type(agent.model).__name__}"
        )
    return agent.model
