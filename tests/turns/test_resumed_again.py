"""A resume that did not complete gives the approval back, whatever kind of call was approved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, AgentsException, HostedMCPTool, RunState, UserError, function_tool
from agents.mcp import MCPServer
from agents.testing import ModelStep, ScriptedModel
from mcp import types as mcp
from openai.types.responses import Response, ResponseCompletedEvent
from openai.types.responses.response_output_item import McpApprovalRequest

from session_middleware import DuplicateTurn
from session_middleware._turns import queue
from session_middleware.effects import UNKNOWN_TEXT
from session_middleware.testing.models import assistant, call, calls, scripted_agent
from tests.support.approvals import Keep, approved, live, serialised
from tests.support.conditions import until
from tests.support.sessions import METHODS, carried_out, states, stored, text_of

both_ways = pytest.mark.parametrize("method", METHODS)
both_kinds = pytest.mark.parametrize("kept", [live, serialised])
DOWN = ModelStep.raise_error(OSError("down"))


class Till:
    """A tool that pays; told to, it fails or hangs when it has begun."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.fails = self.hangs = False
        self.began = asyncio.Event()

    async def pay(self, amount: int) -> str:
        """Pay an amount."""
        self.paid.append(amount)
        self.began.set()
        if self.hangs:
            await asyncio.sleep(3600)
        if self.fails:
            raise ValueError("no coins")
        return f"paid {amount}"

    def tool(self) -> Any:
        return function_tool(self.pay, needs_approval=True, failure_error_function=None)


def is_free(memory: Any) -> bool:
    """Whether no turn of this process holds the session; its record is visible a moment before."""
    return not queue.is_held((memory.identity, "s"))


async def interrupted(till: Till, method: str, agent: Any, state: Any, memory: Any) -> None:
    """A resume that is cancelled while the tool is at work, and has ended."""
    till.hangs = True
    options = {"decoration": {"on_departure": "cancel"}}
    running = asyncio.ensure_future(carried_out(method, agent, state, memory, **options))
    await till.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: is_free(memory))  # a stream's reader does not wait for it
    assert await states(memory) == ["cancelled"]
    till.hangs = False
    till.began.clear()


async def outputs(memory: Any) -> list[str]:
    """The outputs of the calls of the session."""
    items = await memory.load_session("s")
    return [text_of(item) for item in items if item.get("type") == "function_call_output"]


# --- several calls, of which some are decided ----------------------------------------------


@both_ways
@both_kinds
@pytest.mark.parametrize("mishap", ["fails", "is cancelled"])
@pytest.mark.parametrize("other", ["rejected", "undecided"])
async def test_a_call_that_had_begun_beside_another(
    each_memory: Any, method: str, kept: Keep, mishap: str, other: str
) -> None:
    """It is unknown; the other one is refused, or goes on waiting for a person."""
    till = Till()
    agent = scripted_agent(
        calls(("pay", {"amount": 1}), ("pay", {"amount": 2})),
        assistant("done"),
        tools=[till.tool()],
    )
    parked = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(parked, kept, agent, only=0)
    if other == "rejected":
        state.reject(state.get_interruptions()[-1])
    if mishap == "fails":
        till.fails = True
        with pytest.raises(UserError, match="no coins"):
            await carried_out(method, agent, state, each_memory)
        till.fails = False
    else:
        await interrupted(till, method, agent, state, each_memory)
    result = await carried_out(method, agent, await kept(state, agent), each_memory)
    if other == "undecided":
        assert await states(each_memory) == ["awaiting_approval"]
        again = await approved(result, kept, agent)
        result = await carried_out(method, agent, again, each_memory)
    assert result.final_output == "done"
    assert till.paid == ([1, 2] if other == "undecided" else [1])
    first, second = await outputs(each_memory)
    assert first == UNKNOWN_TEXT
    assert second == ("paid 2" if other == "undecided" else "Tool execution was not approved.")
    assert await states(each_memory) == ["completed"]


@both_ways
@both_kinds
async def test_a_call_that_may_run_again(each_memory: Any, method: str, kept: Keep) -> None:
    """With ``rerun`` the call that had begun runs again, from the very state of the failure."""
    till = Till()
    agent = scripted_agent(call("pay", {"amount": 1}), assistant("done"), tools=[till.tool()])
    options: Any = {"decoration": {"rerun": ["pay"]}}
    parked = await carried_out(method, agent, "Pay", each_memory, **options)
    state = await approved(parked, kept, agent)
    till.fails = True
    with pytest.raises(UserError, match="no coins"):
        await carried_out(method, agent, state, each_memory, **options)
    till.fails = False
    state = await kept(state, agent)
    result = await carried_out(method, agent, state, each_memory, **options)
    assert (result.final_output, till.paid) == ("done", [1, 1])
    assert await outputs(each_memory) == ["paid 1"]


