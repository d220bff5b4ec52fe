"""A few commands as processes on the memories of several machines, in every run.

Every command is tested on them by the marker ``long``: see ``test_managing``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shell
from tests.cli.test_managing import park, talk


@pytest.mark.parametrize("memory_url", ["postgres", "redis"], indirect=True)
async def test_commands_on_a_server(memory: Any, managed: Shell, tmp_path: Path) -> None:
    """List, show, export, delete, import and decide, while a service has the memory open."""
    await talk(memory, "alice")
    await park(memory, "bob")
    told = await memory.load_session("alice")
    listed = managed.good("list", "--json").json()
    assert {each["session_id"]: each["state"] for each in listed} == {
        "alice": "completed",
        "bob": "awaiting_approval",
    }
    assert "What's my name?" in managed.good("show", "alice").stdout
    managed.good("export", "alice", "--output", "alice.jsonl")
    managed.good("delete", "alice", "--yes")
    assert await memory.session_info("alice") is None
    managed.good("import", "alice.jsonl")
    assert await memory.load_session("alice") == told
    (waiting,) = await memory.pending()
    managed.good("decide", "bob", str(waiting.turn), waiting.calls[0].id, "--approve")
    assert (await memory.pending())[0].calls[0].approved is True
    assert "no session" in managed.bad(1, "show", "alice", "--scope", "acme")
