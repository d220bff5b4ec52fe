"""``inspect``: sessions on a page, live, until Ctrl-C."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import click

from session_middleware.cli.opening import Opened, check_file, chosen, memory_named, memory_options
from session_middleware.cli.output import Output

_NICE = 10
"""How much lower than it was the priority of the command's process is."""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: any that is free.")
@click.option("--allow-changes", is_flag=True, help="Let people approve and reject calls.")
@click.option(
    "--trace-url",
    metavar="URL",
    help="The address of a trace in a tracing tool, with {trace_id} in it.",
)
@memory_options
def inspect(port: int, allow_changes: bool, trace_url: str | None, **values: Any) -> None:
    """Show sessions on a page, live, and exactly what the model was given."""
    choice = chosen(values)
    output = Output(choice.as_json)
    memory = memory_named(choice.memory)
    check_file(memory)
    narrowed: Opened = memory
    for tenant in choice.scopes:
        narrowed = narrowed.scoped(tenant)
    from session_middleware.inspect import serve

    def announce(address: str) -> None:
        output.value({"address": address})
        output.write(f"{choice.named} is shown at {address} until Ctrl-C")
        output.flush()

    if hasattr(os, "nice"):  # whoever works on this machine goes before who looks
        os.nice(_NICE)
    with suppress(KeyboardInterrupt):  # the way to end it
        serve(
            narrowed,
            port=port,
            allow_changes=allow_changes,
            trace_url=trace_url,
            announce=announce,
        )
