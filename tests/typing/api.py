"""Typed usage of the public surface: checked by mypy and pyright, never executed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from agents import Agent, Runner, RunResult, RunResultStreaming, TResponseInputItem
from agents.extensions.memory import EncryptedSession
from agents.memory import Session

from session_middleware import (
    DuplicateTurn,
    InMemorySessionMemory,
    SessionBusy,
    SessionMemory,
    SQLiteSessionMemory,
    TurnMemory,
    TurnRecord,
    current_session,
    install,
    installed,
    last_items,
    last_turns,
    open_memory,
    session_scope,
    token_budget,
    uninstall,
    with_session_memory,
)
from session_middleware.testing import (
    LeaseClock,
    WorkerProcesses,
    assert_no_session,
    assert_session,
    assistant,
    busy_session,
    call,
    fail_at,
    local_provider,
    scripted_agent,
)

agent: Agent[Any] = Agent(name="Assistant")
memory = SQLiteSessionMemory(db_path="my_conversations.db")


# --- the decorator -------------------------------------------------------------------------


@with_session_memory
async def bare(question: str, loud: bool = False) -> str:
    return question


@with_session_memory(memory=memory, window=last_turns(20, step=5))
async def with_options(question: str) -> str:
    return question


@with_session_memory(memory="sqlite:///chat.db", session_id="thread_id")
async def with_parameter(thread_id: str, text: str) -> int:
    return len(text)


@with_session_memory(session_id=lambda user, text: f"user:{user}")
async def with_callable(user: str, text: str) -> str:
    return text


@with_session_memory(memory=None)
def plain(question: str) -> str:
    return question


@with_session_memory
async def deltas(text: str) -> AsyncIterator[str]:
    yield text


@with_session_memory
def lines(text: str) -> Iterator[str]:
    yield text


async def decorated_calls() -> None:
    assert_type(await bare("hi"), str)
    assert_type(await bare("hi", loud=True), str)
    assert_type(await bare("hi", session_id="a"), str)
    assert_type(await bare("hi", session_id="a", idempotency_key="k"), str)
    assert_type(await with_options("hi", session_id="a"), str)
    assert_type(await with_parameter("thread-7", "hi"), int)
    assert_type(await with_callable("bob", "hi"), str)
    assert_type(plain("hi", session_id="a"), str)
    async for delta in deltas("hi", session_id="a"):
        assert_type(delta, str)
    for line in lines("hi", session_id="a"):
        assert_type(line, str)


async def for_one_session() -> None:
    """The form in which a type checker checks the function's own arguments."""
    alice = bare.for_session("user_alice", idempotency_key="k")
    assert_type(await alice("hi", loud=True), str)
    await alice(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await bare(5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    bare.for_session(7)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert_type(await with_parameter.for_session("a")("thread-7", "hi"), int)
    assert_type(await run.for_session("a")(agent, "hi", max_turns=3), RunResult)


remember = with_session_memory(memory=memory)


class Support:
    @remember
    async def reply(self, text: str) -> str:
        return text


async def methods() -> None:
    assert_type(await Support().reply("hi", session_id="a"), str)


# --- Runner's own methods ------------------------------------------------------------------

run = with_session_memory(Runner.run, memory=memory)
run_sync = with_session_memory(Runner.run_sync, memory=memory)
run_streamed = with_session_memory(Runner.run_streamed, memory=memory)


async def runner_calls() -> None:
    assert_type(await run(agent, "hi", session_id="a"), RunResult)
    assert_type(await run(agent, "hi", session_id="a", max_turns=3, idempotency_key="k"), RunResult)
    assert_type(run_sync(agent, "hi", session_id="a"), RunResult)
    assert_type(run_streamed(agent, "hi", session_id="a"), RunResultStreaming)


# --- scopes, the run middleware ------------------------------------------------------------


async def scopes() -> None:
    async with session_scope("u1:thread-7", memory=memory, on_busy="reject"):
        assert_type(current_session(), tuple[str, int | None] | None)
    try:
        async with session_scope("a", memory=True, wait_timeout=5, on_failure="discard"):
            pass
    except SessionBusy as busy:
        assert_type(busy.retry_after, float | None)
    except DuplicateTurn as duplicate:
        assert_type(duplicate.turn, int)
        assert_type(duplicate.items, list[dict[str, Any]])
        assert_type(duplicate.record, TurnRecord | None)


def middleware() -> None:
    install(memory=True)
    install(memory=lambda starting_agent: memory)
    install(memory="sqlite:///chat.db", require_session_id=True, observe=True)
    uninstall()
    with installed(memory=memory, window=[last_items(50), token_budget(8000)]):
        pass
    with installed(telemetry={"session_id": lambda session_id: session_id[:2], "baggage": True}):
        pass


# --- memories ------------------------------------------------------------------------------


async def memories() -> None:
    opened: SessionMemory = open_memory("sqlite:///chat.db")
    async with SQLiteSessionMemory("chat.db", lease=10, synchronous="NORMAL") as entered:
        assert_type(entered, SQLiteSessionMemory)
        view: Session = entered.session("a")
        await Runner.run(agent, "hi", session=view)
        assert_type(await entered.session("a").get_items(5), list[TResponseInputItem])
        EncryptedSession("a", entered.session("a"), encryption_key="a secret")
        assert_type(await entered.turns("a", limit=10), list[TurnRecord])
        assert_type(await entered.release("a"), bool)
    result = await Runner.run(agent, await opened.load_session("a"))
    await opened.append_to_session("a", result.to_input_list())
    await opened.append_to_session("a", [{"role": "user", "content": "hi"}])
    assert_type(await opened.list_sessions(), list[str])
    assert_type(await InMemorySessionMemory().session_exists("a"), bool)
    await opened.cleanup()


class TypedAsTheSDKDoes(SessionMemory):
    """A memory of one's own whose items are the SDK's."""

    async def load_session(self, session_id: str) -> list[TResponseInputItem]:
        return []

    async def save_session(
        self, session_id: str, conversation_history: list[TResponseInputItem]
    ) -> None:
        pass

    async def append_to_session(self, session_id: str, new_items: list[TResponseInputItem]) -> None:
        pass

    async def clear_session(self, session_id: str) -> None:
        pass

    async def list_sessions(self) -> list[str]:
        return []

    async def session_exists(self, session_id: str) -> bool:
        return False


async def with_turns(turns: TurnMemory) -> None:
    """What our own memories can do beyond the interface."""
    assert_type(await turns.turns("a", limit=1, before=5), list[TurnRecord])
    assert_type(await turns.release("a"), bool)
    assert_type(turns.capabilities, frozenset[str])


def record(turn: TurnRecord) -> None:
    assert_type(turn.turn, int)
    assert_type(turn.usage, dict[str, int] | None)
    assert_type(turn.items, list[dict[str, Any]])


# --- tests of a service ----------------------------------------------------------------------


async def in_a_test() -> None:
    scripted = scripted_agent(call("add", {"a": 1}), assistant("1"), name="Calculator")
    assert_type(scripted, Agent[Any])
    held = await assert_session(memory, "s", texts=["Hi"], letters="U A", states=["completed"])
    assert_type(held.records, list[TurnRecord])
    await assert_no_session(memory, "other")
    with fail_at(memory, 2, "append_items", when="after") as fault:
        assert_type(fault.happened, str | None)
    async with busy_session(memory, "s"):
        await LeaseClock(memory).advance(60)
    with local_provider() as provider:
        provider.script(assistant("Hello"), 503)
        assert_type(provider.agent("chat"), Agent[Any])
    with WorkerProcesses() as worker_process:
        assert_type(worker_process(plain, "Hi").killed, bool)
        worker_process.start(plain, "Hi").wait_for("text", timeout=1)
