"""Others wrap and replace Runner's methods too: their wrappers, mocks and ours go together."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import wrapt
from agents import Runner

from session_middleware import (
    InMemorySessionMemory,
    InvalidOption,
    SessionIdRequired,
    SessionMemoryError,
    installed,
    session_scope,
    with_session_memory,
)
from session_middleware._entry import intercept
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.sdk import bound_early, own_method
from tests.support.sessions import stored, tool

HI = "Hi, I'm Alice"
PRISTINE = {name: own_method(name) for name in ("run", "run_sync")}


@pytest.fixture(autouse=True)
def _as_the_sdk_has_them() -> Iterator[None]:
    """Each test begins and ends with the SDK's own methods."""
    before = {
        name: inspect.getattr_static(Runner, name) for name in ("run", "run_sync", "run_streamed")
    }
    intercept._needs.clear()
    intercept.no_longer_needed(object())
    yield
    intercept._needs.clear()
    for name, method in before.items():
        setattr(Runner, name, method)
    intercept.no_longer_needed(object())


# --- wrappers of other libraries -----------------------------------------------------------


@contextmanager
def wrapt_style(seen: list[str]) -> Iterator[None]:
    """As tracing libraries do it: wrapt around the class attribute, put back by __dict__."""

    async def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append("wrapt")
        return await wrapped(*args, **kwargs)

    before = inspect.getattr_static(Runner, "run")
    wrapt.wrap_function_wrapper(Runner, "run", wrapper)
    yield
    Runner.run = before  # type: ignore[method-assign]


@contextmanager
def monkeypatching(seen: list[str]) -> Iterator[None]:
    """As scripts do it: a plain function in the method's place, the bound method put back."""
    original = Runner.run

    async def patched(*args: Any, **kwargs: Any) -> Any:
        seen.append("patched")
        return await original(*args, **kwargs)

    Runner.run = patched  # type: ignore[method-assign]
    yield
    Runner.run = original  # type: ignore[method-assign]


@contextmanager
def patch_object(seen: list[str]) -> Iterator[None]:
    """As tests do it: a mock that calls the method it stands for."""
    with mock.patch.object(Runner, "run", wraps=Runner.run) as mocked:
        yield
        seen.extend(["mock"] * mocked.await_count)


@contextmanager
def opentelemetry_style(seen: list[str]) -> Iterator[None]:
    """As the instrumentations of OpenTelemetry do it: unwrapping takes the outermost away."""

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append("otel")
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(Runner, "run", wrapper)
    yield
    standing = Runner.run
    if isinstance(standing, wrapt.ObjectProxy) and hasattr(standing, "__wrapped__"):
        Runner.run = standing.__wrapped__  # type: ignore[method-assign]


