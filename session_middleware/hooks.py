"""SessionRunHooks: the part of the middleware that the SDK calls during a run.

It has the turn in force store what is still to be stored before a model is called, and reports to
it what happens in the run, after the user's own hooks, which it calls in order. Theirs may raise,
as without us; our reports never break a run.
"""

from __future__ import annotations

from typing import Any

from session_middleware import _sdk
from session_middleware._turn import turn_here
from session_middleware.telemetry import TurnTelemetry, log


class SessionRunHooks(_sdk.RunHooks[Any]):
    """RunHooks that report model calls, tool calls and handoffs to the turn in force.

    Runs in a session have them already. Name them yourself to compose several hooks:

    >>> class Mine(_sdk.RunHooks): ...
    >>> hooks = SessionRunHooks(Mine(), Mine())

    Args:
        hooks: RunHooks that are called first, in this order.
    """

    def __init__(self, *hooks: _sdk.RunHooks[Any]) -> None:
        self._hooks = hooks
        self._telemetry: TurnTelemetry | None = None

    @classmethod
    def around(cls, hooks: Any, telemetry: TurnTelemetry | None = None) -> Any:
        """These hooks composed with ours; what is no hooks object is left for the SDK to refuse.

        ``telemetry`` is reported to where no turn is in force.
        """
        if isinstance(hooks, cls) or (hooks is not None and not hasattr(hooks, "on_agent_start")):
            return hooks
        composed = cls() if hooks is None else cls(hooks)
        composed._telemetry = telemetry
        return composed

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        await self._user("on_agent_start", context, agent)
        self._report("agent", name=getattr(agent, "name", None))

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        await self._user("on_agent_end", context, agent, output)

    async def on_llm_start(
        self, context: Any, agent: Any, system_prompt: Any, input_items: Any
    ) -> None:
        await _send()
        await self._user("on_llm_start", context, agent, system_prompt, input_items)

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        await self._user("on_llm_end", context, agent, response)
        usage = getattr(response, "usage", None)
        self._report(
            "model_call",
            input_tokens=getattr(usage, "input_tokens", 0),
            output_tokens=getattr(usage, "output_tokens", 0),
        )

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        await self._user("on_tool_start", context, agent, tool)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        await self._user("on_tool_end", context, agent, tool, result)
        self._report("tool_call", name=getattr(tool, "name", None))

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:
        await self._user("on_handoff", context, from_agent, to_agent)
        self._report(
            "handoff", source=getattr(from_agent, "name", None), to=getattr(to_agent, "name", None)
        )

    async def _user(self, name: str, *arguments: Any) -> None:
        for hooks in self._hooks:
            await getattr(hooks, name)(*arguments)

    def _report(self, kind: str, **fields: Any) -> None:
        try:
            turn = turn_here()
            if self._telemetry is not None:
                self._telemetry.reported(kind, **fields)
            elif turn is not None:
                turn.traced(_sdk.trace_here())
                turn.telemetry.reported(kind, **fields)
        except Exception as error:
            log.swallowed("hooks", error)


async def _send() -> None:
    """Nothing is asked of a model before what led to it is stored."""
    turn = turn_here()
    if turn is not None and turn.owes:
        await turn.send()
