"""What a turn hears of its runs while they go on: the RunHooks that the SDK is given for them.

They store what must be stored before a model is called, and report model calls, tool calls and
handoffs, after the user's own hooks, which are called in order. Theirs may raise, as without us;
our reports never break a run. Only a call that could not be written to the journal does, since its
tool must not begin.
"""

from __future__ import annotations

import time
from typing import Any

from session_middleware import _sdk
from session_middleware._turns.manifest import TurnManifest
from session_middleware._turns.tool_calls import calls_here
from session_middleware._turns.turn import ActiveTurn, turn_here
from session_middleware.telemetry import TurnTelemetry, log


class RunReports(_sdk.RunHooks[Any]):
    """RunHooks that report to the turn in force.

    Args:
        hooks: RunHooks that are called first, in this order.
    """

    def __init__(self, *hooks: _sdk.RunHooks[Any]) -> None:
        self._hooks = hooks
        self._telemetry: TurnTelemetry | None = None
        self._manifest: TurnManifest | None = None
        self._asked: int | None = None

    @classmethod
    def behind(
        cls,
        hooks: Any,
        telemetry: TurnTelemetry | None = None,
        manifest: TurnManifest | None = None,
    ) -> Any:
        """The user's hooks and ours behind them; an object of another kind is left to the SDK.

        Args:
            hooks: what the call was given; None: no hooks.
            telemetry: receives the reports where no turn is in force.
            manifest: hears there what the run spends.
        """
        if isinstance(hooks, RunReports) or (
            hooks is not None and not hasattr(hooks, "on_agent_start")
        ):
            return hooks
        composed = cls() if hooks is None else cls(hooks)
        composed._telemetry, composed._manifest = telemetry, manifest
        return composed

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        self._watch(context)
        await self._call_users("on_agent_start", context, agent)
        turn = turn_here()
        self._report_trace(turn)
        self._report(turn, "agent", name=getattr(agent, "name", None))

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        await self._call_users("on_agent_end", context, agent, output)

    async def on_llm_start(
        self, context: Any, agent: Any, system_prompt: Any, input_items: Any
    ) -> None:
        self._watch(context)
        await _flush()
        await self._call_users("on_llm_start", context, agent, system_prompt, input_items)
        self._asked = time.time_ns()

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        await self._call_users("on_llm_end", context, agent, response)
        telemetry = self._telemetry_of(turn_here())
        if telemetry is not None and telemetry.traced:
            spent = _sdk.usage_of(getattr(response, "usage", None))
            telemetry.reported(
                "model_call",
                input_tokens=spent.get("input_tokens", 0),
                output_tokens=spent.get("output_tokens", 0),
            )
            if self._asked is not None:
                telemetry.model_call(self._asked, _sdk.model_name(agent), spent)
        calls = calls_here()
        if calls is not None:
            await calls.responded(agent, response)

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        self._watch(context)
        await self._call_users("on_tool_start", context, agent, tool)
        calls = calls_here()
        if calls is not None:
            await calls.began(context)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        calls = calls_here()
        if calls is not None:  # first, as the tool has ended whatever the user's hooks do
            await calls.ended(context, result)
        await self._call_users("on_tool_end", context, agent, tool, result)
        self._report(turn_here(), "tool_call", name=getattr(tool, "name", None))

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:
        await self._call_users("on_handoff", context, from_agent, to_agent)
        names = {
            "source": getattr(from_agent, "name", None),
            "to": getattr(to_agent, "name", None),
        }
        self._report(turn_here(), "handoff", **names)

    async def _call_users(self, name: str, *arguments: Any) -> None:
        for hooks in self._hooks:
            await getattr(hooks, name)(*arguments)

    def _watch(self, context: Any) -> None:
        """Let the turn know where the run counts what it spends, before it spends anything."""
        manifest = self._manifest
        if manifest is None:
            turn = turn_here()
            manifest = None if turn is None or turn.over else turn.session.manifest
        usage = getattr(context, "usage", None)
        if manifest is not None and usage is not None:
            manifest.watch(usage)

    def _report_trace(self, turn: ActiveTurn | None) -> None:
        try:
            if self._telemetry is None and turn is not None:
                turn.session.report_trace(_sdk.trace_here())
        except Exception as error:
            log.swallowed("hooks", error)

    def _report(self, turn: ActiveTurn | None, kind: str, **fields: Any) -> None:
        telemetry = self._telemetry_of(turn)
        if telemetry is not None and telemetry.traced:
            telemetry.reported(kind, **fields)

    def _telemetry_of(self, turn: ActiveTurn | None) -> TurnTelemetry | None:
        return self._telemetry or (None if turn is None else turn.telemetry)


async def _flush() -> None:
    """Nothing is asked of a model before the items that led to it are stored."""
    turn = turn_here()
    if turn is not None and turn.session.buffer:
        await turn.session.flush()
