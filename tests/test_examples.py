"""Every example runs as it is, without a key, and shows what its text says."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

EXAMPLES = Path(__file__).parent.parent / "examples"

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
    "migrating_from_to_input_list": ["California", "4 items are stored"],
    "tracing_console": [
        "session_turn chat  session.id=user_alice  session_middleware.turn=1"
        "  session_middleware.history.item_count=0",
        "  search_memory  session.id=user_alice  gen_ai.memory.record.count=0",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "Nice to meet you, Alice.",
        "session_turn chat  session.id=user_alice  session_middleware.turn=2"
        "  session_middleware.history.item_count=2",
        "  search_memory  session.id=user_alice  gen_ai.memory.record.count=2",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "  create_memory  session.id=user_alice  gen_ai.memory.record.count=1",
        "Your name is Alice.",
    ],
}
NOT_SCRIPTS = {"offline", "fastapi_chat"}
ELSEWHERE = {"tracing_phoenix"}  # needs a server: tests/interop/test_phoenix.py


def test_every_example_is_tested() -> None:
    """A new example has its expected output here."""
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(SHOWN) | NOT_SCRIPTS | ELSEWHERE


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str, tmp_path: Path) -> None:
    """The example prints exactly this, nothing beside it, and ends by itself."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == SHOWN[name]


@pytest.fixture
def chat_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The FastAPI example, imported anew in the test's own directory."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "fastapi_chat", raising=False)
    yield importlib.import_module("fastapi_chat")
    sys.modules.pop("fastapi_chat", None)
    sys.modules.pop("offline", None)


def test_fastapi_chat_remembers(chat_service: Any) -> None:
    """Two requests on one thread are two turns of one conversation; other threads know nothing."""
    with TestClient(chat_service.app) as client:
        first = client.post("/chat/t1", json={"text": "Hi, I'm Alice."})
        second = client.post("/chat/t1", json={"text": "What's my name?"})
        other = client.post("/chat/t2", json={"text": "What's my name?"})
    assert (first.status_code, first.text) == (200, "Nice to meet you, Alice.")
    assert (second.status_code, second.text) == (200, "Your name is Alice.")
    assert other.text == "You have not told me your name."


def test_fastapi_chat_streams(chat_service: Any) -> None:
    """The answer comes in pieces, not in one."""
    with (
        TestClient(chat_service.app) as client,
        client.stream("POST", "/chat/t1", json={"text": "Hi, I'm Alice."}) as answer,
    ):
        pieces = [piece for piece in answer.iter_text() if piece]
    assert len(pieces) > 1
    assert "".join(pieces) == "Nice to meet you, Alice."


def test_fastapi_chat_is_409_while_busy(chat_service: Any) -> None:
    """While a turn holds the thread another message is 409 with Retry-After; then it is not."""
    from session_middleware import session_scope

    async def hold(held: asyncio.Event, let_go: asyncio.Event) -> None:
        async with session_scope("t1", memory=chat_service.memory):
            held.set()
            await let_go.wait()

    with TestClient(chat_service.app) as client:
        assert client.portal is not None
        held, let_go = asyncio.Event(), asyncio.Event()
        holder = client.portal.start_task_soon(hold, held, let_go)
        client.portal.call(held.wait)
        busy = client.post("/chat/t1", json={"text": "Hello?"})
        client.portal.call(let_go.set)
        holder.result()
        free = client.post("/chat/t1", json={"text": "Hi, I'm Alice."})
    assert busy.status_code == 409
    assert int(busy.headers["Retry-After"]) >= 1
    assert busy.json() == {"detail": "another message is being answered"}
    assert free.status_code == 200
