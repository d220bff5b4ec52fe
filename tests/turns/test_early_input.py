"""A run's input is stored when its session is acquired, and only the time of it tells."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from agents import RunConfig, RunHooks, Runner, SessionSettings
from agents.testing import ModelStep

from session_middleware import (
    InMemorySessionMemory,
    InvalidItem,
    MemoryUnavailable,
    SQLiteSessionMemory,
    TurnLost,
    last_items,
    last_turns,
    session_scope,
    token_budget,
    with_session_memory,
)
from session_middleware.stores.protocol import STORE_WITH_ACQUIRE
from session_middleware.stores.records import Acquired, AcquireRequest, RunItems
from session_middleware.testing.models import assistant, local_agent, model_of, scripted_agent
from tests.support.conditions import until
from tests.support.interruptions import WatchedInMemory
from tests.support.sessions import METHODS, carried_out, free, letters, run_by, states, stored

both_ways = pytest.mark.parametrize("method", METHODS)


class Asked(InMemorySessionMemory):
    """Knows what each acquire was to store, and what was written after it."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[str] | None] = []
        self.written: list[list[RunItems]] = []

    async def acquire(self, request: AcquireRequest) -> Acquired:
        self.given.append(None if request.input is None else request.input.texts)
        return await super().acquire(request)

    async def write_turn(self, lease: Any, items: Any, end: Any = None) -> None:
        self.written.append(list(items))
        await super().write_turn(lease, items, end)

    capabilities = InMemorySessionMemory.capabilities


@both_ways
async def test_the_input_is_stored_with_the_acquire(method: str) -> None:
    """So a run of one model turn writes twice: to acquire, and the answer with the end."""
    memory = Asked()
    await carried_out(method, local_agent(), "Hi", memory)
    ((text,),) = memory.given
    assert text == '{"content": "Hi", "role": "user"}'
    assert [[(new.run, new.position) for new in items] for items in memory.written] == [[(1, 1)]]
    assert await stored(memory) == "U A"
    (record,) = await memory.turns("s")
    assert (record.state, record.runs) == ("completed", 1)


@both_ways
async def test_a_list_of_items_is_an_input_too(method: str, each_memory: Any) -> None:
    """All of them, in their order."""
    given = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    await carried_out(method, local_agent(), given, each_memory)
    assert (await each_memory.load_session("s"))[:2] == given
    assert await stored(each_memory) == "U U A"


@both_ways
@pytest.mark.parametrize("items", [10, 300])
@pytest.mark.parametrize(
    "window", [None, last_items(20), last_turns(3), token_budget(200), lambda turns: turns]
)
async def test_a_model_sees_its_input_once(
    method: str, items: int, window: Any, each_memory: Any
) -> None:
    """Behind the history, however that is read."""
    past = [{"role": "user", "content": f"{at}"} for at in range(items)]
    for at in range(0, items, 5):
        await each_memory.append_to_session("s", past[at : at + 5])
    agent = scripted_agent(assistant("Yes."))
    await carried_out(method, agent, "Once?", each_memory, decoration={"window": window})
    (call,) = model_of(agent).calls
    seen = [item["content"] for item in call.input]
    assert seen[-2:] == [f"{items - 1}", "Once?"]
    assert seen.count("Once?") == 1


@both_ways
async def test_a_limit_of_the_sdk_is_one_on_the_past(method: str, each_memory: Any) -> None:
    """The stored input is none of the items that it counts."""
    for at in range(4):
        await each_memory.append_to_session("s", [{"role": "user", "content": f"{at}"}])
    agent = scripted_agent(assistant("Yes."))
    config = RunConfig(session_settings=SessionSettings(limit=2))
    await carried_out(method, agent, "Now?", each_memory, run_config=config)
    (call,) = model_of(agent).calls
    assert [item["content"] for item in call.input] == ["2", "3", "Now?"]


@both_ways
async def test_an_input_that_changes_on_its_way_is_stored_as_it_is_handed_over(
    method: str, each_memory: Any
) -> None:
    """It takes the place of the one that was stored, as the same run's."""

    class Louder(Runner):
        @classmethod
        async def run(cls, starting_agent: Any, input: Any, **options: Any) -> Any:  # noqa: A002
            return await super().run(starting_agent, f"{input}!", **options)

        @classmethod
        def run_streamed(cls, starting_agent: Any, input: Any, **options: Any) -> Any:  # noqa: A002
            return super().run_streamed(starting_agent, f"{input}!", **options)

    run = with_session_memory(getattr(Louder, method), memory=each_memory)
    result = run(local_agent(), "Hi", session_id="s")
    if method == "run":
        await result
    else:
        _ = [event async for event in result.stream_events()]
    asked, _answered = await each_memory.load_session("s")
    assert asked["content"] == "Hi!"
    (record,) = await each_memory.turns("s")
    assert (record.state, record.runs) == ("completed", 1)


