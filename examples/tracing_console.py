"""Each turn is one trace that names its session; here the traces are printed as trees.

    pip install 'session-middleware[otel]'
    python tracing_console.py

A program that sends its traces somewhere has an OTLPSpanExporter in the place of PrintedTrees, and
nothing else changes.
"""

import asyncio
import os
from collections.abc import Sequence

from agents import Agent, Runner, set_tracing_disabled
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from session_middleware import InMemorySessionMemory, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel()
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)


class PrintedTrees(SpanExporter):
    """Prints every trace as a tree when its first span has ended."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take spans as they end; the one without a parent ends last."""
        for span in spans:
            self.ended.append(span)
            if span.parent is None:
                self.show(span, "")
                self.ended.clear()
        return SpanExportResult.SUCCESS

    def show(self, span: ReadableSpan, indent: str) -> None:
        """Print a span, then its children in the order in which they began."""
        said = span.attributes or {}
        facts = [f"{key}={said[key]}" for key in SHOWN if key in said]
        print(f"{indent}{span.name}  {'  '.join(facts)}")
        for child in sorted(self.ended, key=lambda ended: ended.start_time or 0):
            if child.parent and child.parent.span_id == span.context.span_id:
                self.show(child, indent + "  ")


SHOWN = (
    "session.id",
    "session_middleware.turn",
    "session_middleware.history.item_count",
    "gen_ai.memory.record.count",
)

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(PrintedTrees()))
trace.set_tracer_provider(provider)  # found by itself; nothing is passed to the decorator

agent = Agent(name="Assistant", instructions="Reply very concisely.", model=model)


@with_session_memory(memory=InMemorySessionMemory())
async def chat(question: str) -> str:
    """Answer one question."""
    result = await Runner.run(agent, question)
    return result.final_output


async def main() -> None:
    """Two turns of one conversation, so two traces of one session."""
    print(await chat("Hi, I'm Alice.", session_id="user_alice"))
    print(await chat("What's my name?", session_id="user_alice"))


if __name__ == "__main__":
    asyncio.run(main())
