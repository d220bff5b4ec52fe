"""What a model says in the end waits for the end of its turn, and nobody can tell."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    ModelResponse,
    RunConfig,
    RunHooks,
    Runner,
    Usage,
    output_guardrail,
)
from agents.models.interface import Model
from agents.run import CallModelData, ModelInputData
from agents.testing import ModelStep, ScriptedModel, assistant_message
from openai.types.responses import ResponseReasoningItem
from pydantic import BaseModel

from session_middleware import (
    InMemorySessionMemory,
    MemoryUnavailable,
    SQLiteSessionMemory,
    TurnLost,
    with_session_memory,
)
from session_middleware._turns.write_buffer import WriteBuffer
from session_middleware.stores.protocol import STORE_WITH_ACQUIRE, WRITE_TURN
from session_middleware.stores.records import RunItems
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.interruptions import WatchedInMemory
from tests.support.sessions import METHODS, carried_out, free, letters, run_by, states, stored, tool

both_ways = pytest.mark.parametrize("method", METHODS)


class Counting(InMemorySessionMemory):
    """Knows what was written, and how."""

    capabilities = InMemorySessionMemory.capabilities - {STORE_WITH_ACQUIRE}

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    async def append_items(self, *args: Any, **kwargs: Any) -> None:
        self.written.append(letters(args[3]))
        await super().append_items(*args, **kwargs)

    async def write_turn(self, lease: Any, items: Any, end: Any = None) -> None:
        self.written.append(f"{len(items)}{'' if end is None else ' and end'}")
        await super().write_turn(lease, items, end)

    async def end_turn(self, *args: Any, **kwargs: Any) -> None:
        self.written.append("end")
        await super().end_turn(*args, **kwargs)


# --- what is written when ------------------------------------------------------------------


@both_ways
async def test_the_answer_is_stored_with_the_end_of_its_turn(method: str) -> None:
    """Input, calls and outputs at once, as before; the answer and the end in one write."""
    memory = Counting()
    agent = scripted_agent(call("note"), assistant("done"), tools=[tool("note", lambda: "noted")])
    await carried_out(method, agent, "Hi", memory)
    assert memory.written[0] == "U"
    assert memory.written[-1] == "1 and end"
    assert "A" not in memory.written
    assert await stored(memory) == "U C O A"
    assert await states(memory) == ["completed"]


async def test_within_a_function_the_answer_is_stored_when_its_run_returns(tmp_path: Path) -> None:
    """The function goes on, and may tell anybody, or look into the file."""
    memory = SQLiteSessionMemory(tmp_path / "chat.db")

    @with_session_memory(memory=memory)
    async def chat() -> int:
        await Runner.run(local_agent(), "Hi")
        with sqlite3.connect(tmp_path / "chat.db") as other:
            (count,) = other.execute("SELECT count(*) FROM item").fetchone()
        return int(count)

    assert await chat(session_id="s") == 2
    await memory.cleanup()


@both_ways
async def test_an_answer_that_is_not_the_last_is_stored_before_what_follows(method: str) -> None:
    """One that comes with a call is stored with it, in its place."""
    memory = Counting()
    both = assistant("a moment").output + call("note").output
    agent = scripted_agent(
        type(call("note"))(output=both), assistant("done"), tools=[tool("note", lambda: "noted")]
    )
    await carried_out(method, agent, "Hi", memory)
    assert await stored(memory) == "U A C O A"


class Answer(BaseModel):
    """An agent that owes one of these is asked again when it only thought."""

    text: str


ANSWER = Answer(text="done").model_dump_json()
THOUGHTS = ResponseReasoningItem(id="rs_1", type="reasoning", summary=[])


class InTheFile(Model):
    """Thinks, then answers; knows what lay in the file whenever it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []

    def answer(self) -> list[Any]:
        with sqlite3.connect(self.path) as other:
            texts = other.execute("SELECT item FROM item ORDER BY run, position").fetchall()
        self.found.append(letters(json.loads(text) for (text,) in texts))
        if len(self.found) > 1:
            return [assistant_message(ANSWER, item_id="msg_done")]
        return [THOUGHTS]

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return ModelResponse(output=self.answer(), usage=Usage(), response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for event in ScriptedModel([ModelStep(output=self.answer())]).stream_response(
            *args, **kwargs
        ):
            yield event


@both_ways
async def test_a_model_is_asked_when_what_led_to_it_is_stored(method: str, tmp_path: Path) -> None:
    """Also where that is nothing but words: thoughts that no answer followed, or an input that
    quotes an answer."""
    memory = SQLiteSessionMemory(tmp_path / "chat.db")
    model = InTheFile(tmp_path / "chat.db")
    quoted = [{"role": "assistant", "content": "As I said."}]
    await carried_out(
        method, Agent(name="Thinking", model=model, output_type=Answer), quoted, memory
    )
    assert model.found == ["A", "A R"]
    assert await stored(memory) == "A R A"
    await memory.cleanup()


# --- who looks -----------------------------------------------------------------------------


class Looking(RunHooks[Any]):
    """Looks at the session when the agent has answered."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.seen: list[str] = []

    async def on_agent_end(self, *args: Any) -> None:
        self.seen.append(letters(await self.look()))


async def test_who_looks_in_the_turn_sees_all_of_it(each_memory: Any) -> None:
    """A hook of the user's, by each of the memory's methods and by a view."""
    run = with_session_memory(Runner.run, memory=each_memory)

    async def newest() -> Any:
        return (await each_memory.turns("s", limit=1))[0].items

    looks = [
        lambda: each_memory.load_session("s"),
        lambda: each_memory.session("s").get_items(),
        newest,
    ]
    for turns, look in enumerate(looks):
        looking = Looking(look)
        await run(local_agent(), "Hi", hooks=looking, session_id="s")
        before = "" if look is newest else "U A " * turns
        assert looking.seen in ([f"{before}U A"], [f"{before}U"])  # as the SDK's order has it
        assert await stored(each_memory) == "U A " * turns + "U A"


async def test_who_looks_before_a_model_is_asked_again(each_memory: Any, tmp_path: Path) -> None:
    """A filter of the user's on the model's input sees the thoughts that came before."""
    await each_memory.append_to_session("other", [{"role": "user", "content": "."}])
    seen = []

    async def look(data: CallModelData[Any]) -> ModelInputData:
        seen.append(letters(await each_memory.load_session("s")))
        return data.model_data

    agent = scripted_agent(ModelStep(output=[THOUGHTS]), assistant(ANSWER), output_type=Answer)
    run = with_session_memory(Runner.run, memory=each_memory)
    config = RunConfig(call_model_input_filter=look)
    await run(agent, "Hi", run_config=config, session_id="s")
    assert seen == ["U", "U R"]


async def test_what_a_guardrail_removes_stays_removed(each_memory: Any) -> None:
    """A history cleared in the turn after the answer was given does not get it back."""
    run = with_session_memory(Runner.run, memory=each_memory)

    class Clearing(RunHooks[Any]):
        async def on_agent_end(self, *args: Any) -> None:
            await each_memory.clear_session("s")

    await run(local_agent(), "Hi", hooks=Clearing(), session_id="s")
    assert await stored(each_memory) in ("", "A")
    assert await states(each_memory) == ["completed"]


async def test_an_output_guardrail_that_trips(each_memory: Any) -> None:
    """The turn fails, and keeps what the SDK handed over."""

    @output_guardrail
    async def never(*args: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    run = with_session_memory(Runner.run, memory=each_memory)
    with pytest.raises(Exception, match="tripwire"):
        await run(local_agent(output_guardrails=[never]), "Hi", session_id="s")
    assert await states(each_memory) == ["failed"]
    assert (await stored(each_memory)).startswith("U")


async def test_runs_at_once_in_one_turn(each_memory: Any) -> None:
    """Each run's answer is with its own question, whoever is over last."""

    @with_session_memory(memory=each_memory)
    async def chat() -> None:
        await asyncio.gather(*(Runner.run(local_agent(), f"{at}") for at in range(4)))

    await chat(session_id="s")
    assert await stored(each_memory) == "U A U A U A U A"


# --- what goes wrong -----------------------------------------------------------------------


@both_ways
async def test_an_answer_that_cannot_be_stored_fails_its_turn(method: str) -> None:
    """The caller hears of it, and the record says so; the session is free."""
    memory = WatchedInMemory()
    memory.will_fail(3, after_effect=False)
    with pytest.raises(MemoryUnavailable):
        await carried_out(method, local_agent(), "Hi", memory)
    assert memory.failed == "append and end"
    assert await free(memory)
    (record, *_) = await memory.turns("s", before=2)
    assert (record.state, record.error_type) == ("failed", "MemoryUnavailable")
    assert record.output_text is None
    assert letters(record.items) == "U"


@both_ways
@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_run_whose_answer_could_not_be_stored_is_made_again(
    method: str, after_effect: bool
) -> None:
    """Within a function that tries again there is one question and one answer in the end."""
    memory = WatchedInMemory()

    @with_session_memory(memory=memory)
    async def chat() -> None:
        memory.will_fail(3, after_effect=after_effect)  # after the load and the question
        with pytest.raises(MemoryUnavailable):
            await run_by(method, scripted_agent(assistant("one")), "Hi")
        assert memory.failed == "append"
        memory.recovers()
        await run_by(method, scripted_agent(assistant("two")), "Hi")

    await chat(session_id="s")
    (record,) = await memory.turns("s")
    assert letters(record.items) == "U A"
    assert "two" in str(record.items[1])
    assert record.state == "completed"


@both_ways
async def test_an_answer_that_nobody_waits_for_may_be_forgotten(method: str) -> None:
    """With on_unavailable="forget" the turn completes, and its record names the error."""
    memory = WatchedInMemory()
    memory.will_fail(3, after_effect=False)
    await carried_out(method, local_agent(), "Hi", memory, decoration={"on_unavailable": "forget"})
    assert memory.failed == "append and end"
    (record,) = await memory.turns("s")
    assert (record.state, record.error_type) == ("completed", "MemoryUnavailable")


async def test_an_answer_to_a_session_that_was_taken_away_is_lost(each_memory: Any) -> None:
    """TurnLost, and nothing of the answer is written."""
    run = with_session_memory(Runner.run, memory=each_memory)

    class Releasing(RunHooks[Any]):
        async def on_llm_end(self, *args: Any) -> None:
            assert await each_memory.release("s")

    with pytest.raises(TurnLost):
        await run(local_agent(), "Hi", hooks=Releasing(), session_id="s")
    assert await stored(each_memory) == "U"
    assert await states(each_memory) == ["abandoned"]


async def test_a_memory_that_changes_how_items_are_kept_gets_them_all() -> None:
    """A subclass, or a class mixed in, that has append_items or end_turn of its own is not
    passed by."""

    class Mixed:
        seen: list[str]

        async def append_items(self, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(letters(args[3]))
            return await super().append_items(*args, **kwargs)  # type: ignore[misc]

    class Changed(Mixed, InMemorySessionMemory):
        def __init__(self) -> None:
            super().__init__()
            self.seen = []

    class Ending(SQLiteSessionMemory):
        async def end_turn(self, *args: Any, **kwargs: Any) -> None:
            await super().end_turn(*args, **kwargs)

    assert WRITE_TURN in InMemorySessionMemory().capabilities
    assert WRITE_TURN not in Ending(":memory:").capabilities
    memory = Changed()
    assert WRITE_TURN not in memory.capabilities
    await with_session_memory(Runner.run, memory=memory)(local_agent(), "Hi", session_id="s")
    assert memory.seen == ["U", "A"]
    assert await states(memory) == ["completed"]


# --- the write buffer ----------------------------------------------------------------------


def words(run: int) -> RunItems:
    return RunItems(run, 0, [f'{{"role": "assistant", "content": "{run}"}}'])


async def test_one_stores_while_others_wait() -> None:
    """Whoever asks is told when all is stored, which is done once and in order."""
    buffer, stored_runs = WriteBuffer(), []

    async def store(items: list[RunItems]) -> None:
        await asyncio.sleep(0)
        stored_runs.extend(new.run for new in items)

    for run in (1, 2):
        buffer.defer(words(run))
    await asyncio.gather(*(buffer.flush(store) for _ in range(5)))
    assert stored_runs == [1, 2]
    assert not buffer


async def test_what_was_not_stored_waits_on() -> None:
    """Where the memory failed, or whoever stored it was cancelled, it stays the first."""
    buffer = WriteBuffer()

    async def fails(items: list[RunItems]) -> None:
        buffer.defer(words(2))
        raise MemoryUnavailable("not now")

    async def hangs(items: list[RunItems]) -> None:
        await asyncio.Event().wait()

    buffer.defer(words(1))
    with pytest.raises(MemoryUnavailable):
        await buffer.flush(fails)
    sending = asyncio.ensure_future(buffer.flush(hangs))
    await asyncio.sleep(0)
    emptied = asyncio.ensure_future(buffer.drain())
    await asyncio.sleep(0)
    sending.cancel()
    assert [new.run for new in await emptied] == [1, 2]
    assert not buffer


async def test_what_can_never_be_stored_does_not_wait() -> None:
    """Whoever stores it hears of it; nobody would ever succeed."""
    buffer = WriteBuffer()

    async def lost(items: list[RunItems]) -> None:
        raise TurnLost("taken over")

    buffer.defer(words(1))
    with pytest.raises(TurnLost):
        await buffer.flush(lost)
    assert not buffer
