"""A memory fails at the operation that the test names, once, and a process dies there."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    InMemorySessionMemory,
    InvalidOption,
    MemoryUnavailable,
    SQLiteSessionMemory,
    TurnInProgress,
    with_session_memory,
)
from session_middleware.testing import (
    LeaseClock,
    WorkerProcesses,
    assert_no_session,
    assert_session,
    assistant,
    die,
    fail_at,
    kill_at,
    local_agent,
    operations_of,
    scripted_agent,
)
from tests.support.sessions import free
from tests.support.six_methods import SixMethods


async def test_every_operation_can_fail(each_memory: Any) -> None:
    """Operation 1, 2, ... fails, until the run makes fewer of them; then it is remembered."""
    run = with_session_memory(Runner.run, memory=each_memory)
    failed = []
    for n in range(1, 20):
        with fail_at(each_memory, n) as fault:
            try:
                await run(local_agent(), "Hi", session_id=f"s{n}")
            except MemoryUnavailable:
                failed.append(fault.happened)
            else:
                break
    assert failed[0] == "acquire"
    assert len(failed) >= 2
    assert fault.happened is None
    assert fault.count == len(failed)
    await assert_session(each_memory, f"s{n}", letters="U A", states=["completed"])


async def test_the_error_names_the_operation(each_memory: Any) -> None:
    """It says that the test let it fail, and where."""
    says = r"the test lets operation 1 \(session_exists\) fail"
    with fail_at(each_memory), pytest.raises(MemoryUnavailable, match=says):
        await each_memory.session_exists("s")


async def test_one_operation_by_its_name(each_memory: Any) -> None:
    """Only its calls count, and what it calls itself does not."""
    with fail_at(each_memory, 2, "load_session", error=OSError("no disk")) as fault:
        assert await each_memory.load_session("s") == []
        assert not await each_memory.session_exists("s")
        with pytest.raises(OSError, match="no disk"):
            await each_memory.load_session("s")
        assert await each_memory.load_session("s") == []
    assert (fault.happened, fault.count) == ("load_session", 3)


async def test_what_an_operation_calls_is_part_of_it(each_memory: Any) -> None:
    """A method that asks the memory itself is one operation."""
    with fail_at(each_memory, 3) as fault:
        await each_memory.load_session("s")
        await each_memory.load_session("s")
        assert fault.count == 2
        with pytest.raises(MemoryUnavailable):
            await each_memory.load_session("s")
    assert fault.happened == "load_session"


async def test_an_answer_is_lost(each_memory: Any) -> None:
    """With when="after" the work is done and the caller does not hear of it."""
    item = {"role": "user", "content": "Hi"}
    fail_at(each_memory, operation="append_to_session")
    with pytest.raises(MemoryUnavailable):
        await each_memory.append_to_session("before", [item])
    await assert_no_session(each_memory, "before")
    fail_at(each_memory, operation="append_to_session", when="after")
    with pytest.raises(MemoryUnavailable):
        await each_memory.append_to_session("after", [item])
    await assert_session(each_memory, "after", items=[item])


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0, 1)])
async def test_an_ended_fault_is_gone(order: tuple[int, ...]) -> None:
    """Of two faults in a memory each ends alone; after both it is as it was."""
    memory = InMemorySessionMemory()
    faults = [fail_at(memory, 2), fail_at(memory, 2)]
    faults[order[0]].end()
    assert not await memory.session_exists("s")
    with pytest.raises(MemoryUnavailable):
        await memory.session_exists("s")
    assert faults[order[0]].count == 0
    for at in order[1:]:
        faults[at].end()
    for _ in range(3):
        assert not await memory.session_exists("s")
    assert faults[order[1]].count == 2


async def test_a_memory_of_ones_own_fails() -> None:
    """Six methods are enough."""
    memory = SixMethods()
    run = with_session_memory(Runner.run, memory=memory)
    with fail_at(memory, operation="load_session"), pytest.raises(MemoryUnavailable):
        await run(local_agent(), "Hi", session_id="s")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": True}, "n must be a whole number of at least 1, got True"),
        ({"operation": "cleanup"}, "operation must be one of acquire, .*, got 'cleanup'"),
        ({"when": "never"}, "when must be 'before' or 'after', got 'never'"),
    ],
)
def test_a_fault_that_cannot_be(wrong: dict[str, Any], says: str) -> None:
    """It is refused when it is made."""
    with pytest.raises(InvalidOption, match=says):
        fail_at(InMemorySessionMemory(), **wrong)


def test_what_counts() -> None:
    """The operations of a memory are its methods on sessions, life and waiting left out."""
    operations = operations_of(InMemorySessionMemory())
    assert {"acquire", "append_items", "load_session", "turns"} <= set(operations)
    assert not {"cleanup", "ping", "session", "wait_for_session"} & set(operations)


# --- in processes of their own ---------------------------------------------------------------


async def serve(path: str, n: int, operation: str) -> None:
    """A worker that dies at the n-th operation of this name."""
    memory = SQLiteSessionMemory(path)
    kill_at(memory, n, operation)
    run = with_session_memory(Runner.run, memory=memory)
    await run(local_agent(), "Hi, I'm Alice.", session_id="s", idempotency_key="k")


async def die_in_the_model(path: str) -> None:
    """A worker that dies while the model answers."""
    agent = scripted_agent(assistant("never"))
    agent.model.get_response = lambda *_, **__: die()  # type: ignore[union-attr, method-assign, assignment]
    await with_session_memory(Runner.run, memory=SQLiteSessionMemory(path))(
        agent, "Hi, I'm Alice.", session_id="s", idempotency_key="k"
    )


async def test_a_killed_worker_and_the_next_one(tmp_path: Any) -> None:
    """Its lease ends when the clock says so, without waiting; then its request is made again."""
    path = str(tmp_path / "chat.db")
    with WorkerProcesses() as worker_process:
        assert worker_process(die_in_the_model, path).killed
    async with SQLiteSessionMemory(path) as memory:
        run = with_session_memory(Runner.run, memory=memory, on_busy="reject")
        asked = {"session_id": "s", "idempotency_key": "k"}
        with pytest.raises(TurnInProgress):
            await run(local_agent(), "Hi, I'm Alice.", **asked)
        clock = LeaseClock(memory)
        await clock.advance(20)
        assert not await free(memory)
        await clock.advance(20)
        result = await run(local_agent(), "Hi, I'm Alice.", **asked)
        assert result.final_output == "Nice to meet you, Alice."
        await assert_session(memory, "s", letters="U A", states=["replaced", "completed"])


def test_a_worker_dies_at_an_operation(tmp_path: Any) -> None:
    """It dies at the operation that is named, and not where there is no such operation."""
    with WorkerProcesses() as worker_process:
        assert worker_process(serve, str(tmp_path / "1.db"), 1, "acquire").killed
        worker_process(serve, str(tmp_path / "2.db"), 99, "acquire").check()
