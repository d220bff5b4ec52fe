"""Two conversations, sent to Phoenix, which shows each as a session with its turns.

Start Phoenix first, in an environment of its own, and let it run:

    pip install arize-phoenix
    phoenix serve

Then here, and look at the tab "Sessions" of the project "default" on http://localhost:6006:

    pip install 'session-middleware[otel]' opentelemetry-exporter-otlp-proto-http
    python tracing_phoenix.py
"""

import asyncio
import os
import sys
from urllib.request import urlopen

from agents import Agent, Runner, set_tracing_disabled
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from session_middleware import InMemorySessionMemory, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)

PHOENIX = os.environ.get("PHOENIX_COLLECTOR_ENDPOINT", "http://localhost:6006")

# What was said is sent only where it is asked for; Phoenix shows it beside each session.
os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"

agent = Agent(name="Assistant", instructions="Reply very concisely.", model=model)


@with_session_memory(memory=InMemorySessionMemory())
async def chat(question: str) -> str:
    """Answer one question."""
    result = await Runner.run(agent, question)
    return result.final_output


async def main() -> None:
    """Three turns of one conversation, and two of another."""
    for session_id, question in [
        ("user_alice", "Hi, I'm Alice."),
        ("user_bob", "Hi, I'm Bob."),
        ("user_alice", "What city is the Golden Gate Bridge in?"),
        ("user_bob", "What's my name?"),
        ("user_alice", "What's my name?"),
    ]:
        print(f"{session_id}: {await chat(question, session_id=session_id)}")


if __name__ == "__main__":
    try:  # an exporter would try for a while to reach what is not there
        urlopen(PHOENIX, timeout=5).close()
    except OSError:
        sys.exit(f"Nothing answers at {PHOENIX}: start Phoenix first, with `phoenix serve`.")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{PHOENIX}/v1/traces")))
    trace.set_tracer_provider(provider)  # found by itself; nothing is passed to the decorator
    asyncio.run(main())
    provider.shutdown()  # sends what is still waiting
