"""A memory whose driver fails: the run fails with it, or goes on without memory."""

from __future__ import annotations

from typing import Any

import pytest
from agents.testing import ModelStep

from session_middleware import InMemorySessionMemory, MemoryUnavailable, with_session_memory
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.sessions import METHODS, carried_out, free, stored, tool

both_ways = pytest.mark.parametrize("method", METHODS)


class Failing(InMemorySessionMemory):
    """A memory whose driver fails at the named methods."""

    def __init__(self, *failing: str) -> None:
        super().__init__()
        self.failing = set(failing)

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise MemoryUnavailable("the storage does not answer") from OSError("disk")

    async def acquire(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("acquire")
        return await super().acquire(*args, **kwargs)

    async def load_turns(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("load_turns")
        return await super().load_turns(*args, **kwargs)

    async def append_items(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("append_items")
        return await super().append_items(*args, **kwargs)

    async def end_turn(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("end_turn")
        return await super().end_turn(*args, **kwargs)


@both_ways
@pytest.mark.parametrize("fails", ["acquire", "load_turns", "append_items"])
async def test_unavailable_raises(method: str, fails: str) -> None:
    """By default a memory that fails fails the run, with the driver's error as the cause."""
    memory = Failing(fails)
    with pytest.raises(MemoryUnavailable) as raised:
        await carried_out(method, local_agent(), "Hi", memory)
    assert isinstance(raised.value.__cause__, OSError)
    memory.failing.clear()
    assert await free(memory)


@both_ways
@pytest.mark.parametrize("fails", ["acquire", "load_turns", "append_items", "end_turn"])
async def test_unavailable_may_be_forgotten(method: str, fails: str) -> None:
    """on_unavailable="forget": the run goes on without memory."""
    memory = Failing(fails)
    result = await carried_out(
        method, local_agent(), "Hi, I'm Alice", memory, decoration={"on_unavailable": "forget"}
    )
    assert result.final_output == "Nice to meet you, Alice."
    memory.failing.clear()
    await memory.release("s")  # an end that could not be written leaves a lease behind
    assert await free(memory)


async def test_a_forgotten_run_stores_nothing_later() -> None:
    """Once forgotten, a turn stays so: nothing half is stored when the memory is back."""
    memory = Failing("append_items")

    def back() -> str:
        memory.failing.clear()
        return "back"

    agent = scripted_agent(call("back"), assistant("done"), tools=[tool("back", back)])
    await carried_out("run", agent, "Hi", memory, decoration={"on_unavailable": "forget"})
    assert await stored(memory) == ""
    (record,) = await memory.turns("s")
    assert (record.state, record.error_type) == ("completed", "MemoryUnavailable")


@both_ways
async def test_what_cannot_be_discarded(method: str) -> None:
    """The error of the run is told, with a note that what its turn did is still there."""
    memory = Failing("end_turn")
    failing = ModelStep.raise_error(LookupError("no model"))
    agent = scripted_agent(call("noop"), failing, tools=[tool("noop", lambda: "x")])
    with pytest.raises(LookupError) as raised:
        await carried_out(method, agent, "Hi", memory, decoration={"on_failure": "discard"})
    (note,) = raised.value.__notes__
    assert note == "What this turn did last could not be stored: the storage does not answer"
    assert await stored(memory) == "U C O"


async def test_nothing_to_discard() -> None:
    """Where the turn has stored nothing there is nothing to tell besides its error."""
    memory = Failing("end_turn")

    @with_session_memory(memory=memory, on_failure="discard")
    async def fails() -> None:
        raise LookupError

    with pytest.raises(LookupError) as raised:
        await fails(session_id="s")
    assert not hasattr(raised.value, "__notes__")
