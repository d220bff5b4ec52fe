"""Every example runs alone in an empty folder, without a key, and shows what its text says."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import session_middleware
from session_middleware import SQLiteSessionMemory, testing
from session_middleware.testing import Provider, assert_no_session, busy_session, call
from tests.support.example_processes import (
    EXAMPLES,
    alone,
    run,
    run_by_itself,
    served,
    served_by_workers,
    start,
)
from tests.support.postgres import make_database
from tests.support.programs import Programs

SHOWN = {
    "quickstart": ["San Francisco", "California"],
    "many_sessions": [
        "user_Alice: Your name is Alice.",
        "user_Bob: Your name is Bob.",
        "user_Carol: Your name is Carol.",
        "user_Dave: Your name is Dave.",
        "sessions: user_Alice, user_Bob, user_Carol, user_Dave",
    ],
    "streaming": [
        "> Hi, I'm Alice.",
        "Nice to meet you, Alice.",
        "> What's my name?",
        "Your name is Alice.",
    ],
    "custom_memory": ["Your name is Alice.", "user/alice 4 items"],
    "decorating_functions": [
        "Your name is Dora.",
        "Your name is Alice.",
        "in session ('user:bob', 1)",
        "Nice to meet you, Bob.",
        "Your name is Carol.",
    ],
    "payments": [
        "the first worker",
        "  attempt 1: charge sent with key 30714e40...",
        "the second worker",
        "  attempt 2: charge sent with key 30714e40...",
        "  Your card was charged once.",
        "charges on the card: [500]",
    ],
    "bot_redelivery": [
        "the first worker",
        "  m1: Nice to meet you, Alice.",
        "  m2: The tool says: 2 seats are booked",
        "the second worker",
        "  m2: The tool says: 2 seats are booked",
        "  m3: Your name is Alice.",
        "bookings: ['2 seats']",
    ],
    "support_desk": [
        "> Hi, I'm Alice.",
        "Triage: Nice to meet you, Alice.",
        "> I need billing, please.",
        "Billing: I have heard 2 messages from you.",
        "> You charged me twice: refund 500, please.",
        "Billing: The tool says: 500 cents are refunded",
        "> Now to technical: nothing prints.",
        "Technical: I have heard 4 messages from you.",
        "> What's my name?",
        "Technical: Your name is Alice.",
    ],
    "migrating_from_to_input_list": ["California", "4 items are stored"],
    "tracing_console": [
        "session_turn chat  session.id=user_alice  session_middleware.turn=1"
        "  session_middleware.history.item_count=0",
        "  acquire_session  session.id=user_alice  gen_ai.memory.record.count=0",
        "  search_memory  session.id=user_alice  gen_ai.memory.record.count=0",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "  chat  session.id=user_alice",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "  end_turn  session.id=user_alice  gen_ai.memory.record.count=0",
        "Nice to meet you, Alice.",
        "session_turn chat  session.id=user_alice  session_middleware.turn=2"
        "  session_middleware.history.item_count=2",
        "  acquire_session  session.id=user_alice  gen_ai.memory.record.count=0",
        "  search_memory  session.id=user_alice  gen_ai.memory.record.count=2",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "  chat  session.id=user_alice",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "  end_turn  session.id=user_alice  gen_ai.memory.record.count=0",
        "Your name is Alice.",
    ],
}
BY_THEMSELVES = {"quickstart"}
"""An interpreter runs these; the others are forked, as most of their time went into imports."""
SERVICES = {"fastapi_chat", "approvals_http", "postgres_workers"}
OTHERS = {"terminal_chat", "batch"}
ELSEWHERE = {"tracing_phoenix"}  # needs a server: tests/interop/test_phoenix.py
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.py"))


def test_every_example_is_tested() -> None:
    """A new example has its expected output here, or a test of its own."""
    assert set(NAMES) == set(SHOWN) | SERVICES | OTHERS | ELSEWHERE


@pytest.mark.parametrize("name", NAMES)
def test_an_example_can_be_copied(name: str) -> None:
    """It is short, says what to install, and imports nothing private and no other example."""
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 100
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert re.search(r"^ *pip install '?session-middleware", docstring, re.MULTILINE)
    public = {
        "session_middleware": {*session_middleware.__all__, *session_middleware._ON_DEMAND},
        "session_middleware.testing": set(testing.__all__),
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not any(each.name.startswith("session_middleware") for each in node.names)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0
            assert node.module not in NAMES
            if node.module.startswith("session_middleware"):
                assert {each.name for each in node.names} <= public[node.module]


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str, programs: Programs, tmp_path: Path) -> None:
    """The example prints exactly this, nothing beside it, and ends by itself."""
    folder = alone(name, tmp_path)
    done = run_by_itself(folder) if name in BY_THEMSELVES else run(programs, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == SHOWN[name]


def test_terminal_chat_goes_on(programs: Programs, tmp_path: Path) -> None:
    """Started again it shows what was said and knows it; another name is another conversation."""
    folder = alone("terminal_chat", tmp_path)
    first = run(programs, folder, "home", given="Hi, I'm Alice.\n")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "> Nice to meet you, Alice.\n> "
    again = run(programs, folder, "home", given="What's my name?\n")
    assert re.fullmatch(
        r"  \d\d \w{3} \d\d:\d\d  Nice to meet you, Alice\.\n> Your name is Alice\.\n> ",
        again.stdout,
    )
    other = run(programs, folder, "work", given="What's my name?\n")
    assert other.stdout == "> You have not told me your name.\n> "
    listed = run(programs, folder, "--list")
    assert listed.stdout == "work: 1 turns, What's my name?\nhome: 2 turns, Hi, I'm Alice.\n"


async def test_a_batch_is_killed_and_goes_on(programs: Programs, tmp_path: Path) -> None:
    """After a kill in the middle the rest is done, and no row twice."""
    folder = alone("batch", tmp_path)
    process = start(programs, folder, "batch.py")
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "50 rows\n"
    process.kill()
    process.communicate()
    done = await asyncio.to_thread(run, programs, folder)
    assert (done.returncode, done.stderr) == (0, "")
    *_, told, row = done.stdout.splitlines()
    assert row == "row 1: Nice to meet you, Customer1."
    found = re.fullmatch(r"(\d+) rows done now, (\d+) before", told)
    assert found is not None
    now, before = map(int, found.groups())
    assert (now + before, before >= 50) == (500, True)
    async with SQLiteSessionMemory(folder / "batch.db") as memory:
        sessions = await memory.sessions(limit=1000)
        assert len(sessions) == 500
        assert {info.items for info in sessions} == {2}


# --- services --------------------------------------------------------------------------------


def said(answer: Any) -> str:
    """The text of a stream of server-sent events."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = re.findall(r'^data: "(.*)"$', answer.text, re.MULTILINE)
    return "".join(parts)


