"""The command line ``session-middleware``: its commands, and the options that come before them.

A command is in the module of its subject, which is imported when the command is named.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

import click

from session_middleware.cli.failing import exit_code
from session_middleware.cli.opening import Chosen, memory_options
from session_middleware.memory_option import DEFAULT_MEMORY

__all__ = ["group", "main"]

_PROGRAM = "session-middleware"
_COMPLETION = "_SESSION_MIDDLEWARE_COMPLETE"  # as click calls it

_COMMANDS = {
    "list": ("listing", "list_"),
    "show": ("reading", "show"),
    "tail": ("reading", "tail"),
    "pending": ("listing", "pending"),
    "decide": ("listing", "decide"),
    "export": ("moving", "export"),
    "import": ("moving", "import_"),
    "import-sdk": ("moving", "import_sdk"),
    "copy": ("moving", "copy"),
    "fork": ("changing", "fork"),
    "undo": ("changing", "undo"),
    "delete": ("changing", "delete"),
    "prune": ("changing", "prune"),
    "unlock": ("changing", "unlock"),
    "doctor": ("doctor", "doctor"),
    "migrate": ("migrating", "migrate"),
    "bench": ("bench", "bench"),
    "schema": ("schema", "schema"),
    "inspect": ("inspecting", "inspect"),
    "demo": ("demo", "demo"),
}
"""Each command, in the order of the help: its module and its name there."""


class _Commands(click.Group):
    """Commands that are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"session_middleware.cli.{module}"), name)
        return command


@click.command(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 it failed and one line says why, 2 the command line was wrong, "
    "130 interrupted, 141 the reader of the output has left.",
)
@memory_options
@click.version_option(version("session-middleware"), message="%(prog)s %(version)s")
@click.pass_context
def group(
    context: click.Context, memory: str | None, scope: tuple[str, ...], as_json: bool
) -> None:
    """Look at, move and manage the conversations of a memory.

    The memory is --memory, else SESSION_MIDDLEWARE_MEMORY, else ./agent_sessions.db. The options
    below may stand before or behind the name of a command.
    """
    default = Chosen(os.environ.get("SESSION_MIDDLEWARE_MEMORY") or DEFAULT_MEMORY)
    context.obj = default.with_options(memory, scope, as_json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get(_COMPLETION):
        group.main(arguments, prog_name=_PROGRAM)  # a shell asks; click answers and exits
    code = exit_code(lambda: _run(arguments))
    if argv is None:
        gc.freeze()  # at the end of the process nothing that was imported is taken apart
    return code


def _run(arguments: list[str]) -> None:
    # Not group.main, which has exit codes and lines of its own for an interruption and a pipe.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal may not have every character
            reconfigure(errors="backslashreplace")
    with group.make_context(_PROGRAM, arguments) as context:
        group.invoke(context)
