"""How a run goes on from what an earlier attempt left: of the same turn, or of a parked one.

What is decided about calls and states is in ``effects`` and ``_turns.resume``; here it is carried
out on the run that is about to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from session_middleware import effects
from session_middleware._sdk import states, tools
from session_middleware._turns.resume import ResumePlan, StateFacts, plan, unanswered
from session_middleware._turns.runs import LeftRun
from session_middleware.errors import (
    MemoryUnavailable,
    OutcomeUnknown,
    UnknownState,
)
from session_middleware.memory import set_restorer
from session_middleware.pairs import answered_in, pair_id
from session_middleware.stores.protocol import JOURNAL
from session_middleware.stores.records import CallRecord, Item

if TYPE_CHECKING:
    from session_middleware._turns.run_session import RunSession
    from session_middleware.stores.managed_store import PendingTurn


async def adopt(run: RunSession, left: LeftRun | None, number: int) -> int:
    """Let the run take over what earlier ones left; returns how many items it starts with.

    Raises:
        OutcomeUnknown: tools began there and nobody saw their end, and the options say raise.
    """
    kept = 0
    while left is not None:
        await _tell_of_calls(run, left)
        kept += await run.held.adopt(left, number)
        left = left.also
    return kept


async def _tell_of_calls(run: RunSession, left: LeftRun) -> None:
    """Store, behind the items of an earlier run, the calls that it had not handed over."""
    held, options = run.held, run.turn.options
    if not held.journal.left(left.run):
        return
    stored = await held.load_own(None)
    entries = held.journal.left(left.run, stored)
    _report(run, effects.unknown_calls(entries, options.on_unknown, options.rerun))
    items = effects.continuation(entries, options.on_unknown, options.rerun)
    items = effects.without_stored(items, stored)
    if items:
        await held.append(left.run, left.items, items, left.input_digest or "")
        held.journal.told(left.run, answered_in(items))


def _report(run: RunSession, unknown: Sequence[CallRecord]) -> None:
    if unknown:
        run.turn.telemetry.unknown(len(unknown))
        if run.turn.options.on_unknown == "raise":
            raise OutcomeUnknown(unknown)


def may_hand_over(agent: Any) -> bool:
    """Whether a run of this agent may have gone on with another one."""
    return bool(tools.handoff_names(agent))


async def agent_that_spoke(run: RunSession) -> Any:
    """The agent that a continued run goes on with: after a handoff, the one handed over to."""
    start = run.call.starting_agent
    if not may_hand_over(start):
        return start
    name = effects.spoke_last(await run.held.load_own(None))
    return start if name is None else tools.agent_named(start, name)


# --- parked runs -----------------------------------------------------------------------------


async def resume(run: RunSession, number: int) -> None:
    """Change the call of a resumed run where an earlier resume of the same run did not complete.

    Raises:
        OutcomeUnknown: as for ``adopt``.
    """
    turn, state = run.turn, run.call.input
    if JOURNAL not in turn.options.capabilities or not turn.resumed:
        return
    stored = await run.held.load_own(None)
    facts = StateFacts(tuple(states.pending_calls(state)), *states.known_calls(state))
    options = turn.options
    entries = turn.session.journal.entries(texts=True)
    made = plan(facts, stored, entries, options.on_unknown, options.rerun)
    _report(run, made.unknown)
    await run.calls.begin_outer(_outer(facts, stored))
    if made.way != "resume":
        await _carry_out(run, number, made)


def _outer(facts: StateFacts, stored: Sequence[Item]) -> Sequence[Item]:
    known = set(map(pair_id, stored))
    nested = any(call_id not in known for call_id in facts.pending)
    return unanswered(stored, facts.pending) if nested else ()


async def _carry_out(run: RunSession, number: int, made: ResumePlan) -> None:
    state = run.call.input
    if made.way == "settle":
        agent = run.call.starting_agent
        run.call.replace_input(await states.settled(state, agent, made.outputs))
        return
    if made.items:
        await run.held.append(number, 0, made.items, "")
        run.starts_behind(len(made.items))
    run.continues_behind_stored()
    run.call.continue_with(await agent_that_spoke(run), states.context_of(state))


async def restored(waiting: PendingTurn, agent: Any, context: Any) -> Any:
    """The SDK's state of a run that waits, with every noted decision applied.

    Raises:
        UnknownState: the memory was told not to keep the state.
        MemoryUnavailable: somebody else changed what is stored of it.
    """
    if waiting.state is None:
        raise UnknownState(
            f"the state of turn {waiting.turn} of session {waiting.session_id!r} was not kept: it "
            "ran with keep_state=False, or with redact. Resume it from the state that you have, "
            "or pass keep_state=True"
        )
    try:
        return await states.restored(waiting.state, waiting.calls, agent, context)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MemoryUnavailable(
            f"the state of turn {waiting.turn} of session {waiting.session_id!r} cannot be read: "
            "somebody else changed it. Restore the memory from a backup, or undo the turn"
        ) from error


set_restorer(restored)
