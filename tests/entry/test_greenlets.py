"""In a process whose threads are greenlets a session is refused, and nothing else is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio
from agents import Agent, Runner
from session_middleware import SessionMemoryError, installed, session_scope, with_session_memory
from session_middleware.testing.models import LocalModel

agent = Agent(name="A", model=LocalModel())

async def plain():
    assert (await Runner.run(agent, "Hi")).final_output

def forms(memory):
    @with_session_memory(memory=memory)
    async def chat(text):
        return (await Runner.run(agent, text)).final_output

    async def scope():
        async with session_scope("s", memory=memory):
            await Runner.run(agent, "Hi")

    async def run():
        with installed(memory=memory):
            await Runner.run(agent, "Hi", session_id="s")

    return chat("Hi", session_id="s"), scope(), run()

asyncio.run(plain())
for memory in ("sqlite:///chat.db", ":memory:"):
    for form in forms(memory):
        try:
            asyncio.run(form)
        except SessionMemoryError as error:
            print(error)
        else:
            print("it was not refused")
asyncio.run(plain())
assert Runner.run_sync(agent, "Hi").final_output
"""


@pytest.mark.parametrize("patch", ["patch_all()", "patch_all(thread=False)"])
def test_a_patched_process(tmp_path: Path, patch: str) -> None:
    """Every first use says what to do; runs without a session go on as before."""
    done = subprocess.run(
        [sys.executable, "-c", f"from gevent import monkey; monkey.{patch}\n{SCRIPT}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={"OPENAI_AGENTS_DISABLE_TRACING": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    refusals = done.stdout.splitlines()
    assert len(refusals) == 6
    for refusal in refusals:
        assert refusal.startswith("a session needs real threads, and gevent.monkey has patched")
        assert "run agents that have sessions in a process that is not patched" in refusal
