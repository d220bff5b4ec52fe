"""A memory of one's own: six methods are enough.

    pip install session-middleware
    python custom_memory.py

This one keeps a JSON file per session. Within one process its turns are kept apart like any
other's; what needs more than six methods (idempotency keys, discarding) is refused when it is
asked for, not when it fails. It passes ``session_middleware.conformance``: see its docs.
"""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from agents import Agent, Runner, set_tracing_disabled

from session_middleware import SessionMemory, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)


class FolderMemory(SessionMemory):
    """A folder with one JSON file per session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _file(self, session_id: str) -> Path:
        # An id may have 512 characters of any kind, the name of a file may not.
        return self.folder / f"{hashlib.sha256(session_id.encode()).hexdigest()}.json"

    async def load_session(self, session_id: str) -> list[dict[str, Any]]:
        file = self._file(session_id)
        return json.loads(file.read_text())["items"] if file.exists() else []

    async def save_session(
        self, session_id: str, conversation_history: list[dict[str, Any]]
    ) -> None:
        file = self._file(session_id)
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"id": session_id, "items": conversation_history}))
        new.replace(file)  # the old file or the new one, never half of it

    async def append_to_session(self, session_id: str, new_items: list[dict[str, Any]]) -> None:
        await self.save_session(session_id, await self.load_session(session_id) + new_items)

    async def clear_session(self, session_id: str) -> None:
        self._file(session_id).unlink(missing_ok=True)

    async def list_sessions(self) -> list[str]:
        return [json.loads(file.read_text())["id"] for file in self.folder.glob("*.json")]

    async def session_exists(self, session_id: str) -> bool:
        return self._file(session_id).exists()


agent = Agent(name="Assistant", model=model)


async def main() -> None:
    """The memory under the Runner's own method."""
    memory = FolderMemory(Path("conversations"))
    run = with_session_memory(Runner.run, memory=memory)
    await run(agent, "Hi, I'm Alice.", session_id="user/alice")
    result = await run(agent, "What's my name?", session_id="user/alice")
    print(result.final_output)
    for session_id in await memory.list_sessions():
        print(session_id, len(await memory.load_session(session_id)), "items")


if __name__ == "__main__":
    asyncio.run(main())
