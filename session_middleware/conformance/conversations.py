"""Conversations as tests of managing them make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from session_middleware.conformance.samples import assistant, call, user
from session_middleware.conformance.steps import acquire, end
from session_middleware.stores.managed_store import PendingTurn, SessionInfo
from session_middleware.stores.records import Acquired, KeptState, PendingCall

WAITS = PendingCall("call_f", "refund", '{"amount": 3}')
LABELS = {"a": 1, "b": [None, {"c": "\N{WHITE SMILING FACE}"}]}


async def lines_of(memory: Any, *session_ids: str, **given: Any) -> list[str]:
    """The lines of an export."""
    return [line async for line in memory.export(*session_ids, **given)]


async def whole_session(turns: Any, session_id: str = "s") -> None:
    """A session with turns of several kinds: keyed, failed, discarded, parked, from outside."""
    first = await acquire(turns, session_id, idempotency_key="key", input_digest="digest")
    await turns.append_items(first.lease, 1, 0, [user("1")], input_digest="digest")
    await turns.append_items(first.lease, 2, 0, [assistant("1")])
    told: dict[str, Any] = {"otel_trace_id": f"{1:032x}", "sdk_trace_ids": (f"trace_{session_id}",)}
    told |= {"usage": {"requests": 1}, "output_text": "one", "agent": "A", "waited": 0.25}
    await end(turns, first, runs={1: "completed", 2: "completed"}, **told)
    failed = await acquire(turns, session_id)
    await turns.append_items(failed.lease, 1, 0, [user("2")])
    await end(turns, failed, "failed", runs={1: "failed"}, error_type="ValueError")
    discarded = await acquire(turns, session_id)
    await turns.append_items(discarded.lease, 1, 0, [user("3")])
    await end(turns, discarded, "failed", discard=True)
    await parked(turns, session_id)
    await turns.append_to_session(session_id, [user("outside"), assistant("o")])


async def parked(turns: Any, session_id: str = "s", identity: str = "p") -> Acquired:
    """A turn that waits for the approval of one call."""
    acquired = await acquire(turns, session_id)
    await turns.append_items(acquired.lease, 1, 0, [user("refund"), call("f")])
    state = KeptState(identity, (WAITS,), '{"state": "of the run"}')
    await end(
        turns,
        acquired,
        "awaiting_approval",
        park=(identity,),
        states=(state,),
        runs={1: "awaiting_approval"},
    )
    return acquired


async def corrupted(turns: Any, session_id: str, turn: int) -> None:
    """Put text that is no JSON in place of each item of a turn, as another program might."""
    info = await turns.session_info(session_id)
    copies = await turns.read_copies(session_id, 0, 1000)
    broken = [
        replace(
            copy,
            runs=tuple(
                replace(run, texts=tuple('{"cut off' for _ in run.texts)) for run in copy.runs
            ),
        )
        if copy.record.turn == turn
        else copy
        for copy in copies
    ]
    await turns.put_session(info, broken, replaces=True)


def ids(page: Sequence[SessionInfo | PendingTurn]) -> list[str]:
    """The ids of the sessions that are told of."""
    return [info.session_id for info in page]
