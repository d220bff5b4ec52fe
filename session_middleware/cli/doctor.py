"""``doctor``: what is wrong with a memory, and what to do about it. It changes nothing but with
``--fix``.

The file is looked at first, without opening it as a memory; then every session, turn by turn.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import click

from session_middleware.cli.changing import yes_option
from session_middleware.cli.failing import Failed
from session_middleware.cli.findings import Finding, Seen
from session_middleware.cli.moving import whole_file
from session_middleware.cli.opening import (
    Chosen,
    Opened,
    chosen,
    file_of,
    memory_named,
    memory_options,
    opened,
    run,
)
from session_middleware.cli.output import Output, confirm, progress
from session_middleware.stores.base import TurnMemory
from session_middleware.stores.managed_store import SessionInfo
from session_middleware.stores.managing.mending import examine, mend
from session_middleware.stores.scoped import ScopedMemory
from session_middleware.words import counted, size

_PAGE = 200  # sessions
_SHOWN = 20  # sessions that a finding names
_LARGE_LOG = 64 * 2**20  # bytes


@click.command()
@click.option(
    "--fix",
    is_flag=True,
    help="Remove corrupt items, store the repaired histories, and settle abandoned turns. What "
    "they were is written to a file first.",
)
@click.option(
    "--backup",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("before-fix.jsonl"),
    show_default=True,
    metavar="FILE",
    help="With --fix: where the sessions are written that it changes, as they were.",
)
@yes_option
@memory_options
def doctor(fix: bool, backup: Path, yes: bool, **values: Any) -> None:
    """Look for damage: layout, integrity, corrupt items, faulty histories, turns left behind.

    Ends with 1 where something has to be done, and changes nothing without --fix.
    """
    choice = chosen(values)
    output = Output(choice.as_json)
    findings = _of_file(choice)
    _tell(output, findings)
    if any(finding.level == "bad" for finding in findings):
        raise Failed(_verdict(findings))
    findings += run(_examine(choice, output, fix, backup, yes))
    output.flush()
    if any(finding.level == "bad" for finding in findings):
        raise Failed(_verdict(findings))


def _verdict(findings: list[Finding]) -> str:
    bad = [finding.subject for finding in findings if finding.level == "bad"]
    return f"something has to be done: {', '.join(bad)}"


def _tell(output: Output, findings: list[Finding]) -> None:
    marks = {"good": "ok", "attention": "look", "bad": "BAD"}
    for finding in findings:
        output.value(finding.as_json())
        output.write(f"{marks[finding.level]:<5} {finding.subject}: {finding.text}", finding.level)
        for session_id in finding.sessions[:_SHOWN]:
            output.write(f"        {session_id}", "dim")
        if len(finding.sessions) > _SHOWN:
            output.write(f"        and {len(finding.sessions) - _SHOWN:,} more", "dim")


# --- the file --------------------------------------------------------------------------------


def _of_file(choice: Chosen) -> list[Finding]:
    path = file_of(memory_named(choice.memory))
    if path is None:
        return []
    from session_middleware.stores.sqlite import examine as file

    layout = file.layout(path)
    if not layout.current:
        text = f"version {layout.version}, this program has {layout.newest}: run migrate"
        return [Finding("layout", "bad", text)]
    found = [Finding("layout", "good", f"version {layout.version}")]
    faults = file.faults(path)
    found.append(
        Finding("integrity", "bad", f"{'; '.join(faults[:3])}: restore the file from a backup")
        if faults
        else Finding("integrity", "good", "SQLite finds no fault")
    )
    bytes_, log = file.sizes(path)
    found.append(
        Finding("size", "good", f"{size(bytes_)}, of which {size(file.unused(path))} free")
    )
    found.append(
        Finding("log", "attention", f"{size(log)}: some program keeps a transaction open")
        if log > _LARGE_LOG
        else Finding("log", "good", size(log))
    )
    return found


# --- the sessions ----------------------------------------------------------------------------


async def _examine(
    choice: Chosen, output: Output, fix: bool, backup: Path, yes: bool
) -> list[Finding]:
    async with opened(choice.memory, choice.scopes) as memory:
        seen = await _look(memory)
        findings = seen.findings()
        broken = [*dict.fromkeys([*seen.corrupt, *seen.faulty, *seen.left])]
        if not fix or not broken:
            _tell(output, findings)
            return findings
        confirm(
            f"Change {counted(len(broken), 'session')} of {choice.named}? They are first written "
            f"to {backup}.",
            yes,
        )
        done = await _mend(memory, broken, backup)
        after = (await _look(memory)).findings()
        after.append(Finding("fixed", "good", f"{done}; as they were, they are in {backup}"))
        _tell(output, after)
        return after


async def _look(memory: Opened) -> Seen:
    seen = Seen()
    last: SessionInfo | None = None
    with progress("sessions") as advance:
        while page := await memory.sessions(None, _PAGE, last, "id"):
            for info in page:
                try:
                    seen.add(info, await examine(*_whole(memory, info.session_id), info.state))
                except Exception as error:
                    seen.unreadable[info.session_id] = str(error)
                advance(1)
            last = page[-1]
    for waiting in await memory.pending():
        age = (datetime.now(UTC) - waiting.since).total_seconds()
        seen.oldest_parked = max(seen.oldest_parked, age)
    return seen


def _whole(memory: Opened, session_id: str) -> tuple[TurnMemory, str]:
    """The memory that has the sessions of a scope, and the id that a session has there."""
    if isinstance(memory, ScopedMemory):
        return cast(TurnMemory, memory.memory), memory.full_id(session_id)
    return memory, session_id


async def _mend(memory: Opened, session_ids: list[str], backup: Path) -> str:
    """Write these sessions to a file, then mend each of them; say what was done."""
    with whole_file(backup) as out:
        async for line in memory.export(*session_ids):
            out.write(line.encode("utf-8", "surrogatepass"))
    changed = 0
    for session_id in session_ids:
        changed += await mend(*_whole(memory, session_id))
    return f"{counted(changed, 'session')} changed"
