"""Looking a session over for damage, and storing it without: for those who keep a memory running.

Functions of a memory, beside its methods: no program needs them, since every load leaves corrupt
items out and repairs the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from session_middleware.memory import tell_released
from session_middleware.repair import Receipt, mended, receipt_of
from session_middleware.stores.items import decode_items, encode_items
from session_middleware.stores.managed_store import TurnCopy
from session_middleware.stores.managing import ManagedMemory
from session_middleware.stores.records import TurnState


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found in a session.

    Attributes:
        corrupt: items that are no JSON objects.
        receipt: what repair does to the others.
        left: turns whose process died, and that no other turn has taken over yet.
        abandoned: turns that were taken over when their process had died.
        parked: turns that wait for approval.
        unknown: the name of the tool for each call whose outcome nobody saw.
    """

    turns: int
    items: int
    corrupt: int
    receipt: Receipt
    left: int
    abandoned: int
    parked: int
    unknown: tuple[str, ...]


async def examine(memory: ManagedMemory, session_id: str, state: TurnState | None) -> Examined:
    """Look a session over; nothing is changed.

    Args:
        state: of its newest turn, as ``session_info`` tells it.
    """
    items: list[Any] = []
    states: list[TurnState] = []
    unknown: list[str] = []
    async for copy in memory.copies(session_id):
        items += _decoded(copy)
        states.append(copy.record.state)
        over = copy.record.state != "running" or state == "abandoned"
        unknown += [
            entry.call.name
            for entry in copy.journal
            if entry.call is not None
            and (entry.call.state == "unknown" or (entry.call.state == "begun" and over))
        ]
    readable = [item for item in items if item is not None]
    _, faults = mended(readable)
    return Examined(
        turns=len(states),
        items=len(items),
        corrupt=len(items) - len(readable),
        receipt=receipt_of(faults),
        left=states.count("running") if state == "abandoned" else 0,
        abandoned=states.count("abandoned"),
        parked=states.count("awaiting_approval"),
        unknown=tuple(unknown),
    )


async def mend(memory: ManagedMemory, session_id: str) -> bool:
    """Store a session without its corrupt items, and as repair makes it; settle a dead turn.

    Every turn keeps its number and record. Returns whether the history was changed.

    Raises:
        SessionBusy: a turn holds the session, and went on doing so.
    """
    async with memory.held(session_id) as lease:
        info = await memory.session_info(session_id)
        copies = [c async for c in memory.copies(session_id) if c.record.turn != lease.turn]
        better = _mended(copies)
        changed = info is not None and better != copies
        if info is not None and changed:
            await memory.write_copies(lease, info, better, 0)
        else:
            await memory.let_go(lease)
    tell_released(memory.identity, session_id)
    return changed


def _decoded(copy: TurnCopy) -> list[Any]:
    items, _ = decode_items(copy.texts)
    return list(items)


def _mended(copies: Sequence[TurnCopy]) -> list[TurnCopy]:
    """The turns as they are to be stored; an item that moves goes to the run of its call."""
    homes = [
        (at, run.run, text)
        for at, copy in enumerate(copies)
        for run in copy.runs
        for text in run.texts
    ]
    items, _ = decode_items([text for _, _, text in homes])
    entries, faults = mended(items)
    moved = {fault.position for fault in faults if fault.kind == "misplaced_output"}
    texts: dict[tuple[int, int], list[str]] = {}
    home = (0, 0)
    for position, item in entries:
        at, run, text = homes[position]
        if position not in moved:
            home = (at, run)
        same = item is items[position]
        texts.setdefault(home, []).append(text if same else encode_items([item])[0])
    return [
        replace(
            copy,
            runs=tuple(
                replace(run, texts=tuple(texts.get((at, run.run), ()))) for run in copy.runs
            ),
        )
        for at, copy in enumerate(copies)
    ]
