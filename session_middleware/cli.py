"""The command line: ``session-middleware demo``.

The demo is a conversation of several turns on the SDK's own Runner, made to be watched. It uses
the public surface only and exports nothing. Its file is temporary unless ``--db`` names one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents import Agent

__all__ = ["main"]

CONVERSATION = (
    ("alice", "Hi, I'm Alice."),
    ("alice", "What's my name?"),
    ("bob", "Hi, I'm Bob."),
    ("bob", "What's my name?"),
    ("alice", "What did I tell you?"),
)
NEXT_PROCESS = (
    ("alice", "What's my name?"),
    ("bob", "What's my name?"),
)


class Page:
    """Writes to a stream; in colour on a terminal, in plain text in a pipe or with NO_COLOR."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._colour = stream.isatty() and not os.environ.get("NO_COLOR")

    def write(self, text: str = "", style: str = "") -> None:
        """Write one line; ``style`` is an SGR code such as 1 (bold) or 2 (dim)."""
        if style and self._colour:
            text = f"\x1b[{style}m{text}\x1b[0m"
        print(text, file=self._stream, flush=True)

    def heading(self, text: str) -> None:
        """Begin a part of the demo."""
        self.write()
        self.write(text, "1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="session-middleware",
        description="Session memory for runs of the OpenAI Agents SDK.",
    )
    parser.add_argument(
        "--version", action="version", version=f"session-middleware {version('session-middleware')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="watch a conversation that remembers",
        description="A conversation that remembers: two sessions, two processes, one file. "
        "With OPENAI_API_KEY set it talks to the provider (OPENAI_BASE_URL and "
        "OPENAI_DEFAULT_MODEL count); without, to a small model that runs here.",
    )
    demo.add_argument("--db", type=Path, metavar="PATH", help="keep the conversations in this file")
    demo.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="only ask again what the file's sessions know (needs --db)",
    )
    options = parser.parse_args(argv)
    if options.go_on and (options.db is None or not options.db.is_file()):
        demo.error("--continue needs --db with the file of an earlier demo")
    return _report(options)


def _report(options: argparse.Namespace) -> int:
    """Run the demo; whatever goes wrong is one line."""
    try:
        if options.db is not None:
            _demo(options.db, go_on=options.go_on)
        else:
            with tempfile.TemporaryDirectory(prefix="session-middleware-") as directory:
                _demo(Path(directory) / "demo.db", go_on=False)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has left; keep the interpreter from flushing into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except subprocess.CalledProcessError as error:
        return error.returncode  # the other process has said why
    except Exception as error:
        text = " ".join(str(error).split()) or "no details"
        print(f"session-middleware: {type(error).__name__}: {text}", file=sys.stderr)
        return 1
    return 0


def _demo(db: Path, *, go_on: bool) -> None:
    page = Page(sys.stdout)
    if go_on:
        asyncio.run(_converse(page, db, NEXT_PROCESS))
        return
    page.write("session_middleware: a memory for agent runs, by session_id", "1")
    page.write(f"Model: {_model_in_words()}")
    page.write(f"File:  {db}")
    page.heading("Two sessions, one file")
    asyncio.run(_converse(page, db, CONVERSATION))
    page.heading("The same file, opened by a new process")
    again = ["demo", "--continue", "--db", str(db)]
    subprocess.run(  # noqa: S603 - this program itself
        [sys.executable, "-m", "session_middleware.cli", *again], check=True
    )
    page.heading("What the file holds: SELECT * FROM sessions")
    _show_rows(page, db)


def _model_in_words() -> str:
    if not os.environ.get("OPENAI_API_KEY"):
        return "local, it answers only from the history it is given (no OPENAI_API_KEY is set)"
    where = os.environ.get("OPENAI_BASE_URL") or "the provider's own address"
    return f"the provider's, at {_without_credentials(where)} (OPENAI_API_KEY is set)"


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else url


def _agent() -> Agent[None]:
    from agents import Agent

    instructions = "Reply in one short sentence."
    if os.environ.get("OPENAI_API_KEY"):
        return Agent(name="Assistant", instructions=instructions)
    from session_middleware._demo_model import LocalModel

    return Agent(name="Assistant", instructions=instructions, model=LocalModel())


async def _converse(page: Page, db: Path, turns: Sequence[tuple[str, str]]) -> None:
    from agents import Runner, set_trace_processors

    from session_middleware import SQLiteSessionMemory, with_session_memory

    # A failed request is told once, by this program; the SDK would log it besides.
    logging.getLogger("openai.agents").setLevel(logging.CRITICAL)
    groups = _group_ids()
    set_trace_processors([groups])  # in place of the SDK's own: nothing is exported
    agent = _agent()
    async with SQLiteSessionMemory(db) as memory:
        run = with_session_memory(Runner.run, memory=memory)
        for session_id, text in turns:
            result = await run(agent, text, session_id=session_id)
            page.write(f"  {session_id:>5} > {text}")
            page.write(f"        < {result.final_output}", "32")
            page.write(f"          trace group_id={groups.newest}", "2")


def _group_ids() -> Any:
    from agents.tracing import TracingProcessor

    class GroupIds(TracingProcessor):
        """Keeps the group id of the newest SDK trace, as tracing tools would receive it."""

        newest: str | None = None

        def on_trace_start(self, trace: Any) -> None:
            self.newest = (trace.export() or {}).get("group_id")

        def on_trace_end(self, trace: Any) -> None: ...
        def on_span_start(self, span: Any) -> None: ...
        def on_span_end(self, span: Any) -> None: ...
        def shutdown(self) -> None: ...
        def force_flush(self) -> None: ...

    return GroupIds()


def _show_rows(page: Page, db: Path) -> None:
    """Read the file as any SQLite program would."""
    connection = sqlite3.connect(db)
    try:
        rows = connection.execute(
            "SELECT session_id, json_array_length(conversation_history), updated_at,"
            " conversation_history FROM sessions ORDER BY session_id"
        ).fetchall()
    finally:
        connection.close()
    for session_id, items, updated_at, history in rows:
        page.write(f"  {session_id}: {items} items, updated {updated_at}")
        page.write(f"    {history[:100]}{'...' if len(history) > 100 else ''}", "2")


if __name__ == "__main__":
    sys.exit(main())