@both_ways
@both_kinds
async def test_a_resume_that_fails_twice(each_memory: Any, method: str, kept: Keep) -> None:
    """The provider's error is the one that is raised, each time, and the third resume completes."""
    till = Till()
    agent = scripted_agent(
        call("pay", {"amount": 1}), DOWN, DOWN, DOWN, assistant("done"), tools=[till.tool()]
    )
    parked = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(parked, kept, agent)
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            await carried_out(method, agent, await kept(state, agent), each_memory)
        assert await states(each_memory) == ["failed"]
    result = await carried_out(method, agent, await kept(state, agent), each_memory)
    assert (result.final_output, till.paid) == ("done", [1])
    assert await stored(each_memory) == "U C O A"
    with pytest.raises(DuplicateTurn):
        await carried_out(method, agent, state, each_memory)


# --- agents used as tools ------------------------------------------------------------------


def nesting(till: Till, inner: list[Any], outer: list[Any]) -> Agent[Any]:
    """An agent that asks another one, whose own tool needs approval."""
    cashier = Agent(name="Cashier", model=ScriptedModel(inner), tools=[till.tool()])
    asks = cashier.as_tool("ask", "Asks the cashier.", failure_error_function=None)
    return scripted_agent(call("ask", {"input": "Pay"}), *outer, tools=[asks])


@both_ways
@both_kinds
async def test_a_nested_call_whose_outer_run_fails(
    each_memory: Any, method: str, kept: Keep
) -> None:
    """The provider fails behind the agent that was used as a tool: its work is not done again."""
    till = Till()
    pay = [call("pay", {"amount": 3}), assistant("paid it")]
    agent = nesting(till, pay, [DOWN, assistant("done")])
    parked = await carried_out(method, agent, "Pay", each_memory)
    assert await stored(each_memory) == "U C"
    state = await approved(parked, kept, agent)
    with pytest.raises(OSError, match="down"):
        await carried_out(method, agent, state, each_memory)
    result = await carried_out(method, agent, await kept(state, agent), each_memory)
    assert (result.final_output, till.paid) == ("done", [3])
    assert await stored(each_memory) == "U C O A"
    assert await outputs(each_memory) == ["paid it"]
    assert await states(each_memory) == ["completed"]


def _inner_provider_fails(till: Till) -> list[Any]:
    return [call("pay", {"amount": 3}), DOWN, assistant("paid it")]


def _inner_tool_fails(till: Till) -> list[Any]:
    till.fails = True
    return [call("pay", {"amount": 3}), assistant("paid it")]


@both_ways
@both_kinds
@pytest.mark.parametrize("inner", [_inner_provider_fails, _inner_tool_fails])
async def test_a_nested_call_whose_own_run_fails(
    each_memory: Any, method: str, kept: Keep, inner: Callable[[Till], list[Any]]
) -> None:
    """The agent used as a tool had begun: what it did is unknown, and nothing is paid twice."""
    till = Till()
    agent = nesting(till, inner(till), [assistant("done")])
    parked = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(parked, kept, agent)
    with pytest.raises((OSError, UserError)):
        await carried_out(method, agent, state, each_memory)
    assert till.paid == [3]
    till.fails = False
    result = await carried_out(method, agent, await kept(state, agent), each_memory)
    assert (result.final_output, till.paid) == ("done", [3])
    assert await stored(each_memory) == "U C O A"
    assert await states(each_memory) == ["completed"]


@both_ways
@both_kinds
async def test_a_nested_call_that_is_cancelled(each_memory: Any, method: str, kept: Keep) -> None:
    """The same while the nested tool is at work."""
    till = Till()
    pay = [call("pay", {"amount": 3}), assistant("paid it")]
    agent = nesting(till, pay, [assistant("done")])
    parked = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(parked, kept, agent)
    await interrupted(till, method, agent, state, each_memory)
    result = await carried_out(method, agent, await kept(state, agent), each_memory)
    assert (result.final_output, till.paid) == ("done", [3])
    assert await stored(each_memory) == "U C O A"
    assert await states(each_memory) == ["completed"]


