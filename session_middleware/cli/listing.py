"""``list`` and ``pending``: which sessions there are, and what waits for a person."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from session_middleware.cli.opening import Chosen, complete_id, with_memory
from session_middleware.cli.output import Output
from session_middleware.cli.text import age
from session_middleware.stores.managed_store import Order, PendingTurn, SessionInfo
from session_middleware.stores.records import PendingCall
from session_middleware.words import ago, counted, moment, size

_STATES = {
    "running": "good",
    "failed": "bad",
    "abandoned": "bad",
    "awaiting_approval": "attention",
}


@click.command("list")
@click.option("--prefix", metavar="TEXT", help="Only ids that begin so.")
@click.option(
    "--newer-than",
    metavar="AGE",
    callback=age,
    help="Only sessions used within this time, such as 1h.",
)
@click.option(
    "--older-than",
    metavar="AGE",
    callback=age,
    help="Only sessions not used for so long, such as 30d.",
)
@click.option(
    "--sort",
    type=click.Choice(["updated", "created", "id"]),
    default="updated",
    show_default=True,
    help="The last used or the newest first, or by id.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="At most so many sessions.",
)
@click.option("--after", metavar="CURSOR", help="The next page: a cursor or the last id before.")
@with_memory()
async def list_(
    memory: Any,
    output: Output,
    chosen: Chosen,
    prefix: str | None,
    newer_than: timedelta | None,
    older_than: timedelta | None,
    sort: Order,
    limit: int,
    after: str | None,
) -> None:
    """List sessions: title, turns, items, bytes, last activity, state."""
    now = datetime.now(UTC)
    since = None if newer_than is None else _before(now, newer_than)
    until = None if older_than is None else _before(now, older_than)
    found: list[SessionInfo] = []
    async for info in _pages(memory, prefix, sort, limit, after):
        if sort == "updated" and since is not None and info.updated_at < since:
            break  # the rest are older
        if (since is None or info.updated_at >= since) and (
            until is None or info.updated_at <= until
        ):
            found.append(info)
        if len(found) > limit:
            break
    page = found[:limit]
    for info in page:
        output.value(info_as_json(info))
    _tell(output, page, sort, more=len(found) > limit)


def _before(now: datetime, span: timedelta) -> datetime:
    try:
        return now - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


async def _pages(
    memory: Any, prefix: str | None, sort: Order, limit: int, after: str | None
) -> AsyncIterator[SessionInfo]:
    """The sessions in their order, read as far as they are asked for."""
    last: SessionInfo | str | None = after
    while page := await memory.sessions(prefix, min(limit + 1, 500), last, sort):
        for info in page:
            yield info
        last = page[-1]


def _tell(output: Output, page: Sequence[SessionInfo], sort: Order, more: bool) -> None:
    if not page:
        output.write("No sessions.", "dim")
        return
    rows = [
        (
            info.session_id,
            info.title or info.first_question or "",
            f"{info.turns:,}",
            f"{info.items:,}",
            size(info.bytes),
            ago(info.updated_at),
            info.state or "-",
        )
        for info in page
    ]
    output.table(
        ("SESSION", "TITLE", "TURNS", "ITEMS", "BYTES", "USED", "STATE"),
        rows,
        right=("TURNS", "ITEMS", "BYTES"),
        styles=lambda row: _STATES.get(row[-1], ""),
    )
    if more:
        output.write(f"There are more: --after {page[-1].cursor}", "dim")


def info_as_json(info: SessionInfo) -> dict[str, Any]:
    """A session as ``--json`` tells it; dates are in ISO 8601."""
    told = {each.name: getattr(info, each.name) for each in fields(info)}
    return {**told, "created_at": _iso(info.created_at), "updated_at": _iso(info.updated_at)}


def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()


@click.command()
@click.argument("session_id", metavar="[ID]", shell_complete=complete_id, required=False)
@click.option("--prefix", metavar="TEXT", help="Only of sessions whose ids begin so.")
@with_memory()
async def pending(
    memory: Any, output: Output, chosen: Chosen, session_id: str | None, prefix: str | None
) -> None:
    """List what waits for approval, the longest first."""
    found: list[PendingTurn] = await memory.pending(session_id, prefix)
    for waiting in found:
        output.value(_pending_as_json(waiting))
    if not found:
        output.write("Nothing waits for approval.", "dim")
        return
    rows = [
        (
            waiting.session_id,
            waiting.turn,
            moment(waiting.since),
            ago(waiting.since),
            call.name,
            call.id,
            call.arguments,
            _decision(call),
        )
        for waiting in found
        for call in waiting.calls or (PendingCall("-", "-"),)
    ]
    output.table(
        ("SESSION", "TURN", "SINCE", "", "TOOL", "CALL", "ARGUMENTS", "DECISION"),
        rows,
        right=("TURN",),
    )
    output.write(f"{counted(len(found), 'run')} waiting for approval", "dim")


def _decision(call: PendingCall) -> str:
    return {None: "-", True: "approved", False: "rejected"}[call.approved]


def _pending_as_json(waiting: PendingTurn) -> dict[str, Any]:
    """The run without its state, which is restored from the memory only."""
    return {
        "session_id": waiting.session_id,
        "turn": waiting.turn,
        "since": _iso(waiting.since),
        "calls": [
            {each.name: getattr(call, each.name) for each in fields(call)} for call in waiting.calls
        ],
        "kept": waiting.state is not None,
    }


@click.command()
@click.argument("session_id", metavar="ID", shell_complete=complete_id)
@click.argument("turn", type=click.IntRange(1))
@click.argument("call_id", metavar="CALL")
@click.option("--approve/--reject", default=None, help="Whether the tool may run.")
@click.option("--message", metavar="TEXT", help="What the model is told of a rejected call.")
@with_memory()
async def decide(
    memory: Any,
    output: Output,
    chosen: Chosen,
    session_id: str,
    turn: int,
    call_id: str,
    approve: bool | None,
    message: str | None,
) -> None:
    """Note a decision on a call that waits; the service that resumes the run applies it."""
    if approve is None:
        raise click.UsageError("say --approve or --reject.")
    await memory.decide(session_id, turn, call_id, approve, message)
    done = "approved" if approve else "rejected"
    output.write(f"{call_id} is {done}; the service that resumes turn {turn} applies it", "good")
    output.value({"session_id": session_id, "turn": turn, "call_id": call_id, "decision": done})
