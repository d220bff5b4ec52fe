"""``doctor`` finds what is wrong and changes nothing; ``--fix`` mends it, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from agents import Runner, RunState

from session_middleware import SQLiteSessionMemory, session_scope
from session_middleware.stores.in_memory import InMemorySessionMemory
from session_middleware.stores.managing.mending import examine, mend
from session_middleware.stores.sqlite.schema import VERSION
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.cli.conftest import Shell
from tests.cli.test_managing import park, talk
from tests.support.sessions import counted, letters, tool

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "o"}
ASKED = {"role": "user", "content": "hello"}
SAID = {"role": "assistant", "content": "hi"}


async def exported(memory: Any, *session_ids: str) -> str:
    """An export without the number of the newest lease, which is not the sessions' own."""
    lines = [line async for line in memory.export(*session_ids)]
    return re.sub(r'"fence": \d+', "", "".join(lines))


def found(done: Any) -> dict[str, dict[str, Any]]:
    return {each["subject"]: each for each in done.json()}


async def test_a_good_memory(memory: Any, managed: Shell) -> None:
    """Nothing has to be done: code 0, and the figures of what there is."""
    await talk(memory)
    told = found(managed.good("doctor", "--json"))
    assert {each["level"] for each in told.values()} == {"good"}
    assert told["sessions"]["text"].startswith("1 with 2 turns, 4 items, ")
    shown = managed.good("doctor").stdout
    assert "ok    histories: none" in shown


async def test_what_waits_and_what_is_faulty(memory: Any, managed: Shell) -> None:
    """Parked turns and faulty histories are told with their sessions; nothing is changed."""
    await talk(memory)
    await park(memory)
    await memory.append_to_session("faulty", [ASKED, OUTPUT, SAID])
    before = await exported(memory)
    told = found(managed.good("doctor", "--json"))
    assert told["parked turns"]["sessions"] == ["bob"]
    assert told["histories"]["sessions"] == ["faulty"]
    assert "orphan_output: 1" in told["histories"]["text"]
    assert await exported(memory) == before


async def test_fix(memory: Any, managed: Shell, tmp_path: Path) -> None:
    """The repaired history is stored, and the backup brings the old one back."""
    await memory.append_to_session("a", [ASKED, OUTPUT, SAID])
    await memory.append_to_session("a", [ASKED, CALL])
    await memory.append_to_session("a", [ASKED, OUTPUT, SAID])
    await talk(memory, "good")
    before = await memory.load_session("a")
    good = await exported(memory, "good")
    managed.bad(2, "doctor", "--fix")
    told = found(managed.good("doctor", "--fix", "--yes", "--json"))
    assert told["histories"]["level"] == "good"
    assert told["fixed"]["text"].startswith("1 session changed")
    assert letters(await memory.load_session("a")) == "U A U C O U A"
    turns = await memory.turns("a")
    assert [letters(record.items) for record in turns] == ["U A", "U C O", "U A"]
    assert await exported(memory, "good") == good
    managed.good("import", "--replace", "--yes", "before-fix.jsonl")
    assert await memory.load_session("a") == before


async def test_a_mended_session_can_be_resumed(memory: Any, managed: Shell) -> None:
    """What waits in a session that is mended can still be approved."""
    paid: list[str] = []
    pay = counted("pay", paid, needs_approval=True)
    agent = scripted_agent(call("pay"), assistant("paid"), tools=[pay])
    await memory.append_to_session("bob", [ASKED, OUTPUT, SAID])
    parked = await Runner.run(agent, "Pay.", session=memory.session("bob"))
    kept = parked.to_state().to_json()
    managed.good("doctor", "--fix", "--yes")
    assert len(await memory.pending("bob")) == 1
    state = await RunState.from_json(agent, kept)
    for waiting in state.get_interruptions():
        state.approve(waiting)
    await Runner.run(agent, state, session=memory.session("bob"))
    assert len(paid) == 1
    assert letters(await memory.load_session("bob")) == "U A U C O A"


async def test_doctor_of_a_scope(memory: Any, managed: Shell) -> None:
    """A scope's own sessions only are looked at and fixed, and told under their own ids."""
    for tenant in ("a", "b"):
        await memory.scoped(tenant).append_to_session("faulty", [ASKED, OUTPUT])
    there = await exported(memory.scoped("b"))
    told = found(managed.good("doctor", "--json", "--scope", "a"))
    assert told["histories"]["sessions"] == ["faulty"]
    managed.good("doctor", "--scope", "a", "--fix", "--yes")
    assert letters(await memory.scoped("a").load_session("faulty")) == "U"
    assert await exported(memory.scoped("b")) == there


# --- the file --------------------------------------------------------------------------------


async def test_corrupt_rows(shell: Shell, tmp_path: Path) -> None:
    """A row that is no JSON object is told, removed with --fix, and kept in the backup."""
    async with SQLiteSessionMemory(tmp_path / "a.db") as memory:
        await talk(memory)
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("UPDATE item SET item = '{\"cut off' WHERE turn = 1 AND position = 1")
        connection.commit()
    before = (tmp_path / "a.db").read_bytes()
    done = shell("doctor", "--memory", "a.db", "--json")
    assert done.returncode == 1
    assert "corrupt items" in done.stderr
    assert found(done)["corrupt items"]["sessions"] == ["alice"]
    assert (tmp_path / "a.db").read_bytes() == before
    shell.good("doctor", "--memory", "a.db", "--fix", "--yes")
    shell.good("doctor", "--memory", "a.db")
    async with SQLiteSessionMemory(tmp_path / "a.db") as memory:
        assert letters(await memory.load_session("alice")) == "U U A"
    assert '"{\\"cut off"' in (tmp_path / "before-fix.jsonl").read_text()


