"""A support desk: one conversation, several agents, and the one who has it keeps it.

    pip install session-middleware
    python support_desk.py

The conversation belongs to the session, not to an agent: whoever it is handed over to has read all
of it. The record of the last turn tells which agent answered, so the next message goes there.
"""

import asyncio
import os

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.tool_context import ToolContext

from session_middleware import SQLiteSessionMemory, current_tool_call, with_session_memory
from session_middleware.testing import LocalModel

model = None if os.environ.get("OPENAI_API_KEY") else LocalModel(uses_tools=True)
if model:  # without a key, traces cannot be sent either
    set_tracing_disabled(True)


refunds: dict[str, int] = {}


@function_tool
def refund(ctx: ToolContext, cents: int) -> str:
    """Refund an amount."""
    call = current_tool_call(ctx)
    assert call is not None
    refunds.setdefault(call.key, cents)  # as a payment provider does: once for each key
    return f"{cents} cents are refunded"


billing = Agent(
    name="Billing",
    instructions="You refund what customers paid in error.",
    handoff_description="Invoices and refunds.",
    model=model,
    tools=[refund],
)
technical = Agent(
    name="Technical",
    instructions="You help with what does not work.",
    handoff_description="Faults of the product.",
    model=model,
)
triage = Agent(
    name="Triage",
    instructions="Greet the customer and hand over to the desk that can help.",
    model=model,
    handoffs=[billing, technical],
)
billing.handoffs = [technical]
technical.handoffs = [billing]
DESKS = {agent.name: agent for agent in (triage, billing, technical)}
memory = SQLiteSessionMemory("support.db")


@with_session_memory(memory=memory, session_id="ticket")
async def reply(ticket: str, text: str, desk: Agent) -> tuple[str, str]:
    """Answer a message on a ticket; returns who answered, and what."""
    result = await Runner.run(desk, text)
    return result.last_agent.name, result.final_output


async def on_message(ticket: str, text: str) -> None:
    """Let the desk that answered last answer again."""
    newest = await memory.turns(ticket, limit=1)
    desk = DESKS[newest[0].agent or "Triage"] if newest else triage
    name, answer = await reply(ticket, text, desk)
    print(f"> {text}\n{name}: {answer}")


async def main() -> None:
    """A ticket that three desks work on."""
    async with memory:
        await on_message("ticket-17", "Hi, I'm Alice.")
        await on_message("ticket-17", "I need billing, please.")
        await on_message("ticket-17", "You charged me twice: refund 500, please.")
        await on_message("ticket-17", "Now to technical: nothing prints.")
        await on_message("ticket-17", "What's my name?")


if __name__ == "__main__":
    asyncio.run(main())
