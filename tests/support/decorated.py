"""Decorated functions that other processes can import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from agents import Runner

from session_middleware import with_session_memory
from session_middleware.testing.models import local_agent

remember = with_session_memory(memory="sqlite:///shared.db")


@remember
async def chat(text: str, *, loud: bool = False) -> str:
    """Say something to the agent."""
    answer = str((await Runner.run(local_agent(), text)).final_output)
    return answer.upper() if loud else answer


@remember
def chat_sync(text: str) -> str:
    """Say something to the agent, without a loop."""
    return str(Runner.run_sync(local_agent(), text).final_output)


@remember
async def words(text: str) -> AsyncIterator[str]:
    """The answer, word by word."""
    for word in str((await Runner.run(local_agent(), text)).final_output).split():
        yield word


@remember
def words_sync(text: str) -> Iterator[str]:
    """Likewise, without a loop."""
    yield from str(Runner.run_sync(local_agent(), text).final_output).split()


class Support:
    """A service with methods of every kind."""

    def __init__(self, name: str = "support") -> None:
        self.name = name

    @remember
    async def reply(self, text: str) -> str:
        """Answer as this service."""
        return f"{self.name}: {(await Runner.run(local_agent(), text)).final_output}"

    @remember
    @classmethod
    async def of_class(cls, text: str) -> str:
        """Answer as the class."""
        return f"{cls.__name__}: {(await Runner.run(local_agent(), text)).final_output}"

    @remember
    @staticmethod
    async def of_nobody(text: str) -> str:
        """Answer."""
        return str((await Runner.run(local_agent(), text)).final_output)


def called(function: object, text: str, session_id: str) -> str:
    """Call it in a process of its own, with or without a loop."""
    value = function(text, session_id=session_id)  # type: ignore[operator]
    return str(asyncio.run(value) if asyncio.iscoroutine(value) else value)
