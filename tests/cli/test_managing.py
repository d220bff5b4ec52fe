"""Every command that manages conversations, as a process, while a service uses the memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from agents import Runner, SQLiteSession

from session_middleware import session_scope
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.cli.conftest import Shell
from tests.support.conditions import until
from tests.support.sessions import counted, letters

HI = "Hi, I'm Alice."


async def talk(memory: Any, session_id: str = "alice", *texts: str) -> None:
    for text in texts or (HI, "What's my name?"):
        await Runner.run(local_agent(), text, session=memory.session(session_id))


async def park(memory: Any, session_id: str = "bob") -> Any:
    pay = counted("pay", [], needs_approval=True)
    agent = scripted_agent(call("pay"), assistant("paid"), tools=[pay])
    return await Runner.run(agent, "Pay the bill.", session=memory.session(session_id))


# --- list ------------------------------------------------------------------------------------


async def test_list(memory: Any, managed: Shell) -> None:
    """Sessions with title, turns, items, bytes, activity and state, the last used first."""
    await talk(memory)
    await park(memory)
    await memory.set_title("alice", "Who am I?")
    shown = managed.good("list").stdout
    lines = shown.splitlines()
    assert lines[0].split() == ["SESSION", "TITLE", "TURNS", "ITEMS", "BYTES", "USED", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["bob", "alice"]
    assert "Who am I?" in lines[2]
    assert "awaiting_approval" in lines[1]
    told = managed.good("list", "--json").json()
    infos = await memory.sessions()
    assert [each["session_id"] for each in told] == ["bob", "alice"]
    for each, info in zip(told, infos, strict=True):
        assert each["turns"] == info.turns
        assert each["items"] == info.items
        assert each["bytes"] == info.bytes
        assert each["state"] == info.state
        assert each["first_question"] == info.first_question


async def test_list_pages_and_filters(memory: Any, managed: Shell) -> None:
    """By prefix, page by page in each order, and by age."""
    for number in range(5):
        await memory.append_to_session(f"user:{number}", [{"role": "user", "content": HI}])
    await memory.append_to_session("other", [{"role": "user", "content": HI}])
    for sort in ("updated", "created", "id"):
        seen: list[str] = []
        after: list[str] = []
        while page := managed.good(
            "list", "--prefix", "user:", "--sort", sort, "--limit", "2", "--json", *after
        ).json():
            seen += [each["session_id"] for each in page]
            after = ["--after", page[-1]["cursor"]]
        expected = await memory.sessions("user:", order=sort)
        assert seen == [info.session_id for info in expected]
        assert len(seen) == 5
    assert "--after" in managed.good("list", "--limit", "5").stdout
    assert "--after" not in managed.good("list", "--limit", "6").stdout
    assert len(managed.good("list", "--newer-than", "1h", "--json").json()) == 6
    assert managed.good("list", "--older-than", "1h", "--json").json() == []
    assert managed.good("list", "--older-than", "0", "--json", "--limit", "3").json()


async def test_options_before_and_behind_the_command(memory: Any, managed: Shell) -> None:
    """--memory, --scope and --json mean the same on both sides of a command's name."""
    await talk(memory.scoped("acme"), "thread")
    before = managed.good("--json", "--scope", "acme", "list")
    behind = managed.good("list", "--scope", "acme", "--json")
    assert before.json() == behind.json()
    assert [each["session_id"] for each in before.json()] == ["thread"]
    other = Shell(managed.commands, managed.folder)
    assert other.good("--memory", str(managed.url), "list", "--json").json()[0]["items"] == 4


# --- show ------------------------------------------------------------------------------------


