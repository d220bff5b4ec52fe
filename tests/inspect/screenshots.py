"""Make the pictures of docs/inspect.md: a support desk's sessions on the page.

    python -m tests.inspect.screenshots

Needs Debian's packages chromium and chromium-driver. The pictures replace those in docs/.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents import Runner

from session_middleware import SQLiteSessionMemory, last_turns, with_session_memory
from session_middleware.conformance.conversations import corrupted
from session_middleware.inspect import app
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.inspect.browser import DESK, PHONE, chromium
from tests.support.approvals import paying
from tests.support.sessions import counted
from tests.support.uvicorn_server import serving

DOCS = Path(__file__).parents[2] / "docs"


async def fill(memory: Any) -> None:
    """A few conversations: a damaged one, a long one, one that failed, one that waits."""
    run = with_session_memory(Runner.run, memory=memory, window=last_turns(2))
    for text in ("Do you ship abroad?", "And to islands?"):
        agent = scripted_agent(assistant("We do."), name="Support desk")
        await run(agent, text, session_id="customer-12")
    await corrupted(memory, "customer-12", 1)
    look = [counted("find_order", [], strict_mode=False)]
    for text, steps in (
        (
            "Where is my order 1042?",
            [call("find_order", {"order": 1042}), assistant("On its way.")],
        ),
        ("When will it be here?", [assistant("On Friday, before noon.")]),
        ("Can a neighbour take it?", [assistant("Yes. Which one?")]),
        ("The one on the left.", [assistant("Noted: the neighbour on the left.")]),
    ):
        agent = scripted_agent(*steps, tools=look, name="Support desk")
        await run(agent, text, session_id="customer-17")
    await memory.set_title("customer-17", "Order 1042")
    failing = scripted_agent(RuntimeError("503"), name="Support desk")
    with suppress(RuntimeError):
        await run(failing, "I was charged twice.", session_id="customer-23")
    await run(paying([]), "Please refund 30 euros.", session_id="customer-31")


def picture(address: str, path: str, name: str, size: tuple[int, int], dark: bool) -> None:
    with chromium(size, dark=dark) as driver:
        driver.get(f"{address}{path}{'&' if '?' in path else '?'}token=picture")
        driver.save_screenshot(str(DOCS / name))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory = SQLiteSessionMemory(Path(folder) / "desk.db")
        asyncio.run(fill(memory))
        with serving(app(memory, allow_changes=True, token="picture")) as (address, _):
            picture(address, "/", "inspect-sessions.png", DESK, False)
            picture(address, "/session?id=customer-17", "inspect-session.png", PHONE, True)
            picture(address, "/given?id=customer-17&turn=4", "inspect-given.png", DESK, False)
            picture(address, "/pending", "inspect-pending.png", PHONE, False)
        asyncio.run(memory.cleanup())


if __name__ == "__main__":
    main()
