"""The agents of the demo's scenes: their model runs here, and needs no key.

It decides from the history that it is given, and from nothing else. So what a session hands it is
what it does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agents import Agent, Tool, function_tool

from session_middleware.testing.models import LocalModel

Waits = Callable[[], Awaitable[None]]


def charging(book: Path, dies: bool = False, approved: bool = False) -> Agent[Any]:
    """An agent whose tool writes a line into a book of charges.

    Args:
        dies: the process is killed right behind the line, inside the tool.
        approved: a person has to approve the call first.
    """

    @function_tool(name_override="charge", needs_approval=approved)
    def charge() -> str:
        """Charge the customer's card."""
        with book.open("a") as lines:
            lines.write("5.00\n")
        if dies:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return "charged"

    return _agent_with(charge)


def looking_up(wait: Waits) -> Agent[Any]:
    """An agent whose tool takes as long as ``wait``."""

    @function_tool(name_override="look_up")
    async def look_up() -> str:
        """Look something up."""
        await wait()
        return "looked up"

    return _agent_with(look_up)


def _agent_with(tool: Tool) -> Agent[Any]:
    """An agent that calls this tool when a message names it."""
    return Agent(name="Assistant", model=LocalModel(uses_tools=True), tools=[tool])


def charges(book: Path) -> int:
    """How many charges the book has."""
    return len(book.read_text().splitlines()) if book.exists() else 0