async def test_show(memory: Any, managed: Shell) -> None:
    """Turns with outcome and agent; a call beside its output, with its state."""
    await talk(memory)
    agent = scripted_agent(call("add", {"a": 1}), assistant("3"), tools=[counted("add", [])])
    async with session_scope("alice", memory=memory, idempotency_key="key-1"):
        await Runner.run(agent, "Add it.", session=memory.session("alice"))
    lines = managed.good("show", "alice").stdout.splitlines()
    assert lines[0] == "alice"
    assert [line.split("  ")[:2] for line in lines if line.startswith("turn")] == [
        [f"turn {number}", "completed"] for number in (1, 2, 3)
    ]
    assert "  user       Hi, I'm Alice." in lines
    assert "  assistant  Your name is Alice." in lines
    assert "  idempotency key key-1" in lines
    called = next(at for at, line in enumerate(lines) if line.startswith("  call       add("))
    assert lines[called + 1].startswith("  output     [done in ")
    only = managed.good("show", "alice", "--turn", "2", "--json").json()
    assert only == [json.loads(json.dumps((await memory.turns("alice", 1, 3))[0].to_dict()))]
    newest = managed.good("show", "alice", "--last", "2", "--json").json()
    assert [each["turn"] for each in newest] == [2, 3]


async def test_show_every_turn_of_a_long_conversation(memory: Any, managed: Shell) -> None:
    """Turns are read some at a time, and each is shown once, oldest first."""
    for number in range(120):
        await memory.append_to_session("long", [{"role": "user", "content": f"No. {number}"}])
    await memory.undo("long", 3)
    shown = managed.good("show", "long", "--json").json()
    assert [each["turn"] for each in shown if each["items"]] == list(range(1, 118))
    assert len({each["turn"] for each in shown}) == len(shown)
    last = managed.good("show", "long", "--last", "70", "--json").json()
    assert last == shown[-70:]


async def test_show_by_trace(memory: Any, managed: Shell, sdk_traces: Any) -> None:
    """A trace leads to its turn, whatever session it is in."""
    await talk(memory)
    for record in await memory.turns("alice"):
        (trace,) = record.sdk_trace_ids
        assert managed.good("show", "--trace", trace, "--json").json()[0]["turn"] == record.turn
        assert f"is of turn {record.turn} of" in managed.bad(1, "show", "bob", "--trace", trace)
    assert "no turn has the trace 'trace_nope'" in managed.bad(1, "show", "--trace", "trace_nope")


async def test_show_as_seen(memory: Any, managed: Shell) -> None:
    """--as-seen prints exactly what the model was given, call by call."""
    given: list[Any] = []
    agent = scripted_agent(call("add"), assistant("3"), tools=[counted("add", [])])
    await talk(memory)
    await Runner.run(agent, "Add it.", session=memory.session("alice"))
    given = [list(each.input) for each in agent.model.calls]
    for number, expected in enumerate(given, start=1):
        seen = managed.good(
            "show", "alice", "--turn", "3", "--as-seen", "--call", str(number)
        ).json()
        assert seen == [json.loads(json.dumps(expected))]
    beyond = managed.bad(1, "show", "alice", "--turn", "3", "--as-seen", "--call", "9")
    assert "made 2 model calls, got call 9" in beyond
    managed.bad(2, "show", "alice", "--as-seen")


# --- tail ------------------------------------------------------------------------------------


async def test_tail(memory: Any, managed: Shell) -> None:
    """Turns are told as they happen, those of a new session too; Ctrl-C ends it with 130."""
    await talk(memory)
    reads, writes = os.pipe()
    errors_read, errors_write = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    running = await asyncio.to_thread(
        managed.start, "tail", "--json", "--last", "1", descriptors=(nothing, writes, errors_write)
    )
    for descriptor in (nothing, writes, errors_write):
        os.close(descriptor)
    with os.fdopen(reads) as told, os.fdopen(errors_read) as errors:

        async def next_ended() -> tuple[str, int]:
            while True:
                record = json.loads(await asyncio.to_thread(told.readline))
                if record["state"] != "running":
                    return record["session_id"], record["turn"]

        assert await next_ended() == ("alice", 2)
        await talk(memory, "alice", "And again.")
        assert await next_ended() == ("alice", 3)
        await talk(memory, "new", HI)
        assert await next_ended() == ("new", 1)
        await park(memory, "alice")
        assert await next_ended() == ("alice", 4)
        running.signal(signal.SIGINT)
        assert await asyncio.to_thread(running.wait) == 130
        assert errors.read() == ""


