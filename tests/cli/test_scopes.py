"""No sequence of commands under one ``--scope`` reads or changes a session of another scope.

Tenants have names that would be each other's if a scope were not written unambiguously, and the
commands name sessions by ids that would leave the scope.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest
from agents import SQLiteSession
from hypothesis import given, settings
from hypothesis import strategies as st

from session_middleware import SQLiteSessionMemory
from session_middleware.cli import main
from session_middleware.conformance.conversations import parked
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import acquire, end
from session_middleware.stores.managing import held
from tests.cli.conftest import Shell

Tenant: TypeAlias = tuple[str, ...]
"""A tenant, or a scope within one: what ``--scope`` says, once or more."""

TENANTS: tuple[Tenant, ...] = (("a",), ("a:b",), ("a", "b"), ("a%3Ab",), ("a%",), ("A",))
OWN = ("1", "2", "3", "held")
IDS = (*OWN, "b:1", "b:2", "a:1", "a:b:1", "a%3Ab:1", "%3Ab:1", "a%25:1", ":1", "", "%", "A:1")
HOUR = 3_600.0
LOST = {"type": "function_call_output", "call_id": "lost"}


def marker(tenant: Tenant) -> str:
    """A word that stands in every session of the tenant, and nowhere else."""
    return f"word-{TENANTS.index(tenant)}-of-its-own"


def trace(tenant: Tenant) -> str:
    """The trace of a turn of the tenant."""
    return f"{TENANTS.index(tenant) + 1:032x}"


def is_within(tenant: Tenant, other: Tenant) -> bool:
    """Whether the other is the tenant, or a scope within it, so that its sessions are seen."""
    return other[: len(tenant)] == tenant


# --- a file with the sessions of all -----------------------------------------------------------


def full_id(tenant: Tenant, session_id: str) -> str:
    """The id that a session has in the file, made without the code that is tested."""
    return "".join(f"{quote(name, safe='')}:" for name in tenant) + session_id


async def fill(path: Path) -> None:
    """Give each tenant a conversation, an approval that waits, a fault, and a turn at work."""
    memory = SQLiteSessionMemory(path.with_name("work.db"), lease=HOUR)
    for tenant in TENANTS:
        full, word = partial(full_id, tenant), marker(tenant)
        traced = await acquire(memory, full("1"), otel_trace_id=trace(tenant))
        await memory.append_items(traced.lease, 1, 0, [user(f"one {word}"), assistant(word)])
        await end(memory, traced, output_text=word)
        await memory.append_to_session(full("1"), [user(f"two {word}")])
        await memory.set_title(full("1"), f"title {word}")
        await parked(memory, full("2"), f"identity {word}")
        await memory.append_to_session(full("3"), [user(word), {**LOST, "output": word}])
        at_work = await acquire(memory, full("held"))
        await memory.append_items(at_work.lease, 1, 0, [user(f"at work {word}")])
    with (
        closing(sqlite3.connect(path.with_name("work.db"))) as source,
        closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)  # before the turns at work are given up
    await memory.cleanup()
    path.with_name("work.db").unlink()
    session = SQLiteSession("b:1", path.with_name("sdk.db"))
    await session.add_items([user("from the SDK")])
    session.close()


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    """No command of this process waits long for a turn at work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "PATIENCE", 0.02)
        yield


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that file, and one of the SDK's."""
    folder = tmp_path_factory.mktemp("filled")
    asyncio.run(fill(folder / "chat.db"))
    return folder


async def kept(path: Path, scope: Tenant) -> dict[str, Any]:
    """All that there is of each session that is not in the scope, by its id in the file."""
    memory = SQLiteSessionMemory(path, lease=HOUR)
    seen = full_id(scope, "")
    infos = await memory.sessions(limit=1_000, order="id")
    waiting = await memory.pending()
    found = {
        info.session_id: (
            info,
            await memory.read_copies(info.session_id, 0, 100),
            [each for each in waiting if each.session_id == info.session_id],
        )
        for info in infos
        if not info.session_id.startswith(seen)
    }
    await memory.cleanup()
    return found


@cache
def before(path: Path, scope: Tenant) -> dict[str, Any]:
    """The same in the file that every example begins with."""
    found = asyncio.run(kept(path, scope))
    others = [tenant for tenant in TENANTS if not is_within(scope, tenant)]
    assert set(found) == {full_id(tenant, each) for tenant in others for each in OWN}
    return found


# --- commands ----------------------------------------------------------------------------------

ids = st.sampled_from(IDS)
FILE, SDK, COPY, LINES, BACKUP = "{chat.db}", "{sdk.db}", "{copied.db}", "{own.jsonl}", "{fixed}"
ONE_OF = st.sampled_from([*map(trace, TENANTS), "trace_unknown"])


