"""``show`` and ``tail``: a conversation to read, as it was or as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import click

from session_middleware.cli.failing import Failed
from session_middleware.cli.opening import Chosen, complete_id, with_memory
from session_middleware.cli.output import Output
from session_middleware.cli.telling import tell_session, tell_turn
from session_middleware.cli.text import json_text
from session_middleware.stores.managed_store import SessionInfo
from session_middleware.stores.records import TurnRecord

_PAGE = 50  # turns that are read at once
_SESSIONS = 50  # sessions that are looked at at once
_PAUSE = 0.3  # seconds between two looks
_REMEMBERED = 10_000  # sessions that are followed at once
_CLOCKS_APART = timedelta(seconds=5)  # of a service and of the memory, at most


@click.command()
@click.argument("session_id", metavar="[ID]", shell_complete=complete_id, required=False)
@click.option("--turn", type=click.IntRange(1), help="Only this turn.")
@click.option("--trace", metavar="TRACE_ID", help="Only the turn with this trace; ID can go.")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N turns.")
@click.option(
    "--as-seen",
    is_flag=True,
    help="The items that the model was given in a turn, as a JSON array; needs --turn or --trace.",
)
@click.option("--run", type=click.IntRange(1), default=1, help="With --as-seen: the run. [1]")
@click.option("--call", type=click.IntRange(1), default=1, help="... and its model call. [1]")
@with_memory()
async def show(
    memory: Any,
    output: Output,
    chosen: Chosen,
    session_id: str | None,
    turn: int | None,
    trace: str | None,
    last: int | None,
    as_seen: bool,
    run: int,
    call: int,
) -> None:
    """Show a conversation: its turns with outcome, duration, agent, traces, items and calls."""
    if trace is not None:
        session_id, turn = await _place_of(memory, trace, session_id, turn)
    if session_id is None:
        raise click.UsageError("name a session, or a trace with --trace.")
    if as_seen:
        if turn is None:
            raise click.UsageError("--as-seen needs --turn or --trace.")
        output.data(json_text(await memory.history_at(session_id, turn, run, call)))
        return
    info = await memory.session_info(session_id)
    if info is None:
        raise no_session(session_id, chosen)
    found = False
    if turn is None:
        tell_session(output, info)
    async for record in _records(memory, session_id, turn, last):
        found = True
        tell_turn(output, record)
    if turn is not None and not found:
        raise Failed(f"session {session_id!r} has no turn {turn}")


async def _place_of(
    memory: Any, trace: str, session_id: str | None, turn: int | None
) -> tuple[str, int]:
    record: TurnRecord | None = await memory.find_turn(trace)
    if record is None:
        raise Failed(f"no turn has the trace {trace!r}")
    if session_id not in (None, record.session_id) or turn not in (None, record.turn):
        raise Failed(f"trace {trace!r} is of turn {record.turn} of session {record.session_id!r}")
    return record.session_id, record.turn


def no_session(session_id: str, chosen: Chosen) -> Failed:
    """The error for an id that is not there."""
    return Failed(f"there is no session {session_id!r} in {chosen.named}")


async def _records(
    memory: Any, session_id: str, turn: int | None, last: int | None
) -> AsyncIterator[TurnRecord]:
    """The turns that are asked for, oldest first, some at a time."""
    if turn is not None:
        page: list[TurnRecord] = await memory.turns(session_id, 1, turn + 1)
        for record in page:
            if record.turn == turn:
                yield record
        return
    newest: list[TurnRecord] = await memory.turns(session_id, 1)
    end = newest[0].turn if newest else 0
    seen = 0 if last is None else await _before_last(memory, session_id, last)
    while seen < end:
        page = await memory.turns(session_id, _PAGE, min(seen + _PAGE, end) + 1)
        for record in reversed(page):
            if record.turn > seen:
                yield record
        seen += _PAGE


async def _before_last(memory: Any, session_id: str, last: int) -> int:
    """The number before that of the oldest of the newest turns."""
    before: int | None = None
    while last > 0:
        page = await memory.turns(session_id, min(last, _PAGE), before)
        if not page:
            break
        before, last = page[-1].turn, last - len(page)
    return (before or 1) - 1


# --- tail ------------------------------------------------------------------------------------


@click.command()
@click.argument("session_id", metavar="[ID]", shell_complete=complete_id, required=False)
@click.option("--prefix", metavar="TEXT", help="Only sessions whose ids begin so.")
@click.option(
    "--last",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="First show so many of the newest turns (of the newest sessions, without an ID).",
)
@with_memory()
async def tail(
    memory: Any,
    output: Output,
    chosen: Chosen,
    session_id: str | None,
    prefix: str | None,
    last: int,
) -> None:
    """Show turns as they happen, while services use the memory; end with Ctrl-C."""
    if session_id is not None and await memory.session_info(session_id) is None:
        raise no_session(session_id, chosen)
    follower = _Follower(memory, output, session_id, prefix)
    await follower.begin(last)
    output.flush()
    while True:
        await asyncio.sleep(_PAUSE)
        await follower.look()
        output.flush()


class _Follower:
    """Tells of each turn when it is seen first, and again when its state changes.

    Attributes:
        _told: by session, the newest turn that was told and those that had not ended, each with
            the state it had then.
        _since: the last activity that was seen.
    """

    def __init__(
        self, memory: Any, output: Output, session_id: str | None, prefix: str | None
    ) -> None:
        self._memory = memory
        self._output = output
        self._session_id = session_id
        self._prefix = prefix
        self._told: dict[str, dict[int, str]] = {}
        self._since: datetime | None = None

    async def begin(self, last: int) -> None:
        """Tell of the newest turns; all others there are count as told."""
        records: list[TurnRecord] = []
        for info in await self._infos():
            newest: list[TurnRecord] = await self._memory.turns(info.session_id, max(last, 1))
            self._note(info, newest)
            records += newest
        records.sort(key=lambda record: (record.started_at, record.turn))
        for record in records[len(records) - last :] if last else ():
            self._tell(record)

    async def look(self) -> None:
        """Tell of what changed since the look before."""
        since = self._since
        for info in reversed(await self._infos()):
            page: list[TurnRecord] = await self._memory.turns(info.session_id, _PAGE)
            told = self._told.get(info.session_id)
            for record in reversed(page):
                if _is_news(record, told, since):
                    self._tell(record)
            self._note(info, page)

    async def _infos(self) -> list[SessionInfo]:
        """The sessions that may have changed since the last look, those used last first."""
        if self._session_id is not None:
            info = await self._memory.session_info(self._session_id)
            return [] if info is None else [info]
        found: list[SessionInfo] = []
        since, last = self._since, None
        while page := await self._memory.sessions(self._prefix, _SESSIONS, last):
            last = page[-1]
            found += [info for info in page if since is None or self._may_have_changed(info, since)]
            if since is None or last.updated_at < since:
                break
        return found

    def _may_have_changed(self, info: SessionInfo, since: datetime) -> bool:
        told = self._told.get(info.session_id, {})
        return info.updated_at >= since or "running" in (info.state, *told.values())

    def _note(self, info: SessionInfo, page: Sequence[TurnRecord]) -> None:
        newest = max((record.turn for record in page), default=0)
        self._told.pop(info.session_id, None)  # so that it is the newest entry
        self._told[info.session_id] = {
            record.turn: record.state
            for record in page
            if record.turn == newest or record.state in ("running", "awaiting_approval")
        }
        self._since = max(self._since or info.updated_at, info.updated_at)
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]

    def _tell(self, record: TurnRecord) -> None:
        tell_turn(self._output, record, with_session=self._session_id is None)


def _is_news(record: TurnRecord, told: dict[int, str] | None, since: datetime | None) -> bool:
    """Whether the turn was not told in the state that it has.

    Args:
        told: what was told of its session; None: nothing.
        since: the last activity that was seen before.
    """
    if told is None:
        return since is None or (record.ended_at or record.started_at) >= since - _CLOCKS_APART
    if record.turn in told:
        return told[record.turn] != record.state
    return record.turn > max(told, default=0)
