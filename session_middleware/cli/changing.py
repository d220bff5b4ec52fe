"""``fork``, ``undo``, ``delete``, ``prune`` and ``unlock``: what changes conversations.

What destroys asks first, and needs ``--yes`` where there is no terminal to ask at.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from session_middleware.cli.listing import info_as_json
from session_middleware.cli.opening import Chosen, complete_id, with_memory
from session_middleware.cli.output import Output, confirm
from session_middleware.cli.reading import no_session
from session_middleware.cli.text import age
from session_middleware.stores.managed_store import SessionInfo
from session_middleware.stores.records import TurnRecord
from session_middleware.words import ago, counted, duration

_PAGE = 500


def yes_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--yes``."""
    option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
    made: Callable[..., Any] = option(command)
    return made


@click.command()
@click.argument("session_id", metavar="ID", shell_complete=complete_id)
@click.argument("new_id", metavar="NEW_ID")
@click.option("--at-turn", type=click.IntRange(1), metavar="N", help="Copy turns up to this one.")
@with_memory()
async def fork(
    memory: Any,
    output: Output,
    chosen: Chosen,
    session_id: str,
    new_id: str,
    at_turn: int | None,
) -> None:
    """Make a session of its own from the turns of another."""
    made: SessionInfo = await memory.fork(session_id, new_id, at_turn)
    output.value(info_as_json(made))
    output.write(f"{new_id} has {counted(made.turns, 'turn')} of {session_id}", "good")


@click.command()
@click.argument("session_id", metavar="ID", shell_complete=complete_id)
@click.option("--turns", type=click.IntRange(1), default=1, show_default=True)
@yes_option
@with_memory()
async def undo(
    memory: Any, output: Output, chosen: Chosen, session_id: str, turns: int, yes: bool
) -> None:
    """Remove the newest turns that have items, with every word of them."""
    if await memory.session_info(session_id) is None:
        raise no_session(session_id, chosen)
    confirm(f"Remove the newest {counted(turns, 'turn')} of {session_id}?", yes)
    removed: list[TurnRecord] = await memory.undo(session_id, turns)
    for record in removed:
        output.value(record.to_dict())
        output.write(f"removed turn {record.turn}: {counted(record.item_count, 'item')}")
    if not removed:
        output.write(f"{session_id} has no turn with items", "dim")


@click.command()
@click.argument("session_ids", metavar="[ID]...", nargs=-1, shell_complete=complete_id)
@click.option("--prefix", metavar="TEXT", help="Every session whose id begins so.")
@yes_option
@with_memory()
async def delete(
    memory: Any,
    output: Output,
    chosen: Chosen,
    session_ids: tuple[str, ...],
    prefix: str | None,
    yes: bool,
) -> None:
    """Remove sessions with all they have; no word of them is left in the storage's files."""
    if bool(session_ids) == bool(prefix):
        raise click.UsageError("name sessions, or a prefix with --prefix.")
    for session_id in session_ids:
        if await memory.session_info(session_id) is None:
            raise no_session(session_id, chosen)
    what = f"every session that begins with {prefix!r}" if prefix else ", ".join(session_ids)
    confirm(f"Delete {what} from {chosen.named}?", yes)
    deleted = await (memory.delete_prefix(prefix) if prefix else memory.delete(*session_ids))
    _tell_deleted(output, deleted)


@click.command()
@click.option(
    "--older-than",
    metavar="AGE",
    callback=age,
    required=True,
    help="Not used for so long, such as 30d or 12h.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many sessions that are.")
@yes_option
@with_memory()
async def prune(
    memory: Any,
    output: Output,
    chosen: Chosen,
    older_than: timedelta,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove the sessions without activity for so long; never one that a turn holds."""
    span = duration(older_than.total_seconds())
    if dry_run:
        number = await _count_idle(memory, older_than)
        output.value({"would_delete": number})
        output.write(f"{counted(number, 'session')} without activity for {span}")
        return
    confirm(f"Delete every session of {chosen.named} without activity for {span}?", yes)
    _tell_deleted(output, await memory.prune(older_than))


async def _count_idle(memory: Any, older_than: timedelta) -> int:
    now, number = datetime.now(UTC), 0
    last: SessionInfo | None = None
    while page := await memory.sessions(None, _PAGE, last, "id"):
        number += sum(now - info.updated_at >= older_than for info in page)
        last = page[-1]
    return number


def _tell_deleted(output: Output, deleted: int) -> None:
    output.value({"deleted": deleted})
    output.write(f"deleted {counted(deleted, 'session')}", "good" if deleted else "dim")


@click.command()
@click.argument("session_id", metavar="ID", shell_complete=complete_id)
@yes_option
@with_memory()
async def unlock(memory: Any, output: Output, chosen: Chosen, session_id: str, yes: bool) -> None:
    """Take a session away from the turn that holds it; that turn writes nothing more."""
    newest: list[TurnRecord] = await memory.turns(session_id, 1)
    if not newest and await memory.session_info(session_id) is None:
        raise no_session(session_id, chosen)
    if newest and newest[0].state == "running":
        turn = newest[0]
        confirm(
            f"Turn {turn.turn} of {session_id} is at work, begun {ago(turn.started_at)}; its "
            "answer will be lost. Go on?",
            yes,
        )
    released = await memory.release(session_id)
    output.value({"session_id": session_id, "released": released})
    output.write(
        f"{session_id} is free" if released else f"nobody held {session_id}",
        "good" if released else "dim",
    )
