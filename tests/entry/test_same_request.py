"""The same idempotency key with another input is refused, in every form of a turn."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agents import Runner
from pydantic import BaseModel

from session_middleware import (
    DuplicateTurn,
    IdempotencyConflict,
    InvalidOption,
    installed,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import assistant, call, local_agent, scripted_agent
from tests.support.sessions import tool

Ask = Callable[[Any, Any, str], Awaitable[Any]]


async def decorated(memory: Any, given: Any, key: str) -> Any:
    """A decorated function."""

    @with_session_memory(memory=memory)
    async def ask(agent: Any, text: Any, *, session_id: str, when: float = 0) -> None:
        await Runner.run(agent, str(text))

    await ask(local_agent(), given, session_id="s", idempotency_key=key)


async def generator(memory: Any, given: Any, key: str) -> Any:
    """A decorated async generator, its argument by name."""

    @with_session_memory(memory=memory)
    async def ask(text: Any) -> Any:
        yield await Runner.run(local_agent(), str(text))

    return [one async for one in ask(text=given, session_id="s", idempotency_key=key)]


async def method(memory: Any, given: Any, key: str) -> Any:
    """A decorated method."""

    class Service:
        @with_session_memory(memory=memory)
        async def ask(self, text: Any) -> None:
            await Runner.run(local_agent(), str(text))

    await Service().ask(given, session_id="s", idempotency_key=key)


async def scope(memory: Any, given: Any, key: str) -> Any:
    """A scope with a fingerprint."""
    async with session_scope("s", memory=memory, idempotency_key=key, fingerprint=given):
        await Runner.run(local_agent(), str(given))


async def wrapped(memory: Any, given: Any, key: str) -> Any:
    """Runner.run itself."""
    run = with_session_memory(Runner.run, memory=memory)
    await run(local_agent(), str(given), session_id="s", idempotency_key=key)


async def run_installed(memory: Any, given: Any, key: str) -> Any:
    """A run of an installation."""
    with installed(memory=memory):
        await Runner.run(local_agent(), str(given), session_id="s", idempotency_key=key)


FORMS = (decorated, generator, method, scope, wrapped, run_installed)
each_form = pytest.mark.parametrize("ask", FORMS, ids=lambda form: form.__name__)


@each_form
async def test_another_input_is_a_conflict(each_memory: Any, ask: Ask) -> None:
    """A completed turn answers its own request again, and no other one."""
    await ask(each_memory, "Hi", "k")
    with pytest.raises(DuplicateTurn):
        await ask(each_memory, "Hi", "k")
    with pytest.raises(IdempotencyConflict, match="use a new key for a new input"):
        await ask(each_memory, "Bye", "k")
    await ask(each_memory, "Bye", "k2")
    assert len(await each_memory.turns("s")) == 2


@each_form
async def test_the_record_of_a_duplicate(each_memory: Any, ask: Ask) -> None:
    """DuplicateTurn has the record to answer from."""
    await ask(each_memory, "Hi, I'm Alice", "k")
    await ask(each_memory, "Bye", "k2")
    with pytest.raises(DuplicateTurn) as duplicate:
        await ask(each_memory, "Hi, I'm Alice", "k")
    record = duplicate.value.record
    assert record is not None
    assert (record.turn, record.state, record.idempotency_key) == (1, "completed", "k")
    assert record.output_text == "Nice to meet you, Alice."
    assert record.items == duplicate.value.items
    assert len(record.items) == 2


async def test_the_record_of_a_parked_turn(each_memory: Any) -> None:
    """A turn that waits for approval says so, in its message and in its record."""
    agent = scripted_agent(
        call("pay", call_id="c"),
        assistant("paid"),
        tools=[tool("pay", lambda: "ok", needs_approval=True)],
    )
    run = with_session_memory(Runner.run, memory=each_memory)
    await run(agent, "Pay", session_id="s", idempotency_key="k")
    with pytest.raises(DuplicateTurn, match="approv") as duplicate:
        await run(agent, "Pay", session_id="s", idempotency_key="k")
    record = duplicate.value.record
    assert record is not None
    assert record.state == "awaiting_approval"


# --- what is compared ------------------------------------------------------------------------


class Order(BaseModel):
    """As web frameworks parse a body."""

    item: str
    at: datetime.datetime


@dataclasses.dataclass
class Client:
    """Something that is no JSON."""

    name: str


MORNING = datetime.datetime(2026, 1, 1, 8, tzinfo=datetime.UTC)
EVENING = datetime.datetime(2026, 1, 1, 18, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": [1, "x", None]}, {"a": [1, "y", None]}),
        (Order(item="x", at=MORNING), Order(item="x", at=EVENING)),
        ([Order(item="x", at=MORNING)], [Order(item="y", at=MORNING)]),
        (1, 2),
    ],
    ids=["JSON", "a model", "models in a list", "a number"],
)
@pytest.mark.parametrize("ask", [decorated, scope], ids=["decorated", "scope"])
async def test_json_and_models_are_compared(
    each_memory: Any, ask: Ask, one: Any, other: Any
) -> None:
    """Any JSON argument counts, and a pydantic model by its JSON."""
    await ask(each_memory, one, "k")
    with pytest.raises(DuplicateTurn):
        await ask(each_memory, one, "k")
    with pytest.raises(IdempotencyConflict):
        await ask(each_memory, other, "k")


async def test_what_is_no_json_is_not_compared(each_memory: Any) -> None:
    """A client or an agent is another object at each request; it does not make another input."""

    @with_session_memory(memory=each_memory)
    async def ask(client: Client, text: str) -> None:
        await Runner.run(local_agent(), text)

    await ask(Client("one"), "Hi", session_id="s", idempotency_key="k")
    with pytest.raises(DuplicateTurn):
        await ask(Client("another"), "Hi", session_id="s", idempotency_key="k")


async def test_by_position_and_by_name_are_the_same_request(each_memory: Any) -> None:
    """How the arguments are given does not matter."""

    @with_session_memory(memory=each_memory)
    async def ask(one: str, two: str = "b") -> None:
        await Runner.run(local_agent(), one + two)

    await ask("a", "b", session_id="s", idempotency_key="k")
    with pytest.raises(DuplicateTurn):
        await ask(two="b", one="a", session_id="s", idempotency_key="k")


async def test_a_failed_turn_with_another_input(each_memory: Any) -> None:
    """A turn that failed is made again with its own input only."""

    @with_session_memory(memory=each_memory)
    async def ask(text: str, fails: Any) -> None:
        await Runner.run(local_agent(), text)
        if fails():
            raise LookupError

    with pytest.raises(LookupError):
        await ask("Hi", lambda: True, session_id="s", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await ask("Bye", lambda: False, session_id="s", idempotency_key="k")
    await ask("Hi", lambda: False, session_id="s", idempotency_key="k")


def test_a_fingerprint_that_is_none() -> None:
    """A fingerprint must be JSON, and needs a key to say what it is the fingerprint of."""
    with pytest.raises(InvalidOption, match=r"fingerprint must be JSON, .* got .* type Client"):
        session_scope("s", idempotency_key="k", fingerprint=Client("secret"))
    with pytest.raises(InvalidOption, match="fingerprint needs an idempotency_key"):
        session_scope("s", fingerprint="x")
