"""How a command ends: one line on the standard error, and an exit code.

0: done. 1: it failed. 2: the command line was wrong. 130: interrupted. 141: the reader of the
output has left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from session_middleware.errors import SessionMemoryError
from session_middleware.stores.passwords import without_password
from session_middleware.words import shown

DONE, FAILED, WRONG, INTERRUPTED, LEFT = 0, 1, 2, 130, 141


class Failed(click.ClickException):
    """A command failed; the text says why, and what to do."""


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command; say in one line what went wrong, and return the process's exit code."""
    try:
        command()
        sys.stdout.flush()
        return DONE
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return LEFT
    except click.UsageError as error:
        _say(_usage(error))
        return WRONG
    except Exception as error:
        _say(_told(error))
        return FAILED
    finally:
        _finish_output()


def _usage(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "session-middleware"
    return f"{error.format_message()} See '{path} --help'."


def _told(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, SessionMemoryError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {without_password(str(error)) or 'no details'}"


def _say(text: str) -> None:
    try:
        line = shown(" ".join(text.split()))
        print(f"session-middleware: {line}", file=sys.stderr, flush=True)
    except OSError:
        return  # nobody hears it, and the exit code says it as well


def _finish_output() -> None:
    """Hand over what is left, or keep the interpreter from trying and failing at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