# --- pending ---------------------------------------------------------------------------------


async def test_pending(memory: Any, managed: Shell) -> None:
    """What waits is listed, of one session and of all."""
    await talk(memory)
    assert "Nothing waits" in managed.good("pending").stdout
    await park(memory)
    (waiting,) = await memory.pending()
    (told,) = managed.good("pending", "--json").json()
    assert (told["session_id"], told["turn"]) == ("bob", 1)
    assert [call["id"] for call in told["calls"]] == [call.id for call in waiting.calls]
    assert "bob" in managed.good("pending", "bob").stdout
    assert managed.good("pending", "alice", "--json").json() == []
    assert managed.good("pending", "--prefix", "x", "--json").json() == []


async def test_decide_what_waits(memory: Any, managed: Shell) -> None:
    """A decision is noted once; without one nothing is done."""
    await park(memory)
    (waiting,) = await memory.pending()
    managed.bad(2, "decide", "bob", "1", "call_x")
    assert "no call 'call_x'" in managed.bad(1, "decide", "bob", "1", "call_x", "--approve")
    for each in waiting.calls:
        managed.good("decide", "bob", "1", each.id, "--reject", "--message", "Too much.")
        assert "DuplicateTurn" in managed.bad(1, "decide", "bob", "1", each.id, "--approve")
        (now,) = await memory.pending()
        assert [(call.approved, call.message) for call in now.calls] == [(False, "Too much.")]


# --- export and import -----------------------------------------------------------------------


def _without_fences(text: str) -> str:
    """The lines but for the newest fence of the memory, which Redis takes from a clock."""
    return re.sub(r'"fence": \d+', "", text)


async def test_export_and_import(memory: Any, managed: Shell, tmp_path: Path) -> None:
    """What an export has is what an import makes; the same once more changes nothing."""
    await talk(memory)
    await park(memory)
    lines = [line async for line in memory.export()]
    assert _without_fences(managed.good("export").stdout) == _without_fences("".join(lines))
    told = managed.good("export", "--json", "-o", "all.jsonl").json()
    assert told == [{"file": "all.jsonl", "sessions": 2}]
    file = tmp_path / "all.jsonl"
    assert _without_fences(file.read_text()) == _without_fences("".join(lines))
    assert file.stat().st_mode & 0o777 == 0o600
    managed.good("export", "alice", "-o", "one.jsonl")
    assert '"bob"' not in (tmp_path / "one.jsonl").read_text()
    other = Shell(managed.commands, tmp_path, f"sqlite:///{tmp_path}/other.db")
    assert "imported 2 sessions" in other.good("import", "all.jsonl").stdout
    assert other.good("import", "-", "--json", stdin=file.read_bytes()).json() == [{"imported": 0}]
    # The number of the newest lease is the only thing that a memory has of its own.
    fence = re.compile(r'"fence": \d+')
    assert fence.sub("", other.good("export").stdout) == fence.sub("", "".join(lines))


async def test_an_import_replaces_only_when_told(memory: Any, managed: Shell) -> None:
    """A session with other turns is refused, and replaced with --replace --yes."""
    await talk(memory)
    managed.good("export", "-o", "all.jsonl")
    await talk(memory, "alice", "More.")
    assert "ConflictingMemory" in managed.bad(1, "import", "all.jsonl")
    managed.bad(2, "import", "--replace", "all.jsonl")
    assert len(await memory.load_session("alice")) == 6
    managed.good("import", "--replace", "--yes", "all.jsonl")
    assert len(await memory.load_session("alice")) == 4


# --- fork, undo, delete, prune, unlock -------------------------------------------------------


