"""with_session_memory around functions of every shape."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    InMemorySessionMemory,
    SessionBusy,
    current_session,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import local_agent
from tests.support.sessions import free, freed, own_loop, states, stored

HI = "Hi, I'm Alice"
NAME = "What's my name?"
ALICE = "Your name is Alice."


async def say(text: str) -> str:
    """One run of an agent that remembers names."""
    return str((await Runner.run(local_agent(), text)).final_output)


def say_sync(text: str) -> str:
    """The same, for code without an event loop."""
    return str(Runner.run_sync(local_agent(), text).final_output)


# --- coroutine functions -------------------------------------------------------------------


async def test_coroutine_function(each_memory: Any) -> None:
    """A coroutine function's runs belong to the session that its call names."""
    chat = with_session_memory(say, memory=each_memory)
    await chat(HI, session_id="s")
    assert await chat(NAME, session_id="s") == ALICE
    assert await chat(NAME, session_id="other") != ALICE
    assert await states(each_memory) == ["completed", "completed"]


async def test_session_id_is_taken_off_unless_declared(each_memory: Any) -> None:
    """A function that declares session_id gets it; another never sees it, nor the key."""

    @with_session_memory(memory=each_memory)
    async def declares(text: str, session_id: str) -> tuple[str, Any]:
        return session_id, current_session()

    @with_session_memory(memory=each_memory)
    async def takes_anything(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    assert await declares("x", session_id="s", idempotency_key="k") == ("s", ("s", 1))
    assert await takes_anything(text="x", session_id="s", idempotency_key="k2") == {"text": "x"}


async def test_a_call_that_is_never_awaited_takes_nothing(each_memory: Any) -> None:
    """A coroutine that is closed before its first step has not touched the session."""
    with_session_memory(say, memory=each_memory)(HI, session_id="s").close()
    assert await free(each_memory)
    assert await states(each_memory) == ["completed"]  # that of the check itself


async def test_an_error_fails_the_turn_and_frees_the_session(each_memory: Any) -> None:
    """What the function raises is what the caller gets, and the turn is failed."""

    @with_session_memory(memory=each_memory)
    async def fails() -> None:
        await say(HI)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await fails(session_id="s")
    (record,) = await each_memory.turns("s")
    assert (record.state, record.error_type, record.item_count) == ("failed", "LookupError", 2)
    assert await free(each_memory)


async def test_a_coroutine_closed_in_the_middle(each_memory: Any) -> None:
    """close() on a coroutine that has begun ends its turn as cancelled."""

    @with_session_memory(memory=each_memory)
    async def waits() -> None:
        await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(waits(session_id="s"))
    await asyncio.sleep(0)
    coroutine = task.get_coro()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED  # type: ignore[arg-type]
    assert await free(each_memory)


# --- plain functions -----------------------------------------------------------------------


def test_plain_function_without_a_loop(each_memory: Any, do: Any) -> None:
    """A plain function acquires the session at once and has let it go when it returns."""

    @with_session_memory(memory=each_memory)
    def chat(text: str) -> tuple[str, Any]:
        return say_sync(text), current_session()

    assert chat(HI, session_id="s")[1] == ("s", 1)
    assert chat(NAME, session_id="s") == (ALICE, ("s", 2))
    assert do(states(each_memory)) == ["completed", "completed"]


async def test_plain_function_under_a_loop(each_memory: Any) -> None:
    """Under a running loop a plain function that starts a stream hands the turn to it."""

    @with_session_memory(memory=each_memory)
    def start(text: str) -> Any:
        return Runner.run_streamed(local_agent(), text)

    first, second = start(HI, session_id="s"), start(NAME, session_id="s")
    for result in (first, second):
        async for _ in result.stream_events():
            pass
    assert second.final_output == ALICE
    assert await stored(each_memory) == "U A U A"


async def test_plain_function_that_returns_an_awaitable(each_memory: Any) -> None:
    """What a plain function returns to be awaited is awaited inside the turn."""

    @with_session_memory(memory=each_memory)
    def chat(text: str) -> Any:
        return say(text)

    await chat(HI, session_id="s")
    assert await chat(NAME, session_id="s") == ALICE
    with_awaitable = with_session_memory(
        lambda text: Runner.run(local_agent(), text), memory=each_memory
    )
    assert (await with_awaitable(NAME, session_id="s")).final_output == ALICE
    assert await states(each_memory) == ["completed"] * 3


async def test_an_awaitable_that_is_refused_does_not_warn(each_memory: Any) -> None:
    """If the session cannot be acquired, what the function returned is closed, not forgotten."""
    begun = []

    async def answer() -> None:
        begun.append("answer")

    chat = with_session_memory(lambda: answer(), memory=each_memory, on_busy="reject")

    async def refused() -> None:
        with pytest.raises(SessionBusy):
            await chat(session_id="s")
        gc.collect()

    async with session_scope("s", memory=each_memory):
        outside = contextvars.Context()
        await asyncio.get_running_loop().create_task(refused(), context=outside)
    assert begun == []


async def test_an_awaitable_that_is_never_awaited_lets_go(each_memory: Any) -> None:
    """If nobody awaits it, the session does not stay held."""

    @with_session_memory(memory=each_memory)
    def chat() -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_result("done")
        return future

    with pytest.warns(RuntimeWarning, match="never awaited"):
        chat(session_id="s")
    await freed(each_memory)


def test_plain_functions_in_threads(each_memory: Any, do: Any) -> None:
    """Plain functions in several threads acquire the session one after the other."""

    @with_session_memory(memory=each_memory)
    def chat(name: str) -> str:
        with own_loop():
            return say_sync(f"I'm {name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(functools.partial(chat, session_id="s"), ["Ann", "Ben", "Cyd", "Dan"]))
    assert do(stored(each_memory)) == "U A U A U A U A"


# --- generators ----------------------------------------------------------------------------


async def test_async_generator(each_memory: Any) -> None:
    """An async generator holds the session from its first step to its last, between them too."""

    @with_session_memory(memory=each_memory)
    async def talk(*texts: str) -> AsyncIterator[str]:
        for text in texts:
            yield await say(text)

    talking = talk(HI, NAME, session_id="s")
    assert await free(each_memory)
    first = await anext(talking)
    assert (first, await free(each_memory)) == ("Nice to meet you, Alice.", False)
    assert [part async for part in talking] == [ALICE]
    assert await free(each_memory)
    assert await stored(each_memory) == "U A U A"


async def test_async_generator_leaves_no_context_to_its_consumer(each_memory: Any) -> None:
    """Between steps the consumer is in no session."""

    @with_session_memory(memory=each_memory)
    async def talk() -> AsyncIterator[Any]:
        yield current_session()
        yield current_session()

    seen = []
    async for inside in talk(session_id="s"):
        seen.append((inside, current_session()))
    assert seen == [(("s", 1), None), (("s", 1), None)]


async def test_async_generator_takes_what_is_sent_and_thrown(each_memory: Any) -> None:
    """asend and athrow reach the generator, and its answers come back."""

    @with_session_memory(memory=each_memory)
    async def echo() -> AsyncGenerator[Any, Any]:
        heard = None
        while True:
            try:
                heard = yield heard
            except KeyError as error:
                heard = error

    echoing = echo(session_id="s")
    await anext(echoing)
    assert await echoing.asend("hello") == "hello"
    thrown = KeyError("x")
    assert await echoing.athrow(thrown) is thrown
    await echoing.aclose()
    assert await states(each_memory) == ["cancelled"]


async def test_async_generator_closed_early(each_memory: Any) -> None:
    """aclose() runs the generator's own cleanup inside the turn, then cancels it."""
    left = []

    @with_session_memory(memory=each_memory)
    async def talk() -> AsyncGenerator[str, None]:
        try:
            yield await say(HI)
            yield await say(NAME)
        finally:
            left.append(current_session())

    talking = talk(session_id="s")
    await anext(talking)
    await talking.aclose()
    assert left == [("s", 1)]
    assert await states(each_memory) == ["cancelled"]
    assert await free(each_memory)


async def test_async_generator_closed_from_another_task(each_memory: Any) -> None:
    """aclose() may come from a task that has never been in the session."""

    @with_session_memory(memory=each_memory)
    async def talk() -> AsyncGenerator[str, None]:
        yield await say(HI)
        yield "never"

    talking = talk(session_id="s")
    await anext(talking)
    await asyncio.create_task(talking.aclose())
    assert await states(each_memory) == ["cancelled"]


async def test_async_generator_never_started(each_memory: Any) -> None:
    """A generator that was made and dropped has not touched the session."""

    @with_session_memory(memory=each_memory)
    async def talk() -> AsyncGenerator[str, None]:
        yield ""

    unused = talk(session_id="s")
    await unused.aclose()
    talk(session_id="s")
    gc.collect()
    assert await each_memory.turns("s") == []


async def test_async_generator_dropped_halfway(each_memory: Any) -> None:
    """A generator that nobody refers to any more lets the session go."""

    @with_session_memory(memory=each_memory)
    async def talk() -> AsyncGenerator[str, None]:
        yield await say(HI)
        yield "never"

    await anext(talk(session_id="s"))
    gc.collect()
    await freed(each_memory)
    assert (await states(each_memory))[0] == "cancelled"


async def test_async_generator_that_fails(each_memory: Any) -> None:
    """An error in a step fails the turn."""

    @with_session_memory(memory=each_memory)
    async def talk() -> AsyncGenerator[str, None]:
        yield await say(HI)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        async for _ in talk(session_id="s"):
            pass
    assert await states(each_memory) == ["failed"]


def test_generator(each_memory: Any, do: Any) -> None:
    """A generator keeps the session across its steps, takes what is sent, and returns."""

    @with_session_memory(memory=each_memory)
    def talk() -> Generator[str, str, str]:
        text = yield "?"
        text = yield say_sync(text)
        yield say_sync(text)
        return "bye"

    def outer() -> Generator[str, str, str]:
        returned = yield from talk(session_id="s")
        yield returned
        return ""

    talking = outer()
    assert next(talking) == "?"
    assert talking.send(HI) == "Nice to meet you, Alice."
    assert not do(free(each_memory))
    assert current_session() is None
    assert talking.send(NAME) == ALICE
    assert next(talking) == "bye"
    assert do(stored(each_memory)) == "U A U A"


def test_generator_closed_thrown_into_and_dropped(each_memory: Any, do: Any) -> None:
    """However a generator is left, the session is free afterwards."""
    seen = []

    @with_session_memory(memory=each_memory)
    def talk() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        except BaseException as error:
            seen.append((type(error), current_session()))
            raise

    closed = talk(session_id="s")
    next(closed)
    closed.close()
    thrown = talk(session_id="s")
    next(thrown)
    with pytest.raises(KeyError):
        thrown.throw(KeyError())
    dropped = talk(session_id="s")
    next(dropped)
    del dropped
    gc.collect()
    talk(session_id="s")  # never started
    assert [kind for kind, _ in seen] == [GeneratorExit, KeyError, GeneratorExit]
    assert [session for _, session in seen] == [("s", 1), ("s", 2), ("s", 3)]
    do(freed(each_memory))
    assert do(states(each_memory))[:3] == ["cancelled", "failed", "cancelled"]


# --- methods, partials, callable objects ---------------------------------------------------


async def test_methods_of_every_kind() -> None:
    """Methods, classmethods and staticmethods, with the decorator on either side."""
    remember = with_session_memory(memory=InMemorySessionMemory())

    class Bot:
        """Decorated in all ways."""

        @remember
        async def method(self, text: str) -> tuple[Any, str]:
            return self, await say(text)

        @classmethod
        @remember
        async def inner_class(cls, text: str) -> tuple[Any, str]:
            return cls, await say(text)

        @remember
        @classmethod
        async def outer_class(cls, text: str) -> tuple[Any, str]:
            return cls, await say(text)

        @staticmethod
        @remember
        async def inner_static(text: str) -> tuple[Any, str]:
            return None, await say(text)

        @remember
        @staticmethod
        async def outer_static(text: str) -> tuple[Any, str]:
            return None, await say(text)

    bot = Bot()
    ways = [
        (bot.method, bot),
        (functools.partial(Bot.method, bot), bot),
        (bot.inner_class, Bot),
        (Bot.inner_class, Bot),
        (bot.outer_class, Bot),
        (Bot.outer_class, Bot),
        (bot.inner_static, None),
        (Bot.inner_static, None),
        (bot.outer_static, None),
        (Bot.outer_static, None),
    ]
    for number, (way, owner) in enumerate(ways):
        assert await way(HI, session_id=f"s{number}") == (owner, "Nice to meet you, Alice.")
        assert await way(NAME, session_id=f"s{number}") == (owner, ALICE)


async def test_bound_methods_partials_and_callable_objects() -> None:
    """What can be called can be decorated; its own kind of call stays."""

    class Chat:
        async def __call__(self, text: str) -> str:
            return await say(text)

        async def method(self, text: str) -> str:
            return await say(text)

        async def stream(self, *texts: str) -> AsyncIterator[str]:
            for text in texts:
                yield await say(text)

    memory = InMemorySessionMemory()
    for number, target in enumerate(
        (Chat(), Chat().method, functools.partial(say), functools.partial(Chat().method))
    ):
        chat = with_session_memory(target, memory=memory)
        await chat(HI, session_id=f"s{number}")
        assert await chat(NAME, session_id=f"s{number}") == ALICE
    talk = with_session_memory(functools.partial(Chat().stream, HI), memory=memory)
    assert [part async for part in talk(NAME, session_id="stream")][-1] == ALICE


async def test_name_doc_and_kind_stay() -> None:
    """A decorated function looks like the function it is."""
    memory = InMemorySessionMemory()

    async def chat(text: str, *, loud: bool = False) -> str:
        """Chat with it."""
        return text

    async def talk(text: str) -> AsyncIterator[str]:
        yield text

    def steps() -> Generator[int, None, None]:
        yield 1

    decorated = with_session_memory(chat, memory=memory)
    assert (decorated.__name__, decorated.__doc__) == ("chat", "Chat with it.")
    assert decorated.__qualname__ == chat.__qualname__
    assert decorated.__module__ == chat.__module__
    assert decorated.__wrapped__ is chat
    assert inspect.iscoroutinefunction(decorated)
    assert asyncio.iscoroutinefunction(decorated)
    assert inspect.isasyncgenfunction(with_session_memory(talk, memory=memory))
    assert inspect.isgeneratorfunction(with_session_memory(steps, memory=memory))