OTHERS = (wrapt_style, monkeypatching, patch_object, opentelemetry_style)
Steps = tuple[str, ...]
ORDERS: list[Steps] = [
    steps
    for steps in itertools.permutations(("we enter", "we leave", "they enter", "they leave"))
    if steps.index("we enter") < steps.index("we leave")
    and steps.index("they enter") < steps.index("they leave")
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
async def test_every_order_of_entering_and_leaving(
    order: Steps, other: Callable[[list[str]], AbstractContextManager[None]]
) -> None:
    """Whoever wraps first and leaves first: theirs is called, ours remembers, nothing breaks."""
    memory, seen = InMemorySessionMemory(), []
    theirs: Any = None
    ours: Any = None
    for step in order:
        if step == "we enter":
            ours = session_scope("s", memory=memory)
            await ours.__aenter__()
        elif step == "we leave":
            await ours.__aexit__(None, None, None)
        elif step == "they enter":
            theirs = other(seen)
            theirs.__enter__()
        else:
            theirs.__exit__(None, None, None)
        assert (await Runner.run(local_agent(), HI)).final_output
    before = await memory.load_session("s")
    assert before, "no run inside our scope was remembered"
    assert seen, "their wrapper was never called"
    async with session_scope("s", memory=memory):  # whatever is left of theirs and of ours
        await Runner.run(local_agent(), "Hi again")
    assert len(await memory.load_session("s")) == len(before) + 2
    await Runner.run(local_agent(), "Nobody's")
    assert len(await memory.load_session("s")) == len(before) + 2


async def test_their_wrapper_stays_when_we_leave() -> None:
    """What others put around our wrapper is still there after our scope, and is called once."""
    seen: list[str] = []
    with ExitStack() as theirs:
        async with session_scope("s", memory=InMemorySessionMemory()):
            theirs.enter_context(wrapt_style(seen))
        await Runner.run(local_agent(), HI)
        assert seen == ["wrapt"]
    intercept.no_longer_needed(object())
    assert inspect.getattr_static(Runner, "run") is PRISTINE["run"]


async def test_nothing_is_left_of_us_under_a_saved_bound_method() -> None:
    """Somebody who saved ``Runner.run`` while it was ours and puts it back does no harm."""
    with ExitStack() as theirs:
        async with session_scope("s", memory=InMemorySessionMemory()):
            theirs.enter_context(monkeypatching([]))
    intercept.no_longer_needed(object())
    assert inspect.getattr_static(Runner, "run") is PRISTINE["run"]


async def test_a_decorated_function_comes_back_after_a_restore() -> None:
    """Others restored what they saved, and ours is gone: the next call puts it back."""
    memory = InMemorySessionMemory()

    @with_session_memory(memory=memory)
    async def chat(text: str) -> Any:
        return (await Runner.run(local_agent(), text)).final_output

    Runner.run = PRISTINE["run"]  # type: ignore[method-assign]
    await chat(HI, session_id="s")
    assert await chat("What's my name?", session_id="s") == "Your name is Alice."
    assert await stored(memory) == "U A U A"


async def test_two_wrappers_of_ours_decide_alike() -> None:
    """With another library's wrapper between two of ours, a call is stored once or not at all."""
    memory, seen = InMemorySessionMemory(), []
    async with session_scope("s", memory=memory):
        with monkeypatching(seen):
            async with session_scope("s", memory=memory):
                await Runner.run(local_agent(), HI)
                await Runner.run(local_agent(), HI, session_id=None)
    assert await stored(memory) == "U A"
    with installed(memory=memory, require_session_id=True), monkeypatching(seen):
        async with session_scope("s", memory=memory):
            with pytest.raises(SessionIdRequired):
                await Runner.run(local_agent(), HI, session_id=None)
    assert seen == ["patched", "patched"]


async def test_a_tool_of_a_call_that_was_passed_on_may_be_ours() -> None:
    """A run that is not ours does not hide from us the session that a tool of it names."""
    memory = InMemorySessionMemory()

    async def remember() -> str:
        return str((await Runner.run(local_agent(), HI, session_id="s")).final_output)

    agent = scripted_agent(call("remember"), assistant("ok"), tools=[tool("remember", remember)])
    with installed(memory=memory):
        await Runner.run(agent, "Go", session_id=None)
    assert await stored(memory) == "U A"


# --- mocks and functions in a method's place -----------------------------------------------

STUBS = [
    SimpleNamespace(final_output="hello"),
    SimpleNamespace(),
    mock.MagicMock(),
    "hello",
    None,
    {"final_output": "hello"},
]


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: type(stub).__name__)
async def test_a_mock_and_whatever_it_returns(stub: Any) -> None:
    """A mocked Runner.run is called as it is, and its result is handed on, whatever it is."""
    memory = InMemorySessionMemory()

    @with_session_memory(memory=memory)
    async def chat(text: str) -> Any:
        return await Runner.run(local_agent(), text)

    with mock.patch.object(Runner, "run", return_value=stub) as run:
        assert await chat(HI, session_id="s") is stub
        async with session_scope("s", memory=memory):
            assert await Runner.run(local_agent(), HI) is stub
        with installed(memory=memory):
            assert await Runner.run(local_agent(), HI, session_id="s") is stub
    assert [one.args[1] for one in run.await_args_list] == [HI] * 3
    assert [record.state for record in await memory.turns("s")] == ["completed"] * 3
    assert (await chat(HI, session_id="s")).final_output == "Nice to meet you, Alice."


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: type(stub).__name__)
def test_mocks_of_the_other_methods(stub: Any, do: Any) -> None:
    """Likewise for run_sync, and for run_streamed under a loop."""
    memory = InMemorySessionMemory()
    with mock.patch.object(Runner, "run_sync", return_value=stub):
        run = with_session_memory(Runner.run_sync, memory=memory)
        assert run(local_agent(), HI, session_id="s") is stub

    async def streamed() -> Any:
        async with session_scope("s", memory=memory):
            return Runner.run_streamed(local_agent(), HI)

    with mock.patch.object(Runner, "run_streamed", return_value=stub):
        assert do(streamed()) is stub
    assert [record.state for record in do(memory.turns("s"))] == ["completed"] * 2


async def test_a_mock_that_fails() -> None:
    """The error of a mock is the call's, and its turn has failed."""
    memory = InMemorySessionMemory()
    with mock.patch.object(Runner, "run", side_effect=ValueError("no")):
        async with session_scope("s", memory=memory):
            with pytest.raises(ValueError, match="no"):
                await Runner.run(local_agent(), HI)
    assert [record.runs for record in await memory.turns("s")] == [1]


async def test_a_plain_function_that_takes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function in the method's place gets the arguments as they were given."""
    got: list[Any] = []

    async def fake(agent: Any, text: Any, **options: Any) -> str:
        got.append((agent, text))
        return "fake"

    monkeypatch.setattr(Runner, "run", fake)
    agent = local_agent()
    async with session_scope("s", memory=InMemorySessionMemory()):
        assert await Runner.run(agent, HI) == "fake"
        assert await Runner.run(agent, text=HI) == "fake"
    assert got == [(agent, HI)] * 2