async def test_fork(memory: Any, managed: Shell) -> None:
    """A fork has the turns up to one; the id of a session that is there is refused."""
    await talk(memory)
    managed.good("fork", "alice", "branch", "--at-turn", "1")
    assert letters(await memory.load_session("branch")) == "U A"
    assert "already" in managed.bad(1, "fork", "alice", "branch")
    assert "no session 'nobody'" in managed.bad(1, "fork", "nobody", "new")


async def test_undo(memory: Any, managed: Shell) -> None:
    """The newest turns go, when it is confirmed, and are told once more."""
    await talk(memory)
    managed.bad(2, "undo", "alice")
    (told,) = managed.good("undo", "alice", "--yes", "--json").json()
    assert told["turn"] == 2
    assert await memory.load_session("alice") == (await memory.turns("alice"))[-1].items
    managed.good("undo", "alice", "--yes", "--turns", "9")
    assert await memory.load_session("alice") == []
    assert "no session 'nobody'" in managed.bad(1, "undo", "nobody", "--yes")


async def test_delete(memory: Any, managed: Shell) -> None:
    """By id and by prefix; an id that is not there is named, and nothing is deleted."""
    for name in ("alice", "user:1", "user:2"):
        await talk(memory, name, HI)
    managed.bad(2, "delete", "alice")
    managed.bad(2, "delete", "--yes")
    managed.bad(2, "delete", "--yes", "alice", "--prefix", "a")
    assert "no session 'nobody'" in managed.bad(1, "delete", "alice", "nobody", "--yes")
    assert len(await memory.sessions()) == 3
    assert managed.good("delete", "alice", "--yes", "--json").json() == [{"deleted": 1}]
    assert managed.good("delete", "--prefix", "user:", "-y", "--json").json() == [{"deleted": 2}]
    assert await memory.sessions() == []


async def test_prune(memory: Any, managed: Shell) -> None:
    """Sessions without activity for so long go, when it is confirmed; --dry-run counts them."""
    await talk(memory)
    managed.bad(2, "prune")
    managed.bad(2, "prune", "--older-than", "soon", "--yes")
    managed.bad(2, "prune", "--older-than", "0s")
    dry = managed.good("prune", "--older-than", "0s", "--dry-run", "--json")
    assert dry.json() == [{"would_delete": 1}]
    assert managed.good("prune", "--older-than", "30d", "-y", "--json").json() == [{"deleted": 0}]
    assert managed.good("prune", "--older-than", "0s", "-y", "--json").json() == [{"deleted": 1}]


async def test_unlock(memory: Any, managed: Shell) -> None:
    """A session that a turn holds is taken away from it, when it is confirmed."""
    await talk(memory)
    assert "nobody held alice" in managed.good("unlock", "alice").stdout
    assert "no session 'nobody'" in managed.bad(1, "unlock", "nobody")
    lost: list[str] = []

    async def work() -> None:
        try:
            async with session_scope("alice", memory=memory):
                held.set()
                await released.wait()
                await memory.append_to_session("alice", [{"role": "user", "content": "late"}])
        except Exception as error:
            lost.append(type(error).__name__)

    held, released = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(work())
    await held.wait()
    (newest, *_) = await memory.turns("alice", 1)
    if newest.state == "running":
        assert "--yes" in await asyncio.to_thread(managed.bad, 2, "unlock", "alice")
    done = await asyncio.to_thread(managed.good, "unlock", "alice", "--yes", "--json")
    assert done.json() == [{"session_id": "alice", "released": True}]
    released.set()
    await task
    assert lost == ["TurnLost"]
    assert len(await memory.load_session("alice")) == 4


# --- scopes ----------------------------------------------------------------------------------