async def test_a_torn_file(shell: Shell, tmp_path: Path) -> None:
    """What SQLite's own check finds ends it, before the file is opened as a memory."""
    async with SQLiteSessionMemory(tmp_path / "a.db") as memory:
        for number in range(200):
            await memory.append_to_session(f"s{number}", [{**ASKED, "content": "x" * 500}])
    file = bytearray((tmp_path / "a.db").read_bytes())
    middle = len(file) // 2 // 4096 * 4096
    file[middle : middle + 8192] = b"\0" * 8192
    (tmp_path / "a.db").write_bytes(file)
    done = shell("doctor", "--memory", "a.db", "--json")
    assert done.returncode == 1
    assert found(done)["integrity"]["level"] == "bad", done
    assert "restore the file from a backup" in found(done)["integrity"]["text"]
    assert (tmp_path / "a.db").read_bytes() == bytes(file)


async def test_what_a_dead_process_left(shell: Shell, tmp_path: Path) -> None:
    """A turn without its process, and the call that it was in; --fix settles the turn."""
    async with SQLiteSessionMemory(tmp_path / "a.db", lease=0.05) as memory:

        def work() -> str:
            # As after a kill: what the file has while the tool is at work.
            shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
            shutil.copy(tmp_path / "a.db-wal", tmp_path / "b.db-wal")
            return "done"

        agent = scripted_agent(call("work"), assistant("ok"), tools=[tool("work", work)])
        async with session_scope("s", memory=memory, idempotency_key="k"):
            await Runner.run(agent, "Work.", session=memory.session("s"))
    for _ in range(100):
        told = found(shell.good("doctor", "--memory", "b.db", "--json"))
        if told["turns of dead processes"]["sessions"]:
            break
    assert told["turns of dead processes"]["sessions"] == ["s"]
    assert told["unknown effects"]["sessions"] == ["s"]
    assert "work" in told["unknown effects"]["text"]
    after = found(shell.good("doctor", "--memory", "b.db", "--fix", "--yes", "--json"))
    assert after["turns of dead processes"]["sessions"] == []
    assert after["abandoned turns"]["sessions"] == ["s"]


async def test_migrate(shell: Shell, tmp_path: Path) -> None:
    """A table of four columns becomes a memory, only when it is told to; then it is ready."""
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.execute(
            "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, conversation_history TEXT, "
            "created_at TIMESTAMP, updated_at TIMESTAMP)"
        )
        connection.execute(
            "INSERT INTO sessions VALUES ('s', ?, '2026-01-01 00:00:00', '2026-01-02 00:00:00')",
            (json.dumps([ASKED, SAID]),),
        )
        connection.commit()
    before = (tmp_path / "old.db").read_bytes()
    assert "migrate'" in shell.bad(1, "list", "--memory", "old.db")
    done = shell("doctor", "--memory", "old.db", "--json")
    assert found(done)["layout"]["level"] == "bad"
    assert (tmp_path / "old.db").read_bytes() == before
    told = shell.good("migrate", "--memory", "old.db", "--json").json()
    assert told == [{"memory": "old.db", "from": 0, "to": VERSION}]
    assert "is ready" in shell.good("migrate", "--memory", "old.db").stdout
    assert shell.good("list", "--memory", "old.db", "--json").json()[0]["items"] == 2
    assert "there is no file" in shell.bad(1, "migrate", "--memory", "absent.db")
    assert not (tmp_path / "absent.db").exists()


async def test_bench(memory: Any, managed: Shell, tmp_path: Path) -> None:
    """Figures of this memory; its own sessions are gone afterwards, and a new file as well."""
    await talk(memory)
    rows = managed.good("bench", "--seconds", "0.1", "--json").json()
    assert len(rows) == 4
    assert all(row["per_second"] > 0 and row["median"] <= row["p99"] for row in rows)
    assert [info.session_id for info in await memory.sessions()] == ["alice"]
    there = set(os.listdir(tmp_path))
    shown = Shell(managed.commands, tmp_path).good("bench", "--seconds", "0.1").stdout
    assert "a turn, 16 sessions at once" in shown
    assert set(os.listdir(tmp_path)) == there


# --- mending ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [InMemorySessionMemory, lambda: SQLiteSessionMemory(":memory:")])
async def test_a_good_session_is_left_as_it_is(make: Any) -> None:
    """Mending changes nothing where nothing is wrong, and fails for a session that is not there."""
    memory = make()
    await memory.append_to_session("s", [ASKED, CALL, OUTPUT, SAID])
    before = await exported(memory)
    assert not await mend(memory, "s")
    assert await exported(memory) == before
    seen = await examine(memory, "s", "completed")
    assert (seen.turns, seen.items, seen.corrupt, bool(seen.receipt)) == (1, 4, 0, False)
    with suppress(Exception):
        await memory.cleanup()
