"""A memory of one's own: six methods are enough.

This one keeps a JSON file per session. Within one process its turns are kept apart like any
other's; what needs more than six methods (idempotency keys, discarding) is refused when it is
asked for, not when it fails.

    python examples/custom_memory.py
"""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from agents import Agent, Runner
from offline import model

from session_middleware import SessionMemory, with_session_memory


class FolderMemory(SessionMemory):
    """A folder with one JSON file per session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _file(self, session_id: str) -> Path:
        return self.folder / f"{quote(session_id, safe='')}.json"

    async def load_session(self, session_id: str) -> list[dict[str, Any]]:
        file = self._file(session_id)
        return json.loads(file.read_text()) if file.exists() else []

    async def save_session(
        self, session_id: str, conversation_history: list[dict[str, Any]]
    ) -> None:
        self._file(session_id).write_text(json.dumps(conversation_history))

    async def append_to_session(self, session_id: str, new_items: list[dict[str, Any]]) -> None:
        await self.save_session(session_id, await self.load_session(session_id) + new_items)

    async def clear_session(self, session_id: str) -> None:
        self._file(session_id).unlink(missing_ok=True)

    async def list_sessions(self) -> list[str]:
        return [unquote(file.stem) for file in self.folder.glob("*.json")]

    async def session_exists(self, session_id: str) -> bool:
        return self._file(session_id).exists()


agent = Agent(name="Assistant", model=model())


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