async def test_a_function_that_cannot_have_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its name, only where there is a session, and nobody blames the SDK."""

    async def fake_run(agent: Any, text: str) -> str:
        return "fake"

    monkeypatch.setattr(Runner, "run", fake_run)
    async with session_scope("s", memory=InMemorySessionMemory()):
        with pytest.raises(SessionMemoryError, match="fake_run") as refusal:
            await Runner.run(local_agent(), HI)
        assert await Runner.run(local_agent(), HI, session_id=None) == "fake"
    assert "openai-agents" not in str(refusal.value)
    assert "**kwargs" in str(refusal.value)


async def test_what_cannot_be_called_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else in the method's place is named at the first use."""
    monkeypatch.setattr(Runner, "run_streamed", 5)
    with pytest.raises(SessionMemoryError, match=r"Runner.run_streamed .* type int") as refusal:
        async with session_scope("s", memory=InMemorySessionMemory()):
            pass
    assert "openai-agents" not in str(refusal.value)
    assert inspect.getattr_static(Runner, "run") is PRISTINE["run"]


async def test_a_release_of_the_sdk_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of the SDK's own without a parameter we need is refused with the versions."""

    async def run(cls: Any, starting_agent: Any, input: Any) -> None:  # noqa: A002
        """As an earlier release may have it."""

    run.__module__ = "agents.run"
    monkeypatch.setattr(Runner, "run", classmethod(run))
    with pytest.raises(SessionMemoryError, match=r"openai-agents .* no parameter session, hooks"):
        with_session_memory(lambda: None, memory=InMemorySessionMemory())


# --- partials and wraps of Runner's methods ------------------------------------------------

_bound_early = bound_early("run")


@functools.wraps(_bound_early)
async def _traced(*args: Any, **kwargs: Any) -> Any:
    return await _bound_early(*args, **kwargs)


def _with_partials() -> Iterator[tuple[str, Callable[[Any], Any], bool]]:
    yield "agent", lambda agent: functools.partial(_bound_early, agent), True
    yield "agent by name", lambda agent: functools.partial(_bound_early, starting_agent=agent), True
    yield (
        "nested",
        lambda agent: functools.partial(functools.partial(_bound_early, agent), max_turns=3),
        True,
    )
    yield "all of it", lambda agent: functools.partial(_bound_early, agent, HI), False
    yield "wraps", lambda agent: functools.partial(_traced, agent), True
    yield "wraps of a partial", lambda agent: _wraps(functools.partial(_bound_early, agent)), True


def _wraps(inner: Any) -> Any:
    @functools.wraps(inner)
    async def outer(*args: Any, **kwargs: Any) -> Any:
        return await inner(*args, **kwargs)

    return outer


@pytest.mark.parametrize(
    ("make", "takes_input"),
    [pytest.param(make, takes, id=name) for name, make, takes in _with_partials()],
)
async def test_partials_and_wraps_of_a_method(
    make: Callable[[Any], Any], takes_input: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They are caught like the method itself, though bound before anything was wrapped."""
    caplog.set_level(logging.WARNING, "session_middleware")
    memory = InMemorySessionMemory()
    run = with_session_memory(make(local_agent()), memory=memory)
    for key in ("k1", "k2"):
        given = {"input": HI} if takes_input else {}
        assert (await run(**given, session_id="s", idempotency_key=key)).final_output
    assert await stored(memory) == "U A U A"
    assert [record.runs for record in await memory.turns("s")] == [1, 1]
    assert caplog.text == ""
    if takes_input:
        with pytest.raises(SessionMemoryError):
            await run(input="something else", session_id="s", idempotency_key="k1")


async def test_a_partial_may_name_the_session() -> None:
    """session_id and idempotency_key may be arguments of the partial."""
    memory = InMemorySessionMemory()
    run = with_session_memory(functools.partial(Runner.run, session_id="s"), memory=memory)
    await run(local_agent(), HI)
    assert await stored(memory) == "U A"


async def test_a_wrap_that_hides_the_input_is_a_function(caplog: pytest.LogCaptureFixture) -> None:
    """It cannot stand for the method; the run in it that goes past us is told."""
    caplog.set_level(logging.WARNING, "session_middleware")
    memory = InMemorySessionMemory()
    hidden = _wraps(functools.partial(_bound_early, local_agent(), HI))
    await with_session_memory(hidden, memory=memory)(session_id="s")
    assert "no_run_intercepted" in caplog.text
    with pytest.raises(InvalidOption):
        with_session_memory("Runner.run", memory=memory)  # type: ignore[call-overload]