class Unwilling(RunHooks[Any]):
    """Ends a run before its model is called."""

    async def on_agent_start(self, *args: Any) -> None:
        raise RuntimeError("not today")


class Plain:
    """The SDK's protocol and nothing else, to compare with."""

    session_id = "plain"
    session_settings = None

    def __init__(self) -> None:
        self.items: list[Any] = []

    async def get_items(self, limit: int | None = None) -> list[Any]:
        return list(self.items)

    async def add_items(self, items: list[Any]) -> None:
        self.items += items

    async def pop_item(self) -> Any: ...
    async def clear_session(self) -> None: ...


@both_ways
async def test_an_input_that_the_sdk_does_not_hand_over_does_not_stay(
    method: str, each_memory: Any
) -> None:
    """A run that ends before that leaves what it leaves in any session of the SDK's."""
    plain = Plain()
    with pytest.raises(RuntimeError, match="not today"):
        await carried_out(method, local_agent(), "Hi", each_memory, hooks=Unwilling())
    with pytest.raises(RuntimeError, match="not today"):
        await run_by(method, local_agent(), "Hi", hooks=Unwilling(), session=plain)
    assert await each_memory.load_session("s") == plain.items
    assert await states(each_memory) == ["failed"]


@both_ways
async def test_a_session_that_was_only_to_begin_does_not_exist(
    method: str, each_memory: Any
) -> None:
    """What was stored with the acquire and went again has made none."""
    with pytest.raises(RuntimeError, match="not today"):
        await carried_out("run_streamed", local_agent(), "Hi", each_memory, hooks=Unwilling())
    assert not await each_memory.session_exists("s")
    assert await each_memory.list_sessions() == []
    await carried_out(method, local_agent(), "Hi", each_memory)
    assert await each_memory.list_sessions() == ["s"]
    with pytest.raises(RuntimeError, match="not today"):
        await carried_out("run_streamed", local_agent(), "Hi", each_memory, hooks=Unwilling())
    assert await each_memory.list_sessions() == ["s"]


class Doing(RunHooks[Any]):
    """Does something before the SDK has handed over what a stream was asked."""

    def __init__(self, what: Any) -> None:
        self.what = what

    async def on_agent_start(self, *args: Any) -> None:
        await self.what()


SUMMARY = {"role": "user", "content": "In short."}


@pytest.mark.parametrize(
    ("do", "left"),
    [
        (lambda memory: memory.clear_session("s"), ["Hi"]),
        (lambda memory: memory.save_session("s", [SUMMARY]), ["In short.", "Hi"]),
        (lambda memory: memory.save_session("s", []), ["Hi"]),
        (lambda memory: memory.pop_item("s"), ["Hi"]),
        (lambda memory: memory.session("s").pop_item(), ["Hi"]),
        (lambda memory: memory.append_to_session("s", [SUMMARY]), ["Before.", "Hi", "In short."]),
    ],
    ids=["clear", "save", "save nothing", "pop", "pop from a view", "append"],
)
async def test_a_session_that_is_changed_before_the_input_is_handed_over(
    do: Any, left: list[str], each_memory: Any
) -> None:
    """The change is one of what was there before; the input comes after it."""
    await each_memory.append_to_session("s", [{"role": "user", "content": "Before."}])
    hooks = Doing(lambda: do(each_memory))
    await carried_out("run_streamed", local_agent(), "Hi", each_memory, hooks=hooks)
    items = await each_memory.load_session("s")
    assert [item["content"] for item in items if item["role"] == "user"] == left
    assert letters(items[items.index({"role": "user", "content": "Hi"}) :]).startswith("U A")


async def test_who_looks_before_the_input_is_handed_over_does_not_see_it(each_memory: Any) -> None:
    """As if it were stored then."""
    seen = []

    async def look() -> None:
        seen.append(letters(await each_memory.load_session("s")))

    for _ in range(2):
        await carried_out("run_streamed", local_agent(), "Hi", each_memory, hooks=Doing(look))
    assert seen == ["", "U A"]
    assert await stored(each_memory) == "U A U A"


@both_ways
async def test_a_turn_that_forgets_forgets_its_input_too(method: str) -> None:
    """Where the memory failed between the acquire and the hand-over."""
    memory = WatchedInMemory()
    memory.will_fail(2, after_effect=False)
    for _ in range(2):
        await carried_out(
            method, local_agent(), "Hi", memory, decoration={"on_unavailable": "forget"}
        )
        assert memory.failed == "load"
        memory.will_fail(2, after_effect=False)
    assert await memory.load_session("s") == []


