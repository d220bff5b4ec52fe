"""``export``, ``import``, ``copy``, ``import-sdk``: conversations on their way to another place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click

from session_middleware.cli.changing import yes_option
from session_middleware.cli.opening import (
    Chosen,
    chosen,
    complete_id,
    memory_options,
    opened,
    run,
    with_memory,
)
from session_middleware.cli.output import Output, confirm, progress
from session_middleware.cli.text import harmless_json
from session_middleware.errors import InvalidOption
from session_middleware.stores.copy_memory import copy_memory
from session_middleware.stores.passwords import without_password
from session_middleware.stores.scoped import ScopedMemory
from session_middleware.stores.sdk_sessions import import_sdk_sessions
from session_middleware.words import counted, shown


@click.command()
@click.argument("session_ids", metavar="[ID]...", nargs=-1, shell_complete=complete_id)
@click.option("--prefix", metavar="TEXT", help="Every session whose id begins so.")
@click.option(
    "--output",
    "-o",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there; the file appears when it is whole. Default: the standard output.",
)
@yes_option
@with_memory()
async def export(
    memory: Any,
    output: Output,
    chosen: Chosen,
    session_ids: tuple[str, ...],
    prefix: str | None,
    file: Path | None,
    yes: bool,
) -> None:
    """Write sessions as lines of JSON, one turn a line; without arguments all of them."""
    lines = memory.export(*session_ids, prefix=prefix)
    if file is None:
        await _to_output(lines, output)
        return
    _confirm_new(file, yes)
    sessions = 0
    with whole_file(file) as out, progress("export") as advance:
        async for line in lines:
            sessions += line.startswith('{"session": ')
            out.write(line.encode("utf-8", "surrogatepass"))
            advance(1)
    output.value({"file": str(file), "sessions": sessions})
    output.write(f"exported {counted(sessions, 'session')} to {file}", "good")


def _confirm_new(file: Path, yes: bool) -> None:
    if file.exists():
        confirm(f"{file} is there already. Replace it?", yes)


async def _to_output(lines: Any, output: Output) -> None:
    output.flush()
    binary = getattr(sys.stdout, "buffer", None)
    async for line in lines:
        if output.terminal or binary is None:
            output.data(harmless_json(line.rstrip("\n")))
        else:
            binary.write(line.encode("utf-8", "surrogatepass"))


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block is over; if that fails, nothing is left of it.

    Only its owner may read it.
    """
    target = Path(os.path.realpath(file))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


@click.command("import")
@click.argument(
    "file", type=click.Path(dir_okay=False, readable=False, allow_dash=True), metavar="FILE"
)
@click.option("--replace", is_flag=True, help="Replace sessions that are there with other turns.")
@yes_option
@with_memory(creates=True)
async def import_(
    memory: Any, output: Output, chosen: Chosen, file: str, replace: bool, yes: bool
) -> None:
    """Store the sessions of an export, each of them whole or not at all; "-" reads a pipe.

    The same once more changes nothing.
    """
    with _source(file) as source:
        if replace:
            confirm(f"Replace sessions of {chosen.named} that have other turns?", yes)
        total = None if file == "-" else os.fstat(source.fileno()).st_size
        with progress("import", total) as advance:
            imported = await memory.import_(_lines(source, advance), replace=replace)
    output.value({"imported": imported})
    output.write(f"imported {counted(imported, 'session')}", "good" if imported else "dim")


@contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with open(file, "rb") as source:
        yield source


def _lines(source: IO[bytes], advance: Callable[[int], None]) -> Iterator[str]:
    for number, line in enumerate(source, start=1):
        advance(len(line))
        try:
            yield line.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise InvalidOption(
                f"line {number} of the export cannot be read: it is no UTF-8 text; is it an export?"
            ) from None


@click.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--prefix", metavar="TEXT", help="Only sessions whose ids begin so.")
@click.option("--replace", is_flag=True, help="Replace sessions that are there with other turns.")
@yes_option
@memory_options
def copy(
    source: str, target: str, prefix: str | None, replace: bool, yes: bool, **values: Any
) -> None:
    """Copy every conversation of a memory into another; both are URLs or paths.

    Turns, records, parked runs and journals go along, and ids stay. A copy that was interrupted
    is made again: what is there already is left as it is. --memory does not count here.
    """
    choice = chosen(values)
    output = Output(choice.as_json)
    if replace:
        confirm(f"Replace sessions of {shown(without_password(target))} with other turns?", yes)
    run(_copy(choice, output, (source, target), prefix, replace))
    output.flush()


async def _copy(
    choice: Chosen, output: Output, ends: tuple[str, str], prefix: str | None, replace: bool
) -> None:
    async with opened(ends[0], choice.scopes) as source:
        whole, begins = source, prefix
        if isinstance(source, ScopedMemory):
            whole, begins = source.memory, f"{source.prefix}{prefix or ''}"
        async with opened(ends[1], creates=True) as target:
            with progress("copy") as advance:
                copied = await copy_memory(
                    whole, target, prefix=begins, replace=replace, progress=lambda _: advance(1)
                )
    output.value({"copied": copied})
    output.write(f"copied {counted(copied, 'session')}", "good" if copied else "dim")


@click.command("import-sdk")
@click.argument("source", metavar="OLD")
@click.option("--sessions-table", default="agent_sessions", show_default=True, metavar="NAME")
@click.option("--messages-table", default="agent_messages", show_default=True, metavar="NAME")
@with_memory(creates=True)
async def import_sdk(
    memory: Any,
    output: Output,
    chosen: Chosen,
    source: str,
    sessions_table: str,
    messages_table: str,
) -> None:
    """Store the conversations of the SDK's own sessions.

    OLD is a file of SQLiteSession or AdvancedSQLiteSession, or the URL of a SQLAlchemySession.
    Nothing in it changes; the same once more changes nothing here either.
    """
    imported = await import_sdk_sessions(
        source, memory, sessions_table=sessions_table, messages_table=messages_table
    )
    output.value({"imported": imported})
    output.write(f"imported {counted(imported, 'session')}", "good" if imported else "dim")
