"""A service of four sessions that sends its traces over OTLP; made for tools that receive them.

    python tests/interop/service.py LIBRARY ENDPOINT DATABASE PART

LIBRARY is ``alone``, or one of ``environments.LIBRARIES`` that traces the SDK beside us. PART is
``first``, or ``resume`` for what another process does later. It runs in the library's own
environment, with the headers of OTEL_EXPORTER_OTLP_HEADERS, talks to a provider on this machine,
and prints the turns of each session as its records have them.

- alice uses a tool, then waits for an approval, which another process resumes;
- bob hands over to another agent, and then reads a stream;
- carol's first turn fails, and is made again with the same key;
- dora's turn is a request to a web application that is traced as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import Agent, OpenAIResponsesModel, Runner, RunState, function_tool
from agents.tracing import set_trace_processors
from openai import AsyncOpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

sys.path.insert(0, str(Path(__file__).parents[2]))
from session_middleware import SQLiteSessionMemory, with_session_memory
from session_middleware.telemetry import SessionSpanProcessor
from session_middleware.testing.models import assistant, call, scripted_agent
from session_middleware.testing.provider import local_provider

CAROLS = "What is the weather in Bern?"
SESSIONS = ("alice", "bob", "carol", "dora")


def provider(endpoint: str) -> TracerProvider:
    """The application's provider."""
    made = TracerProvider()
    made.add_span_processor(SessionSpanProcessor())
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(made)
    return made


def alone(made: TracerProvider) -> None:
    """Nobody else traces."""


def openinference(made: TracerProvider) -> None:
    from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument(tracer_provider=made)


def genai(made: TracerProvider) -> None:
    from opentelemetry.instrumentation.genai.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument(tracer_provider=made)


BESIDE: dict[str, Callable[[TracerProvider], None]] = {
    "alone": alone,
    "openinference": openinference,
    "genai": genai,
}


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


@function_tool(name_override="weather", needs_approval=True)
def guarded_weather(city: str) -> str:
    """Tell the weather in a city, if allowed."""
    return f"sunny in {city}"


class Service:
    """The agents, and the decorated function that the sessions share."""

    def __init__(self, memory: SQLiteSessionMemory, client: AsyncOpenAI, folder: Path) -> None:
        model = OpenAIResponsesModel("test-model", client)
        self.free = Agent(name="Free", model=model, tools=[weather])
        self.guarded = Agent(name="Guarded", model=model, tools=[guarded_weather])
        self.state = folder / "state.json"
        self.fails = True

        @with_session_memory(memory=memory)
        async def chat(agent: Any, given: Any) -> Any:
            result = await Runner.run(agent, given)
            if self.fails and given == CAROLS:
                raise LookupError("no such city")
            return result

        self.chat = chat
        self.streamed = with_session_memory(Runner.run_streamed, memory=memory)

    async def alice(self) -> None:
        await self.chat(self.free, "What is the weather in Paris?", session_id="alice")
        parked = await self.chat(self.guarded, "What is the weather in Rome?", session_id="alice")
        self.state.write_text(json.dumps(parked.to_state().to_json()))

    async def alice_is_approved(self) -> None:
        state = await RunState.from_json(self.guarded, json.loads(self.state.read_text()))
        state.approve(state.get_interruptions()[0])
        await self.chat(self.guarded, state, session_id="alice")

    async def bob(self) -> None:
        expert = scripted_agent(assistant("It will be sunny."))
        desk = scripted_agent(call(f"transfer_to_{expert.name.lower()}"), handoffs=[expert])
        await self.chat(desk, "Will the sun shine?", session_id="bob")
        result = self.streamed(self.free, "What is the weather in Oslo?", session_id="bob")
        async for _ in result.stream_events():
            pass
        await result.run_loop_task

    async def carol(self) -> None:
        named = {"session_id": "carol", "idempotency_key": "request-1"}
        with contextlib.suppress(LookupError):
            await self.chat(self.free, CAROLS, **named)
        self.fails = False
        await self.chat(self.free, CAROLS, **named)

    async def dora(self) -> None:
        import httpx
        from fastapi import FastAPI
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        app = FastAPI()

        @app.post("/chat")
        async def answer(question: str) -> str:
            result = await self.chat(self.free, question, session_id="dora")
            return str(result.final_output)

        FastAPIInstrumentor.instrument_app(app)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service"
        ) as client:
            (await client.post("/chat", params={"question": "Hi, I'm Dora."})).raise_for_status()


async def serve(part: str, database: Path, base_url: str) -> dict[str, list[tuple[int, str]]]:
    """Make the turns; returns number and state of each, oldest first."""
    async with (
        SQLiteSessionMemory(database) as memory,
        AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client,
    ):
        service = Service(memory, client, database.parent)
        if part == "first":
            await asyncio.gather(service.alice(), service.bob(), service.carol(), service.dora())
        else:
            await service.alice_is_approved()
        return {
            session: [(each.turn, each.state) for each in reversed(await memory.turns(session))]
            for session in SESSIONS
        }


def main(library: str, endpoint: str, database: str, part: str) -> None:
    """Set tracing up, make the turns, send what was traced."""
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"
    set_trace_processors([])  # the SDK's own would export over the network
    made = provider(endpoint)
    BESIDE[library](made)
    with local_provider() as models:
        turns = asyncio.run(serve(part, Path(database), models.base_url))
    made.shutdown()
    json.dump(turns, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