async def test_fastapi_chat(programs: Programs, tmp_path: Path) -> None:
    """Streams and remembers; a repeated request, a busy thread; lists, pages and deletes."""
    folder = alone("fastapi_chat", tmp_path)

    async with SQLiteSessionMemory(folder / "chat.db") as memory:
        loop = asyncio.get_running_loop()

        async def while_busy(ask: Callable[[], Any]) -> Any:
            async with busy_session(memory, "alice:7"):
                return await asyncio.to_thread(ask)

        def busy(ask: Callable[[], Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(while_busy(ask), loop).result()

        await asyncio.to_thread(talk, programs, folder, busy)
        await assert_no_session(memory, "alice:7")


def talk(programs: Programs, folder: Path, busy: Callable[[Callable[[], Any]], Any]) -> None:
    """The requests of that test; ``busy`` makes one while another worker holds thread 7."""
    with served(programs, folder) as client:

        def ask(thread: str, text: str, **headers: str) -> Any:
            return client.post(f"/threads/{thread}", json={"text": text}, headers=headers)

        first = ask("7", "Hi, I'm Alice.", **{"Idempotency-Key": "a1"})
        assert said(first) == "Nice to meet you, Alice."
        assert first.text.count("data: ") == 5
        again = ask("7", "Hi, I'm Alice.", **{"Idempotency-Key": "a1"})
        assert (said(again), again.text.count("data: ")) == ("Nice to meet you, Alice.", 1)
        assert ask("7", "Something else", **{"Idempotency-Key": "a1"}).status_code == 422
        assert said(ask("7", "What's my name?")) == "Your name is Alice."
        nameless = "You have not told me your name."
        assert said(ask("8", "What's my name?")) == nameless
        assert said(ask("7", "What's my name?", Authorization="user bob")) == nameless
        refused = busy(lambda: ask("7", "Hello?"))
        assert refused.status_code == 409
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json() == {"detail": "another message is being answered"}
        (newest,) = client.get("/threads", params={"limit": 1}).json()
        assert (newest["thread"], newest["turns"]) == ("8", 1)
        (older,) = client.get("/threads", params={"after": newest["cursor"]}).json()
        assert (older["thread"], older["turns"]) == ("7", 2)
        assert client.delete("/threads/7").status_code == 204
        assert [each["thread"] for each in client.get("/threads").json()] == ["8"]


def waiting(client: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/approvals").json()
    return found


def path_of(one: dict[str, Any]) -> str:
    return f"/threads/{one['thread']}/approvals/{one['turn']}/{one['call']}"


def payments(folder: Path) -> list[str]:
    file = folder / "payments.txt"
    return file.read_text().split() if file.exists() else []


def test_approvals_http(programs: Programs, tmp_path: Path) -> None:
    """What one worker parked is listed, approved or rejected, and resumed by any other, once."""
    folder = alone("approvals_http", tmp_path)
    with served(programs, folder) as client, ThreadPoolExecutor() as threads:
        workers = set()
        for number in range(1, 100):
            asked = client.post(f"/threads/{number}", json={"text": f"Please pay {number}."}).json()
            assert (asked["text"], asked["waits"]) == (None, 1)
            assert payments(folder) == [str(each) for each in range(1, number)]
            (one,) = waiting(client)
            assert (one["tool"], one["arguments"]) == ("pay", f'{{"cents":{number}}}')
            post = threads.submit
            race = [post(client.post, path_of(one), json={"approve": True}) for _ in range(2)]
            answers = sorted((each.result() for each in race), key=lambda one: one.status_code)
            assert [each.status_code for each in answers] == [200, 409]
            assert answers[0].json()["text"] == f"The tool says: paid {number}"
            assert waiting(client) == []
            workers.add((asked["worker"], answers[0].json()["worker"]))
            if any(parked != resumed for parked, resumed in workers):
                break
        assert any(parked != resumed for parked, resumed in workers)

        client.post("/threads/no", json={"text": "Please pay 666."})
        (one,) = waiting(client)
        assert client.get("/approvals", headers={"Authorization": "user bob"}).json() == []
        bob = {"Authorization": "user bob"}
        assert client.post(path_of(one), json={"approve": True}, headers=bob).status_code == 409
        rejected = client.post(path_of(one), json={"approve": False})
        assert (rejected.status_code, "paid" in rejected.json()["text"]) == (200, False)
        assert client.post(path_of(one), json={"approve": True}).status_code == 409
        assert client.post("/threads/no/resume").status_code == 404
        assert "666" not in payments(folder)


def test_a_resume_that_failed_is_made_again(
    programs: Programs, tmp_path: Path, provider: Provider
) -> None:
    """The provider is down after the payment: the resume fails, is made again, and pays nothing."""
    folder = alone("approvals_http", tmp_path)
    environment = {
        "OPENAI_API_KEY": "local",
        "OPENAI_BASE_URL": provider.base_url,
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }
    with served(programs, folder, **environment) as client:
        provider.script(call("pay", {"cents": 500}))
        client.post("/threads/7", json={"text": "Please pay."})
        (one,) = waiting(client)
        provider.script(503, 503, 503)  # the client tries three times
        assert client.post(path_of(one), json={"approve": True}).status_code == 500
        assert (payments(folder), waiting(client)) == (["500"], [])
        again = client.post("/threads/7/resume")
        assert (again.status_code, again.json()["text"]) == (200, "The tool says: paid 500")
        assert payments(folder) == ["500"]
        assert client.post("/threads/7/resume").status_code == 404
    assert provider.refused == []


async def test_postgres_workers(
    programs: Programs, tmp_path: Path, postgres_server_url: str
) -> None:
    """Two workers answer one thread by turns, on tables that the schema command made."""
    folder = alone("postgres_workers", tmp_path)
    url = await make_database(postgres_server_url)
    schema = start(programs, folder, "-m", "session_middleware.cli", "schema")
    statements, _ = await asyncio.to_thread(schema.communicate)
    connection: Any = await asyncpg.connect(url)
    await connection.execute(statements)
    await connection.close()

    def story() -> None:
        with served_by_workers(folder, DATABASE_URL=url) as client:
            key = {"Idempotency-Key": "a1"}
            hello = {"text": "Hi, I'm Alice."}
            first = client.post("/threads/7", json=hello, headers=key).json()
            assert first["text"] == "Nice to meet you, Alice."
            assert (
                client.post("/threads/7", json=hello, headers=key).json()["text"] == first["text"]
            )
            workers = {first["worker"]}
            for _ in range(100):
                answer = client.post("/threads/7", json={"text": "What's my name?"}).json()
                assert answer["text"] == "Your name is Alice."
                workers.add(answer["worker"])
                if len(workers) == 2:
                    break
            assert len(workers) == 2
            assert client.get("/health").json()["worker"] in workers

    await asyncio.to_thread(story)
