"""``migrate``: give a memory the layout of this version."""

from __future__ import annotations

from typing import Any

import click

from session_middleware.cli.failing import Failed
from session_middleware.cli.opening import chosen, file_of, memory_named, memory_options, run
from session_middleware.cli.output import Output
from session_middleware.stores.base import TurnMemory


@click.command()
@memory_options
def migrate(**values: Any) -> None:
    """Give a memory the layout of this version; nothing in it is lost.

    Services of the version before may go on using an SQLite file. A PostgreSQL database gets
    tables if it has none.
    """
    choice = chosen(values)
    output = Output(choice.as_json)
    memory = memory_named(choice.memory)
    before = _version(memory)
    run(_open(memory))
    after = _version(memory)
    output.value({"memory": choice.named, "from": before, "to": after})
    if before == after:
        output.write(f"{choice.named} is ready", "good")
    else:
        output.write(f"{choice.named}: layout {before} became {after}", "good")


def _version(memory: TurnMemory) -> int | None:
    """The version of a file's layout; None of another memory."""
    path = file_of(memory)
    if path is None:
        return None
    from session_middleware.stores.sqlite import examine

    return examine.layout(path).version


async def _open(memory: TurnMemory) -> None:
    """Open the memory, which migrates it."""
    ping = getattr(memory, "ping", None)
    if ping is None:
        raise Failed("this memory has no layout")
    try:
        await ping()
    finally:
        await memory.cleanup()