async def test_a_scope_sees_only_its_own(memory: Any, managed: Shell) -> None:
    """No command under --scope reads, tells or changes a session of another tenant."""
    await talk(memory.scoped("a"), "thread")
    await talk(memory.scoped("b"), "thread", "A secret of b.")
    await park(memory.scoped("b"), "waits")
    there = _without_fences("".join([line async for line in memory.scoped("b").export()]))

    def of_a(*arguments: str) -> str:
        done = managed(*arguments, "--scope", "a")
        return done.stdout + done.stderr

    told = [
        of_a("list", "--json"),
        of_a("show", "thread"),
        of_a("show", "b:thread"),
        of_a("pending", "--json"),
        of_a("export"),
        of_a("fork", "b:thread", "mine"),
        of_a("undo", "waits", "--yes"),
        of_a("delete", "waits", "--yes"),
        of_a("delete", "b:thread", "--yes"),
        of_a("prune", "--older-than", "0", "--yes"),
        of_a("unlock", "waits"),
    ]
    assert not any("secret" in each for each in told)
    now = "".join([line async for line in memory.scoped("b").export()])
    assert _without_fences(now) == there
    assert await memory.scoped("a").sessions() == []


async def test_a_service_goes_on_meanwhile(memory: Any, managed: Shell) -> None:
    """Commands run while turns do, and no turn is lost to one that only reads."""
    stop = asyncio.Event()

    async def serve() -> int:
        turns = 0
        while not stop.is_set():
            await talk(memory, "busy", f"No. {turns}")
            turns += 1
        return turns

    service = asyncio.create_task(serve())
    await until(lambda: memory.session_exists("busy"))
    for command in (("list",), ("show", "busy"), ("export",), ("pending",)):
        await asyncio.to_thread(managed.good, *command)
    stop.set()
    turns = await service
    assert len(await memory.turns("busy")) == turns


# --- copy and import-sdk ---------------------------------------------------------------------


async def test_copy(memory: Any, managed: Shell, tmp_path: Path) -> None:
    """Every conversation goes along with what waits in it; the same once more changes nothing."""
    await talk(memory)
    await park(memory)
    await talk(memory.scoped("a"), "thread")
    told = managed.good("copy", str(managed.url), "copy.db", "--json").json()
    assert told == [{"copied": 3}]
    assert "copied 0 sessions" in managed.good("copy", str(managed.url), "copy.db").stdout
    other = Shell(managed.commands, tmp_path, f"sqlite:///{tmp_path}/copy.db")
    fence = re.compile(r'"fence": \d+')
    assert fence.sub("", other.good("export").stdout) == fence.sub(
        "", managed.good("export").stdout
    )
    assert len(other.good("pending", "--json").json()) == 1
    managed.good("copy", str(managed.url), "scope.db", "--scope", "a")
    listed = managed.good("list", "--memory", "scope.db", "--json").json()
    assert [each["session_id"] for each in listed] == ["a:thread"]
    await talk(memory, "alice", "More.")
    assert "ConflictingMemory" in managed.bad(1, "copy", str(managed.url), "copy.db")
    managed.bad(2, "copy", str(managed.url), "copy.db", "--replace")
    managed.good("copy", str(managed.url), "copy.db", "--replace", "--yes")
    assert other.good("show", "alice", "--last", "1").stdout.count("More.") == 1
    managed.bad(1, "copy", "absent.db", "new.db")
    assert not (tmp_path / "new.db").exists()


async def test_import_sdk(memory: Any, managed: Shell, tmp_path: Path) -> None:
    """A file of the SDK's own session becomes conversations; opened as ours, it says how."""
    session = SQLiteSession("old", tmp_path / "old.db")
    await Runner.run(local_agent(), HI, session=session)
    items = await session.get_items()
    session.close()
    assert "import-sdk" in managed.bad(1, "list", "--memory", "old.db")
    assert managed.good("import-sdk", "old.db", "--json").json() == [{"imported": 1}]
    assert managed.good("import-sdk", "old.db", "--json").json() == [{"imported": 0}]
    assert await memory.load_session("old") == items
    assert "InvalidOption" in managed.bad(1, "import-sdk", "absent.db")
    assert "InvalidOption" in managed.bad(1, "import-sdk", "old.db", "--sessions-table", "x;y")