async def test_a_turn_that_is_out_of_time_before_the_hand_over_keeps_no_input(
    each_memory: Any,
) -> None:
    """Whoever asks again is asked once."""

    async def is_over() -> bool:
        return (await each_memory.turns("s"))[0].ended_at is not None

    hooks = Doing(lambda: until(is_over))
    with pytest.raises(TurnLost):
        await carried_out(
            "run_streamed",
            local_agent(),
            "Hi",
            each_memory,
            hooks=hooks,
            decoration={"turn_timeout": 0.1},
        )
    assert await each_memory.load_session("s") == []
    await carried_out("run_streamed", local_agent(), "Hi", each_memory)
    assert await stored(each_memory) == "U A"


async def test_an_input_that_becomes_one_that_cannot_be_stored(each_memory: Any) -> None:
    """InvalidItem, and what was stored in its place goes."""

    class Breaking(Runner):
        @classmethod
        async def run(cls, starting_agent: Any, input: Any, **options: Any) -> Any:  # noqa: A002
            broken: Any = [{"role": "user", "content": float("nan")}]
            return await super().run(starting_agent, broken, **options)

    with pytest.raises(InvalidItem):
        await with_session_memory(Breaking.run, memory=each_memory)(
            local_agent(), "Hi", session_id="s"
        )
    assert await each_memory.load_session("s") == []


@both_ways
async def test_a_key_takes_nothing_away_from_it(method: str) -> None:
    """The input of a run with an idempotency key is stored with the acquire as well."""
    memory = Asked()
    await carried_out(method, local_agent(), "Hi", memory, idempotency_key="k")
    assert memory.given == [['{"content": "Hi", "role": "user"}']]
    assert await stored(memory) == "U A"


@both_ways
async def test_an_end_that_alone_makes_the_input_safe_is_needed(method: str) -> None:
    """A run that adds nothing fails where its end cannot be written."""
    memory = WatchedInMemory()
    memory.will_fail(3, after_effect=False)
    with pytest.raises(MemoryUnavailable):
        await carried_out(method, scripted_agent(ModelStep(output=[])), "Hi", memory)
    assert memory.failed == "end"


async def test_a_run_that_ended_so_early_can_be_made_again_in_its_turn(each_memory: Any) -> None:
    """One question and one answer, whoever acquired the session for the first attempt."""
    with session_scope("s", memory=each_memory):  # acquired by the first run, as a loop is running
        for hooks in (Unwilling(), None):
            result = Runner.run_streamed(local_agent(), "Hi", hooks=hooks)
            try:
                _ = [event async for event in result.stream_events()]
            except RuntimeError:
                assert hooks is not None
            await result.run_loop_task if hooks is None else None
    assert result.final_output
    assert await stored(each_memory) == "U A"


async def test_an_acquire_that_was_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """The session is acquired all the same, and given back with what was stored with it."""
    slow, file = WatchedInMemory(), SQLiteSessionMemory(tmp_path / "chat.db")
    request = AcquireRequest("s", datetime.now(UTC), input=RunItems(1, 0, ['{"role": "user"}']))
    for memory in (slow, file):
        task = asyncio.ensure_future(memory.acquire(request))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (record,) = await memory.turns("s")
        assert (record.state, record.items) == ("cancelled", [])
        assert not await memory.session_exists("s")
        assert await free(memory)
    await file.cleanup()


async def test_nothing_is_stored_before_it_is_redacted() -> None:
    """Nor before a callback of the user's has said what the new items are."""
    memory = Asked()
    run = with_session_memory(Runner.run, memory=memory, redact=lambda item: item)
    await run(local_agent(), "Hi", session_id="redacted")

    def last_only(history: list[Any], new: list[Any]) -> list[Any]:
        return new[-1:]

    run = with_session_memory(Runner.run, memory=memory)
    config = RunConfig(session_input_callback=last_only)
    given = [{"role": "user", "content": "Drop."}, {"role": "user", "content": "Keep."}]
    await run(local_agent(), given, run_config=config, session_id="merged")  # type: ignore[arg-type]
    assert memory.given == [None, None]
    first, *_ = await memory.load_session("merged")
    assert first["content"] == "Keep."


async def test_a_memory_that_changes_how_items_are_kept_is_not_passed_by() -> None:
    """A class with append_items or write_turn of its own stores with the acquire if it says so."""

    class Appends(InMemorySessionMemory):
        async def append_items(self, *args: Any, **kwargs: Any) -> Any:
            return await super().append_items(*args, **kwargs)

    class Writes(SQLiteSessionMemory):
        async def write_turn(self, *args: Any, **kwargs: Any) -> Any:
            return await super().write_turn(*args, **kwargs)

    assert STORE_WITH_ACQUIRE in InMemorySessionMemory.capabilities
    assert STORE_WITH_ACQUIRE in SQLiteSessionMemory.capabilities
    assert STORE_WITH_ACQUIRE not in Appends.capabilities
    assert STORE_WITH_ACQUIRE not in Writes.capabilities
    assert STORE_WITH_ACQUIRE in Asked.capabilities