# --- MCP -----------------------------------------------------------------------------------


def asks_approval(request_id: str = "mcpr_1") -> ModelStep:
    """A model that asks whether a tool of a hosted MCP server may be called."""
    request = McpApprovalRequest(
        id=request_id,
        arguments='{"amount": 4}',
        name="pay",
        server_label="till",
        type="mcp_approval_request",
    )
    response = Response(
        id="resp",
        created_at=0,
        model="scripted",
        object="response",
        output=[request],
        parallel_tool_calls=True,
        tool_choice="auto",
        tools=[],
    )
    completed = ResponseCompletedEvent(
        type="response.completed", response=response, sequence_number=0
    )
    return ModelStep.stream([completed], output=[request])


HOSTED = HostedMCPTool(
    tool_config={
        "type": "mcp",
        "server_label": "till",
        "server_url": "https://127.0.0.1/mcp",
        "require_approval": "always",
    }
)


async def kinds(memory: Any) -> list[str]:
    """The types of all items of the session."""
    return [item.get("type", "message") for item in await memory.load_session("s")]


@both_ways
@both_kinds
@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_a_hosted_mcp_tool(each_memory: Any, method: str, kept: Keep, decision: str) -> None:
    """The provider fails when it is told the decision; told again, it goes on."""
    agent = scripted_agent(asks_approval(), DOWN, DOWN, assistant("done"), tools=[HOSTED])
    parked = await carried_out(method, agent, "Pay", each_memory)
    assert await states(each_memory) == ["awaiting_approval"]
    state: RunState[Any, Any] = await kept(parked.to_state(), agent)
    getattr(state, decision)(state.get_interruptions()[0])
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            await carried_out(method, agent, state, each_memory)
        state = await kept(state, agent)
    result = await carried_out(method, agent, state, each_memory)
    assert result.final_output == "done"
    assert await states(each_memory) == ["completed"]
    found = await kinds(each_memory)
    assert found.count("mcp_approval_request") == found.count("mcp_approval_response") == 1
    with pytest.raises(DuplicateTurn):
        await carried_out(method, agent, state, each_memory)


class Server(MCPServer):
    """An MCP server of this process, whose tool pays."""

    def __init__(self, till: Till) -> None:
        super().__init__(require_approval="always", failure_error_function=None)
        self.till = till

    @property
    def name(self) -> str:
        return "till"

    async def connect(self) -> None:
        """There is nothing to connect to."""

    async def cleanup(self) -> None:
        """Nothing is open."""

    async def list_tools(self, *_: Any, **__: Any) -> list[mcp.Tool]:
        schema = {"type": "object", "properties": {"amount": {"type": "integer"}}}
        return [mcp.Tool(name="pay", description="Pays.", inputSchema=schema)]

    async def call_tool(self, tool_name: str, arguments: Any, *_: Any, **__: Any) -> Any:
        text = await self.till.pay(arguments["amount"])
        return mcp.CallToolResult(content=[mcp.TextContent(type="text", text=text)])

    async def list_prompts(self) -> Any:
        """It has none."""
        return mcp.ListPromptsResult(prompts=[])

    async def get_prompt(self, name: str, arguments: Any = None) -> Any:
        """It has none."""
        raise KeyError(name)


@both_ways
@both_kinds
@pytest.mark.parametrize("mishap", ["provider", "tool", "cancel"])
async def test_a_tool_of_an_mcp_server(
    each_memory: Any, method: str, kept: Keep, mishap: str
) -> None:
    """A tool of a server that asks for approval is like any other tool that does."""
    till = Till()
    steps = [DOWN] if mishap == "provider" else []
    agent = scripted_agent(
        call("pay", {"amount": 5}), *steps, assistant("done"), mcp_servers=[Server(till)]
    )
    parked = await carried_out(method, agent, "Pay", each_memory)
    state = await approved(parked, kept, agent)
    if mishap == "cancel":
        await interrupted(till, method, agent, state, each_memory)
    else:
        till.fails = mishap == "tool"
        with pytest.raises((OSError, AgentsException), match=r"down|pay"):
            await carried_out(method, agent, state, each_memory)
        till.fails = False
    result = await carried_out(method, agent, await kept(state, agent), each_memory)
    assert (result.final_output, till.paid) == ("done", [5])
    (text,) = await outputs(each_memory)
    assert ("paid 5" in text) if mishap == "provider" else (text == UNKNOWN_TEXT)
    assert await states(each_memory) == ["completed"]
