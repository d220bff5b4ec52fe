"""Where a decorated call gets its session id from, and what is refused at decoration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    ConflictingMemory,
    InMemorySessionMemory,
    InvalidMemoryUrl,
    InvalidOption,
    InvalidSessionId,
    SessionIdRequired,
    SessionMemory,
    current_session,
    last_turns,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import local_agent
from tests.support.sessions import stored
from tests.support.six_methods import SixMethods


@pytest.fixture
def memory() -> InMemorySessionMemory:
    """A memory of the test's own."""
    return InMemorySessionMemory()


def here() -> str | None:
    """The id of the session in force."""
    found = current_session()
    return None if found is None else found[0]


# --- the sources ---------------------------------------------------------------------------


async def test_a_declared_parameter(memory: SessionMemory) -> None:
    """A parameter named session_id is the source: positional, by keyword, or its default."""

    @with_session_memory(memory=memory)
    async def chat(text: str, session_id: str = "by default") -> tuple[str, str | None]:
        return session_id, here()

    assert await chat("x", "positional") == ("positional", "positional")
    assert await chat("x", session_id="keyword") == ("keyword", "keyword")
    assert await chat("x") == ("by default", "by default")


async def test_a_declared_parameter_on_methods(memory: SessionMemory) -> None:
    """The same on methods of every kind."""

    class Bot:
        """Takes ids by position."""

        @with_session_memory(memory=memory)
        async def method(self, session_id: str) -> tuple[str, str | None]:
            return session_id, here()

        @with_session_memory(memory=memory)
        @classmethod
        async def outside(cls, session_id: str) -> tuple[str, str | None]:
            return session_id, here()

        @classmethod
        @with_session_memory(memory=memory)
        async def inside(cls, session_id: str) -> tuple[str, str | None]:
            return session_id, here()

        @with_session_memory(memory=memory)
        @staticmethod
        async def static(session_id: str) -> tuple[str, str | None]:
            return session_id, here()

    bot = Bot()
    for method in (bot.method, bot.outside, bot.inside, bot.static, Bot.outside, Bot.static):
        assert await method("a") == ("a", "a")
        assert await method(session_id="b") == ("b", "b")
    assert await Bot.method(bot, "c") == ("c", "c")


async def test_the_name_of_a_parameter(memory: SessionMemory) -> None:
    """session_id="param" at decoration: that argument, however it is given."""

    @with_session_memory(session_id="thread", memory=memory)
    async def answer(thread: str, text: str = "") -> tuple[str, str | None]:
        return thread, here()

    assert await answer("a", "x") == ("a", "a")
    assert await answer(text="x", thread="b") == ("b", "b")
    assert await answer("a", "x", session_id="the call's") == ("a", "the call's")

    class Bot:
        """The same on a method, whose instance may have any name."""

        @with_session_memory(session_id="thread", memory=memory)
        async def usual(self, thread: str) -> tuple[str, str | None]:
            return thread, here()

        @with_session_memory(session_id="thread", memory=memory)
        async def unusual(this, thread: str) -> tuple[str, str | None]:  # noqa: N805
            return thread, here()

        @with_session_memory(session_id="thread", memory=memory)
        async def stream(self, thread: str) -> AsyncIterator[str | None]:
            yield here()

    bot = Bot()
    assert await bot.usual("a") == ("a", "a")
    assert await bot.unusual("a") == ("a", "a")
    assert await Bot.usual(bot, thread="b") == ("b", "b")
    assert await Bot.unusual(bot, "b") == ("b", "b")
    assert [part async for part in bot.stream("c")] == ["c"]


async def test_a_callable(memory: SessionMemory) -> None:
    """A callable gets the function's arguments, a method's instance too."""

    @with_session_memory(session_id=lambda user, text: f"user-{user}", memory=memory)
    async def answer(user: int, text: str) -> str | None:
        return here()

    assert await answer(7, text="x") == "user-7"
    assert await answer(7, "x", session_id="the call's") == "the call's"

    class Bot:
        """Knows its user."""

        user = 7

        @with_session_memory(session_id=lambda self, text: f"user-{self.user}", memory=memory)
        async def answer(self, text: str) -> str | None:
            return here()

    assert await Bot().answer("x") == "user-7"


async def test_the_scopes_id(memory: SessionMemory) -> None:
    """A call that names no session takes that of the scope around it, in its own memory."""
    other = InMemorySessionMemory()

    @with_session_memory(memory=memory)
    async def chat() -> str:
        return str((await Runner.run(local_agent(), "Hi")).final_output)

    async with session_scope("s", memory=memory):
        await chat()
    async with session_scope("s", memory=other):
        await chat()
    assert await stored(memory) == "U A U A"
    assert await stored(other) == ""


async def test_no_id(memory: SessionMemory) -> None:
    """Without an id a call is refused, and shown how it is done; None never falls back."""

    @with_session_memory(memory=memory)
    async def chat(text: str) -> None:
        raise AssertionError

    @with_session_memory(session_id="thread", memory=memory)
    async def answer(thread: str | None = None) -> None:
        raise AssertionError

    @with_session_memory(session_id=lambda: None, memory=memory)
    async def computed() -> None:
        raise AssertionError

    for coroutine in (
        chat("x"),
        chat("x", session_id=None),
        answer(),
        answer("given", session_id=None),
        computed(),
    ):
        with pytest.raises(SessionIdRequired, match=r'session_id="'):
            await coroutine
    async with session_scope("s", memory=memory):
        for coroutine in (chat("x", session_id=None), answer(), computed()):
            with pytest.raises(SessionIdRequired, match=r'session_id="'):
                await coroutine


