"""``demo``: a conversation that remembers, then what happens to sessions in production.

It uses the public surface only and exports nothing. Its files are temporary, unless ``--db`` names
that of the conversation.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli.failing import Failed
from session_middleware.cli.opening import chosen, memory_options, run
from session_middleware.cli.output import Output
from session_middleware.stores.passwords import without_password

if TYPE_CHECKING:
    from agents import Agent

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
REMEMBER = "remember"
NAMES = (REMEMBER, "callers", "twice", "killed", "approval")
"""The parts of the demo, in their order."""

_NEXT = (
    "Put one of our sessions where the SDK's was:",
    "    memory = SQLiteSessionMemory('chat.db')",
    "    await Runner.run(agent, text, session=memory.session('user_1'))",
    "or give a function of yours a session_id: @with_session_memory(memory=memory).",
    "Then look at what it did: session-middleware list --memory chat.db",
)


@click.command()
@click.option(
    "--only",
    type=click.Choice(NAMES),
    multiple=True,
    help="Only this part; again for more of them.",
)
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Keep the conversation in this file.",
)
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="Only ask again what the file's sessions know; needs --db.",
)
@memory_options
def demo(only: tuple[str, ...], db: Path | None, go_on: bool, **values: Any) -> None:
    """Watch a memory at work, beside the SDK's own session.

    The conversation talks to the provider if OPENAI_API_KEY is set (OPENAI_BASE_URL and
    OPENAI_DEFAULT_MODEL count), else to a small model that runs here. The other parts always run
    on that model.
    """
    output = Output(chosen(values).as_json)
    if go_on:
        if db is None or not db.is_file():
            raise click.UsageError("--continue needs --db with the file of an earlier demo.")
        run(_converse(output, db, NEXT_PROCESS))
        return
    wanted = only or NAMES
    with tempfile.TemporaryDirectory(prefix="session-middleware-") as folder:
        if REMEMBER in wanted:
            _remember(output, db or Path(folder) / "demo.db")
        scenes = [name for name in NAMES if name in wanted and name != REMEMBER]
        if scenes:
            run(_play(output, scenes, Path(folder)))
    output.write()
    output.write("What to do next", "heading")
    for line in _NEXT:
        output.write(f"  {line}")


# --- scenes ----------------------------------------------------------------------------------


async def _play(output: Output, names: Sequence[str], folder: Path) -> None:
    from session_middleware.cli.demo_scenes import SCENES, play
    from session_middleware.cli.demo_sides import keep_quiet

    keep_quiet()
    for name in names:
        own = folder / name
        own.mkdir()
        scene = SCENES[name]
        output.write()
        output.write(scene.heading, "heading")
        lines = await play(scene, own)
        output.write(f"  the SDK's session  {lines['sdk']}", "bad")
        output.write(f"  ours               {lines['ours']}", "good")
        output.value({"part": name, **lines})
    output.write()
    output.write("  Q a question, C a tool call, O its output, A an answer", "dim")


# --- the conversation ------------------------------------------------------------------------


def _remember(output: Output, db: Path) -> None:
    output.write("session_middleware: a memory for agent runs, by session_id", "heading")
    output.write(f"Model: {_model_in_words()}")
    output.write(f"File:  {db}")
    output.write()
    output.write("Two sessions, one file", "heading")
    run(_converse(output, db, CONVERSATION))
    output.write()
    output.write("The same file, opened by a new process", "heading")
    output.flush()
    again = ["demo", "--continue", "--db", str(db), *(["--json"] if output.as_json else [])]
    done = subprocess.run(  # noqa: S603 - this program itself
        [sys.executable, "-m", "session_middleware.cli", *again], check=False
    )
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)  # the other process has said why
    output.write()
    output.write("What the file holds: SELECT * FROM sessions", "heading")
    _show_rows(output, db)


def _model_in_words() -> str:
    if not os.environ.get("OPENAI_API_KEY"):
        return "local, it answers only from the history it is given (no OPENAI_API_KEY is set)"
    return f"the provider's, at {_provider()} (OPENAI_API_KEY is set)"


def _provider() -> str:
    """The address of the provider, without credentials."""
    where = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    scheme, separator, rest = without_password(where).partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _agent() -> Agent[None]:
    from agents import Agent

    instructions = "Reply in one short sentence."
    if os.environ.get("OPENAI_API_KEY"):
        return Agent(name="Assistant", instructions=instructions)
    from session_middleware.testing.models import LocalModel

    return Agent(name="Assistant", instructions=instructions, model=LocalModel())


async def _converse(output: Output, db: Path, turns: Sequence[tuple[str, str]]) -> None:
    from openai import APIConnectionError, APIStatusError

    try:
        await _talk(output, db, turns)
    except APIConnectionError as error:
        raise Failed(
            f"the provider at {_provider()} does not answer ({type(error).__name__}): set "
            "OPENAI_BASE_URL to one that does, or unset OPENAI_API_KEY for the model that runs here"
        ) from error
    except APIStatusError as error:
        raise Failed(
            f"the provider at {_provider()} answered {error.status_code}: check OPENAI_API_KEY, "
            "OPENAI_BASE_URL and OPENAI_DEFAULT_MODEL, or unset OPENAI_API_KEY for the model that "
            "runs here"
        ) from error


async def _talk(output: Output, db: Path, turns: Sequence[tuple[str, str]]) -> None:
    from agents import Runner, set_trace_processors

    from session_middleware import SQLiteSessionMemory, with_session_memory
    from session_middleware.cli.demo_groups import GroupIds

    # A failed request is told once, by this program; the SDK would log it besides.
    logging.getLogger("openai.agents").setLevel(logging.CRITICAL)
    groups = GroupIds()
    set_trace_processors([groups])  # in place of the SDK's own: nothing is exported
    agent = _agent()
    async with SQLiteSessionMemory(db) as memory:
        remembering = with_session_memory(Runner.run, memory=memory)
        for session_id, text in turns:
            result = await remembering(agent, text, session_id=session_id)
            answer = str(result.final_output)
            output.write(f"  {session_id:>5} > {text}")
            output.write(f"        < {answer}", "good")
            output.write(f"          trace group_id={groups.newest}", "dim")
            output.value({"part": REMEMBER, "session_id": session_id, "answer": answer})


def _show_rows(output: Output, db: Path) -> None:
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
        output.write(f"  {session_id}: {items} items, updated {updated_at}")
        output.write(f"    {history[:100]}{'...' if len(history) > 100 else ''}", "dim")
