"""Turns of three sessions, made where another tracing library is installed; prints what was traced.

    python tests/interop/scenario.py openinference

The name is one of ``environments.LIBRARIES``. It runs in the library's own environment, talks to
a provider on this machine, and prints one JSON object: the spans as they were exported, the SDK's
traces, and everything that was logged at warning or above. Nothing is judged here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents import Agent, OpenAIResponsesModel, Runner, function_tool
from agents import trace as sdk_trace
from agents.tracing import add_trace_processor, set_trace_processors
from agents.tracing.processor_interface import TracingProcessor
from environments import LIBRARIES
from openai import AsyncOpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id

from session_middleware import InMemorySessionMemory, with_session_memory
from session_middleware.telemetry import SessionSpanProcessor

sys.path.insert(0, str(Path(__file__).parents[2]))
from session_middleware.testing.provider import local_provider

# --- the libraries, each set up as its own documentation says --------------------------------


def own_provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """The application's provider, with our processor in it."""
    provider = TracerProvider()
    provider.add_span_processor(SessionSpanProcessor())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def openinference(exporter: InMemorySpanExporter) -> None:
    from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument(tracer_provider=own_provider(exporter))


def genai(exporter: InMemorySpanExporter) -> None:
    from opentelemetry.instrumentation.genai.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument(tracer_provider=own_provider(exporter))


def traceloop(exporter: InMemorySpanExporter) -> None:
    from opentelemetry.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument(tracer_provider=own_provider(exporter))


def logfire(exporter: InMemorySpanExporter) -> None:
    import logfire

    def keep(match: Any) -> Any:  # else everything with "session" in its key is replaced
        return match.value if "session" in match.pattern_match.group(0).lower() else None

    logfire.configure(
        send_to_logfire=False,
        console=False,
        scrubbing=logfire.ScrubbingOptions(callback=keep),
        additional_span_processors=[SessionSpanProcessor(), SimpleSpanProcessor(exporter)],
    )
    logfire.instrument_openai_agents()


SET_UP: dict[str, Callable[[InMemorySpanExporter], None]] = {
    "openinference": openinference,
    "genai": genai,
    "traceloop": traceloop,
    "logfire": logfire,
}
"""What sets a library up so that its spans go to an exporter."""


# --- what is recorded ------------------------------------------------------------------------


class SDKTraces(TracingProcessor):
    """The SDK's own traces, as they would have been exported."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []

    def on_trace_start(self, trace: Any) -> None:
        self.started.append(trace.export() or {})

    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...
    def on_span_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Everything that any library logs at warning or above, or warns of."""
    heard: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(f"{record.name}: {record.getMessage()}")

    handler = Kept(logging.WARNING)
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield heard
        heard += [f"{one.category.__name__}: {one.message}" for one in warned]
    logging.getLogger().removeHandler(handler)


def told(span: Any) -> dict[str, Any]:
    """A span in JSON."""
    return {
        "name": span.name,
        "scope": span.instrumentation_scope.name,
        "trace": format_trace_id(span.context.trace_id),
        "id": span.context.span_id,
        "parent": span.parent.span_id if span.parent else None,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes),
        "events": [event.name for event in span.events],
    }


# --- the turns -------------------------------------------------------------------------------


async def turns(base_url: str) -> dict[str, int]:
    """Two turns of three sessions, all at once; returns how many items each session has then.

    Alice's use a tool, and wait for approval and go on; Bob's are streamed; Carol's are inside a
    trace of the application's own, with a group id of its own.
    """
    memory = InMemorySessionMemory()

    @function_tool
    def weather(city: str) -> str:
        """Tell the weather in a city."""
        return f"sunny in {city}"

    @function_tool(name_override="weather", needs_approval=True)
    def guarded_weather(city: str) -> str:
        """Tell the weather in a city, if allowed."""
        return f"sunny in {city}"

    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        model = OpenAIResponsesModel("test-model", client)
        free = Agent(name="Free", model=model, tools=[weather])
        guarded = Agent(name="Guarded", model=model, tools=[guarded_weather])

        @with_session_memory(memory=memory)
        async def chat(agent: Any, given: Any) -> Any:
            return await Runner.run(agent, given)

        @with_session_memory(memory=memory)
        async def stream(agent: Any, given: Any) -> Any:
            result = Runner.run_streamed(agent, given)
            async for _ in result.stream_events():
                pass
            return result

        streamed = with_session_memory(Runner.run_streamed, memory=memory)

        async def alice() -> None:
            await chat(free, "What is the weather in Paris?", session_id="alice")
            parked = await chat(guarded, "What is the weather in Rome?", session_id="alice")
            state = parked.to_state()
            state.approve(state.get_interruptions()[0])
            await chat(guarded, state, session_id="alice")

        async def bob() -> None:
            await stream(free, "What is the weather in Oslo?", session_id="bob")
            result = streamed(free, "Hi, I'm Bob.", session_id="bob")
            async for _ in result.stream_events():
                pass
            await result.run_loop_task

        async def carol() -> None:
            with sdk_trace("Conversation", group_id="thread-7"):
                await chat(free, "Hi, I'm Carol.", session_id="carol")
                await stream(free, "What is the weather in Rome?", session_id="carol")

        await asyncio.gather(alice(), bob(), carol())
    return {name: len(await memory.load_session(name)) for name in ("alice", "bob", "carol")}


def main(library: str) -> None:
    """Set the library up, make the turns, print what was traced."""
    exporter, sdk_traces = InMemorySpanExporter(), SDKTraces()
    set_trace_processors([])  # the SDK's own would export over the network
    with complaints() as heard:
        SET_UP[library](exporter)
        add_trace_processor(sdk_traces)  # after the library, which may remove others
        with local_provider() as provider:
            stored = asyncio.run(turns(provider.base_url))
    json.dump(
        {
            "version": version(LIBRARIES[library]),
            "spans": [told(span) for span in exporter.get_finished_spans()],
            "sdk_traces": sdk_traces.started,
            "stored": stored,
            "complaints": heard,
        },
        sys.stdout,
        default=str,
    )


if __name__ == "__main__":
    main(sys.argv[1])
