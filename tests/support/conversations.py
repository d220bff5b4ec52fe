"""Conversations at random, with everything that goes wrong in one, against a provider over HTTP.

A story is one session and some steps, drawn by a seed. Each step is a request of a user's, or
something that happens to one: the provider fails, a reader leaves, a person decides. The provider
refuses every invalid history; a step raises nothing but what its mishap is to raise.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import enumerate as enumerate_threads
from typing import Any
from urllib.parse import urlsplit

from agents import (
    Agent,
    GuardrailFunctionOutput,
    Runner,
    function_tool,
    handoff,
    input_guardrail,
    output_guardrail,
)
from agents.models.interface import Model
from openai import APIStatusError

from session_middleware import (
    SQLiteSessionMemory,
    TurnLost,
    last_items,
    last_turns,
    with_session_memory,
)
from session_middleware.testing.models import calls
from session_middleware.testing.provider import Provider
from tests.support.conditions import until

SESSION = "s"
WINDOWS = (None, None, last_turns(1), last_turns(3), last_items(3), last_items(8))
UNAVAILABLE = 503


class Mishap(Exception):
    """A tool of a story fails."""


@input_guardrail
async def no_bombs(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    """Stops a run that is asked for a bomb."""
    text = given if isinstance(given, str) else str(given[-1:])
    return GuardrailFunctionOutput(None, tripwire_triggered="bomb" in text)


@output_guardrail
async def no_secrets(context: Any, agent: Any, said: Any) -> GuardrailFunctionOutput:
    """Stops an answer that tells a secret."""
    return GuardrailFunctionOutput(None, tripwire_triggered="secret" in str(said))


class Story:
    """One conversation.

    Args:
        seed: draws the steps.
        path: the file of the memory. Two memory objects have it open, as two processes would.

    Attributes:
        told: the steps so far, for whoever has to find out why one failed.
    """

    def __init__(self, seed: int, provider: Provider, model: Model, path: Path) -> None:
        self.random = random.Random(seed)
        self.provider = provider
        self.memories = [SQLiteSessionMemory(path), SQLiteSessionMemory(path)]
        self.told: list[str] = []
        self.parked: list[Any] = []
        self.number = 0
        self.streamed: Any = None
        self.in_the_tool: Callable[[], Awaitable[None]] | None = None
        self.agent = self._agent(model)

    def _agent(self, model: Model) -> Agent[Any]:
        @function_tool
        async def weather(city: str) -> str:
            """The weather of a city."""
            return f"sun in {city}"

        @function_tool(failure_error_function=None)
        async def risky() -> str:
            """During which the step's mishap happens."""
            if self.in_the_tool is not None:
                await self.in_the_tool()
            return "done"

        @function_tool(needs_approval=True)
        async def pay(amount: int) -> str:
            """Pays."""
            return f"paid {amount}"

        @function_tool(needs_approval=True, failure_error_function=None)
        async def pay_riskily(amount: int) -> str:
            """Pays, while the step's mishap happens."""
            if self.in_the_tool is not None:
                await self.in_the_tool()
            return f"paid {amount}"

        tools: list[Any] = [weather, risky, pay, pay_riskily]
        expert = Agent(name="Expert", model=model, tools=[weather])
        specialist = Agent(name="Specialist", model=model, tools=tools)
        return Agent(
            name="Assistant",
            model=model,
            tools=[*tools, expert.as_tool("ask_expert", "Asks an expert.")],
            handoffs=[handoff(specialist)],
            input_guardrails=[no_bombs],
            output_guardrails=[no_secrets],
        )

    async def tell(self, steps: Sequence[Step]) -> Counter[str]:
        """Take all steps in an order of the seed's, then the first again.

        Returns how often each was taken.
        """
        taken: Counter[str] = Counter()
        try:
            for step in (*self.random.sample(steps, len(steps)), steps[0]):
                taken[step.__name__] += 1
                self.told.append(step.__name__)
                await step(self)
                await self.forget_script()
                self.in_the_tool = None
        finally:
            for memory in self.memories:
                await memory.cleanup()
        return taken

    async def forget_script(self) -> None:
        """Drop what a mishap left unasked, once the provider has dealt with what it was asked.

        A request of a run that was cancelled may be on its way, and would take a later one's
        answer. Connections are accepted in their order.
        """
        url = urlsplit(self.provider.base_url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        await until(lambda: not any("process_request" in one.name for one in enumerate_threads()))
        self.provider._script.clear()

    # --- runs --------------------------------------------------------------------------------

    @property
    def memory(self) -> SQLiteSessionMemory:
        """That of either process."""
        return self.random.choice(self.memories)

    def question(self) -> str:
        """A new one each time."""
        self.number += 1
        return f"Question {self.number}"

    def some_calls(self, *more: tuple[str, dict[str, Any]]) -> Any:
        """A model's answer that calls these tools, and perhaps harmless ones before and after."""
        named: list[tuple[str, dict[str, Any]]] = [*more]
        for _ in range(self.random.randrange(0 if more else 1, 3)):
            city = self.random.choice(("Paris", "Rome"))
            named.insert(self.random.randrange(len(named) + 1), ("weather", {"city": city}))
        return calls(*named)

    async def run(self, given: Any, **options: Any) -> Any:
        """One run of the conversation, plain or streamed."""
        decorated = {"memory": self.memory, "window": self.random.choice(WINDOWS)}
        per_call = {"session_id": SESSION}
        for name, value in options.items():
            (per_call if name == "idempotency_key" else decorated)[name] = value
        if self.random.random() < 0.5:
            self.told.append("  run")
            run = with_session_memory(Runner.run, **decorated)
            return await run(self.agent, given, **per_call)
        self.told.append("  streamed")
        stream = with_session_memory(Runner.run_streamed, **decorated)
        self.streamed = result = stream(self.agent, given, **per_call)
        async for _ in result.stream_events():
            pass
        return result

    async def fails(self, given: Any, *errors: type[BaseException], **options: Any) -> None:
        """A run that one of the errors ends."""
        try:
            await self.run(given, **options)
        except errors as error:
            refuse_refusal(error)
        else:
            raise AssertionError(f"nothing raised {errors}")

    async def is_cancelled(self, given: Any, *, soon: bool = False) -> None:
        """A run that is cancelled: in its tool, or wherever it is after a few steps."""
        running: asyncio.Task[Any] | None = None

        async def cancel() -> None:
            assert running is not None
            running.cancel()
            await asyncio.sleep(0.01)

        self.in_the_tool, self.streamed = cancel, None
        on_departure = self.random.choice(("finish", "cancel"))
        running = asyncio.create_task(self.run(given, on_departure=on_departure))
        if soon:
            for _ in range(self.random.randrange(60)):
                await asyncio.sleep(0.0005)
            running.cancel()
        with suppress(asyncio.CancelledError, TurnLost):
            await running
        await self.is_over(self.streamed)

    async def is_over(self, result: Any) -> None:
        """Wait for the end of a streamed run that its reader has left."""
        if result is not None and result.run_loop_task is not None:
            with suppress(asyncio.CancelledError, TurnLost):
                await result.run_loop_task


def refuse_refusal(error: BaseException) -> None:
    """Raise an error of the provider's that the story did not ask for."""
    if isinstance(error, APIStatusError) and error.status_code != UNAVAILABLE:
        raise AssertionError("the provider refused a history") from error


Step = Callable[[Story], Awaitable[None]]