@pytest.mark.parametrize("wrong", ["", "  ", "x" * 513, "a\nb", "a\x00", "\ud800", 7, b"s"])
async def test_ids_that_cannot_be(memory: SessionMemory, wrong: Any) -> None:
    """An id that cannot name a session is InvalidSessionId before anything is run."""

    @with_session_memory(memory=memory)
    async def chat() -> None:
        raise AssertionError

    with pytest.raises(InvalidSessionId):
        await chat(session_id=wrong)


@pytest.mark.parametrize("odd", ["ü", "🦜", "a b", "x" * 512, "../../etc/passwd", "'; DROP"])
async def test_ids_that_can_be(each_memory: Any, odd: str) -> None:
    """Any other text can."""
    run = with_session_memory(Runner.run, memory=each_memory)
    await run(local_agent(), "Hi, I'm Alice", session_id=odd)
    assert (await run(local_agent(), "What's my name?", session_id=odd)).final_output == (
        "Your name is Alice."
    )
    assert await each_memory.list_sessions() == [odd]


@pytest.mark.parametrize("wrong", ["", " ", 7, "k" * 513, "k\ud800"])
async def test_keys_that_cannot_be(memory: SessionMemory, wrong: Any) -> None:
    """An idempotency key is a non-blank string of at most 512 characters, all of them whole."""

    @with_session_memory(memory=memory)
    async def chat() -> None:
        raise AssertionError

    with pytest.raises(InvalidOption, match="idempotency_key"):
        await chat(session_id="s", idempotency_key=wrong)


async def test_a_wrong_call_is_the_functions_own_error(memory: SessionMemory) -> None:
    """Arguments the function does not take are its own TypeError."""

    @with_session_memory(session_id="thread", memory=memory)
    async def answer(thread: str) -> None:
        raise AssertionError

    @with_session_memory(memory=memory)
    async def declares(session_id: str) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="nonsense"):
        await answer(nonsense=1, session_id="s")
    with pytest.raises(TypeError, match="session_id"):
        await declares("a", session_id="b")


# --- memory, and what is refused at decoration ---------------------------------------------


async def test_memory_none_passes_through() -> None:
    """memory=None: session_id and key are taken off and ignored, declared or not."""

    @with_session_memory(memory=None)
    async def chat(text: str) -> tuple[str, Any]:
        return text, current_session()

    @with_session_memory(memory=None)
    async def declares(session_id: str) -> str:
        return session_id

    assert await chat("x", session_id="s", idempotency_key="k") == ("x", None)
    assert await chat("x") == ("x", None)
    assert await declares(session_id="s") == "s"
    run = with_session_memory(Runner.run, memory=None)
    assert (await run(local_agent(), "Hi, I'm Bob", session_id="s")).final_output


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"memory": 7}, InvalidOption),
        ({"memory": InMemorySessionMemory}, InvalidOption),
        ({"memory": "mysql://x"}, InvalidMemoryUrl),
        ({"nonsense": 1}, InvalidOption),
        ({"on_busy": "never"}, InvalidOption),
        ({"on_busy": "reject", "wait_timeout": 5}, InvalidOption),
        ({"wait_timeout": 0}, InvalidOption),
        ({"turn_timeout": "soon"}, InvalidOption),
        ({"on_failure": "forget"}, InvalidOption),
        ({"on_unavailable": "ignore"}, InvalidOption),
        ({"redact": "secret"}, InvalidOption),
        ({"window": 20}, InvalidOption),
        ({"window": [last_turns(2), 5]}, InvalidOption),
        ({"telemetry": {"nonsense": 1}}, InvalidOption),
        ({"session_id": "nonsense"}, InvalidOption),
        ({"session_id": 7}, InvalidOption),
    ],
)
def test_wrong_options_fail_at_decoration(options: dict[str, Any], error: type) -> None:
    """What is unknown, of the wrong kind or contradictory is refused before any call."""

    async def chat(text: str) -> None:
        raise AssertionError

    with pytest.raises(error):
        with_session_memory(chat, **{"memory": ":memory:", **options})
    assert issubclass(error, (TypeError, ValueError))


def test_what_cannot_be_decorated() -> None:
    """Only what can be called can be decorated; a memory passed by position is told apart."""
    with pytest.raises(InvalidOption, match="options are given by name"):
        with_session_memory(InMemorySessionMemory())  # type: ignore[call-overload]


async def test_what_a_plain_memory_cannot_serve() -> None:
    """A memory with the six methods only: discard at decoration, a key at the call."""
    with pytest.raises(ConflictingMemory, match="discard"):
        with_session_memory(Runner.run, memory=SixMethods(), on_failure="discard")
    memory = SixMethods()
    run = with_session_memory(Runner.run, memory=memory)
    with pytest.raises(ConflictingMemory, match="idempotency"):
        await run(local_agent(), "Hi", session_id="s", idempotency_key="k")
    await run(local_agent(), "Hi", session_id="s")
    assert await stored(memory) == "U A"