def command(*words: str | st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.tuples(*(st.just(word) if isinstance(word, str) else word for word in words)).map(
        list
    )


COMMANDS = st.one_of(
    command("list"),
    command("list", "--prefix", ids, "--sort", st.sampled_from(["updated", "created", "id"])),
    command("list", "--after", ids, "--sort", "id"),
    command("show", ids),
    command("show", ids, "--turn", "1", "--as-seen"),
    command("show", "--trace", ONE_OF),
    command("pending"),
    command("pending", ids),
    command("pending", "--prefix", ids),
    command("decide", ids, "1", "call_f", st.sampled_from(["--approve", "--reject"])),
    command("export"),
    command("export", ids, ids),
    command("export", "--prefix", ids),
    command("export", "--output", LINES, "--yes"),
    command("import", LINES, "--replace", "--yes"),
    command("import-sdk", SDK),
    command("copy", FILE, COPY),
    command("fork", ids, ids),
    command("undo", ids, "--yes"),
    command("delete", ids, "--yes"),
    command("delete", "--prefix", ids, "--yes"),
    command("prune", "--older-than", "0s", "--yes"),
    command("unlock", ids, "--yes"),
    command("doctor"),
    command("doctor", "--fix", "--yes", "--backup", BACKUP),
)


def words_of(order: Sequence[str], scope: Tenant, folder: Path) -> list[str]:
    """The words of a command on the file of the folder, under the scope."""
    named = [
        str(folder / word[1:-1]) if word.startswith("{") and word.endswith("}") else word
        for word in order
    ]
    options = [option for tenant in scope for option in ("--scope", tenant)]
    return [*named, "--memory", str(folder / "chat.db"), *options]


def told_in_process(words: list[str]) -> str:
    """What the command says, on both of its outputs."""
    told = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        main(words)
    return told.buffer.getvalue().decode()  # type: ignore[attr-defined]


def foreign_words(scope: Tenant, text: str) -> list[Tenant]:
    """The tenants beside the scope of whom the text has something."""
    return [
        tenant
        for tenant in TENANTS
        if not is_within(scope, tenant) and (marker(tenant) in text or trace(tenant) in text)
    ]


@contextlib.contextmanager
def own_folder(filled: Path) -> Iterator[Path]:
    """A folder with files like those."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(filled, folder, dirs_exist_ok=True)
        yield Path(folder)


def assert_in_scope(scope: Tenant, folder: Path, filled: Path) -> None:
    """Nothing of others was changed, and nothing of them is in what was written."""
    assert asyncio.run(kept(folder / "chat.db", scope)) == before(filled / "chat.db", scope)
    for file in folder.iterdir():
        if not file.name.startswith(("chat.db", "sdk.db")):
            assert foreign_words(scope, file.read_bytes().decode("utf-8", "replace")) == []


@settings(max_examples=20, deadline=None)
@given(scope=st.sampled_from(TENANTS[:4]), orders=st.lists(COMMANDS, min_size=4, max_size=12))
def test_no_sequence_of_commands_leaves_its_scope(
    filled: Path, scope: Tenant, orders: list[list[str]]
) -> None:
    """Whatever ids, prefixes and traces the commands name."""
    with own_folder(filled) as folder:
        for order in orders:
            told = told_in_process(words_of(order, scope, folder))
            for trace_id in set(order) & set(map(trace, TENANTS)):
                told = told.replace(repr(trace_id), "the trace that was asked for")
            assert foreign_words(scope, told) == [], order
        assert_in_scope(scope, folder, filled)


def test_commands_do_what_they_are_asked_in_their_scope(filled: Path) -> None:
    """The commands above do find and change what is in the scope: they do not merely fail."""
    with own_folder(filled) as folder:
        scope: Tenant = ("a:b",)

        def told(*order: str) -> str:
            return told_in_process(words_of(order, scope, folder))

        assert marker(scope) in told("show", "1")
        assert marker(scope) in told("show", "--trace", trace(scope))
        assert "call_f" in told("pending")
        assert told("decide", "2", "1", "call_f", "--approve").startswith("call_f is approved")
        assert told("export", "--output", LINES, "--yes").startswith("exported 4 sessions")
        assert told("import-sdk", SDK).startswith("imported 1 session")
        assert "fixed" in told("doctor", "--fix", "--yes", "--backup", BACKUP)
        assert told("fork", "1", "b:2").startswith("b:2 has 2 turns")
        assert told("undo", "1", "--yes").startswith("removed turn 2")
        assert told("unlock", "held", "--yes").startswith("held is free")
        assert told("copy", FILE, COPY).startswith("copied 6 sessions")
        assert told("delete", "--prefix", "b:", "--yes").startswith("deleted 2 sessions")
        assert told("import", LINES, "--replace", "--yes").startswith("imported")
        assert told("prune", "--older-than", "0s", "--yes").startswith("deleted 4 sessions")


def test_processes_stay_in_their_scope(filled: Path, shell: Shell) -> None:
    """As a shell starts them."""
    scope: Tenant = ("a",)
    with own_folder(filled) as folder:
        for order in (
            *(["list"], ["show", "b:1"], ["export", "--output", LINES]),
            *(["delete", "--prefix", "%3Ab", "--yes"], ["prune", "--older-than", "0s", "--yes"]),
        ):
            done = shell(*words_of(order, scope, folder))
            assert foreign_words(scope, done.stdout + done.stderr) == []
        assert_in_scope(scope, folder, filled)
