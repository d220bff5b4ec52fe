"""The end of a turn: write its record with what is still to be stored, let the session go, report.

Called once for each turn, when the last participant has left or its time is over.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING

from session_middleware import _sdk
from session_middleware._turns import queue
from session_middleware._turns.manifest import digest_of, usage_of
from session_middleware._turns.redact import Redaction
from session_middleware.errors import MemoryUnavailable, SessionMemoryError, TurnLost
from session_middleware.stores.records import JournalEntry, Lease, RunItems, TurnEnd
from session_middleware.telemetry import REFUSALS, Said

if TYPE_CHECKING:
    from session_middleware._turns.turn import ActiveTurn


async def end_quietly(turn: ActiveTurn) -> None:
    """End the turn where an error has nobody to hear it; telemetry does."""
    with suppress(Exception):
        await turn.end()


async def end(turn: ActiveTurn) -> None:
    """Write the record, let the session go, report."""
    turn.expiry.stop()
    record = _record(turn)
    failure: BaseException | None = None
    try:
        if turn.lease is not None:
            record = await _write(turn, record, turn.lease)
    except BaseException as error:
        failure = error
        if isinstance(error, Exception) and not isinstance(error, TurnLost):
            turn.session.report("save_failed", error)
        raise
    finally:
        queue.leave(turn.place, turn)
        turn.telemetry.end(
            _outcome(turn, record, failure),
            turn.members.error or failure,
            new_items=turn.tracker.stored,
            usage=turn.session.manifest.spent() if turn.telemetry.recording else None,
            said=lambda: _said(turn),
        )


def _outcome(turn: ActiveTurn, record: TurnEnd, failure: BaseException | None) -> str:
    """What telemetry calls the turn's end: its state, unless that tells only half."""
    if failure is not None:
        return "abandoned" if isinstance(failure, TurnLost) else "failed"
    if turn.session.forgotten and record.state == "completed":
        return "forgotten"
    if turn.lease is None:  # nothing of it can be stored: it was refused, or failed
        return REFUSALS.get(type(turn.members.error), record.state)
    return record.state


def _said(turn: ActiveTurn) -> Said:
    """What was said in the turn, no more than may be stored of it."""
    given = turn.tracker.given
    if given is not None and turn.options.redact is not None:
        given = Redaction(turn.options.redact).apply([*_sdk.new_items(given)])
    return Said(given, turn.tracker.output)


def _record(turn: ActiveTurn) -> TurnEnd:
    manifest = turn.session.manifest.finished(turn.telemetry.root_ids)
    record = turn.tracker.record(
        turn.members.error,
        on_failure=turn.options.on_failure,
        durable=turn.idempotency_key is not None or turn.session.buffer.unflushed,
        manifest=manifest,
        otel_trace_id=turn.telemetry.otel_trace_id,
        history_digest=digest_of(manifest),
        usage=usage_of(manifest),
        waited=turn.session.waited,
    )
    journal = _journal(turn, record)
    if journal is not None:
        record = dataclasses.replace(record, journal=journal)
    if turn.session.forgotten and record.error_type is None:  # it ended well, and is not all there
        record = dataclasses.replace(record, error_type=type(turn.session.unavailable).__name__)
    return record


def _journal(turn: ActiveTurn, record: TurnEnd) -> tuple[JournalEntry, ...] | None:
    """The turn's calls; with their texts where another process may make the turn again."""
    repeatable = turn.idempotency_key is not None or turn.resumed
    left_open = record.state in ("failed", "cancelled") and not record.discard
    entries = turn.session.journal.entries(texts=repeatable and left_open)
    return entries if entries or repeatable else None


async def _write(turn: ActiveTurn, record: TurnEnd, lease: Lease) -> TurnEnd:
    """Write the record and the items that are still to be stored; returns what was written."""
    turn.session.buffer.withdraw()
    items = turn.session.storable(await turn.session.buffer.drain())
    leaves_items = record.discard and bool(items or turn.tracker.stored)  # where the end fails
    if record.discard:
        items = []
    try:
        if record.state == "completed":
            for run in turn.tracker.superseded():
                await turn.store.retry_run(lease, run, turn.next_run())
        if items:
            await turn.session.write(items, record)
        else:
            await turn.session.end(record)
    except TurnLost:
        raise
    except Exception as error:
        if items:
            return await _end_without(turn, items, error)
        # Where no items are left behind, only the record is missing: it matters if it is durable.
        needed = (record.durable or leaves_items) and turn.options.on_unavailable == "raise"
        if needed or not isinstance(error, MemoryUnavailable):
            raise
        turn.session.report("save_failed", error)
    return record


async def _end_without(turn: ActiveTurn, items: list[RunItems], error: Exception) -> TurnEnd:
    """End a turn whose last items could not be stored: it did not complete."""
    forgets = isinstance(error, MemoryUnavailable) and turn.session.forgets("save_failed", error)
    if not forgets:
        turn.tracker.fail(new.run for new in items)
        turn.members.error = turn.members.error or error
    record = _record(turn)
    with suppress(SessionMemoryError):  # then the lease ends by itself
        await turn.session.end(record)
    if not forgets:
        raise error
    return record
