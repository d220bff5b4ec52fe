"""A decorated function is a function: copied, sent, inspected and called by what others write."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import multiprocessing
import os
import pickle
import pydoc
import typing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import pytest
import typer
from agents import Runner
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError, validate_call
from typer.testing import CliRunner

from session_middleware import (
    InMemorySessionMemory,
    InvalidOption,
    InvalidSessionId,
    SessionIdRequired,
    SQLiteSessionMemory,
    open_memory,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import local_agent
from tests.support import ROOT
from tests.support.decorated import Support, called, chat, chat_sync, words, words_sync
from tests.support.programs import Programs
from tests.support.sessions import stored

HI, NAME = "Hi, I'm Alice", "What's my name?"
NICE, ALICE = "Nice to meet you, Alice.", "Your name is Alice."
FUNCTIONS = (chat, chat_sync, words, words_sync)


# --- copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda one: copy.deepcopy({"a": one})["a"],
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: pickle.loads(pickle.dumps(one, protocol=0)),
        lambda one: cloudpickle.loads(cloudpickle.dumps(one)),
        lambda one: dill.loads(dill.dumps(one)),
    ],
    ids=["copy", "deepcopy", "inside", "pickle", "pickle 0", "cloudpickle", "dill"],
)
def test_a_copy_is_the_function_itself(function: Any, copied: Callable[[Any], Any]) -> None:
    """As with any function, every way to copy it finds it by its name."""
    assert copied(function) is function


@pytest.mark.parametrize("dumped", [pickle, cloudpickle, dill], ids=lambda one: one.__name__)
def test_methods_are_sent_with_their_instance(dumped: Any) -> None:
    """A method of an instance, of a class, and a static one arrive where they belong."""
    support = Support("mine")
    sent = pickle.loads(dumped.dumps(support.reply))
    assert sent.__self__.name == "mine"
    assert sent.__func__ is Support.__dict__["reply"]
    for method in (Support.of_class, Support.of_nobody, support.of_class):
        assert pickle.loads(dumped.dumps(method)).__qualname__ == method.__qualname__


def test_what_has_no_name_of_its_own_cannot_be_pickled() -> None:
    """A function of a function is refused by pickle, as without us."""

    async def inner(text: str) -> str:
        return text

    with pytest.raises((pickle.PicklingError, AttributeError), match="inner"):
        pickle.dumps(with_session_memory(inner, memory=InMemorySessionMemory()))


@pytest.mark.parametrize("function", [chat, chat_sync], ids=["coroutine function", "function"])
def test_a_process_pool_that_spawns(
    function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: Any
) -> None:
    """Workers that begin with nothing decorate the function themselves: its calls are kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(called, function, HI, "s").result(60) == NICE
        assert pool.submit(called, function, NAME, "s").result(60) == ALICE
    resource_tracker._resource_tracker._stop()  # else its process stays as long as this one
    memory = SQLiteSessionMemory(tmp_path / "shared.db")
    assert do(stored(memory)) == "U A U A"
    do(memory.cleanup())


BY_VALUE = """
import asyncio, subprocess, sys
import cloudpickle
from agents import Agent, Runner
from session_middleware import SQLiteSessionMemory, with_session_memory
from session_middleware.testing.models import LocalModel

@with_session_memory(memory=SQLiteSessionMemory("by_value.db", lease=7), on_busy="reject")
async def chat(text):
    agent = Agent(name="A", model=LocalModel())
    return (await Runner.run(agent, text)).final_output

@with_session_memory(memory="sqlite:///by_value.db")
async def words(text):
    agent = Agent(name="A", model=LocalModel())
    for word in (await Runner.run(agent, text)).final_output.split():
        yield word

@with_session_memory(memory="sqlite:///by_value.db")
def lines(text):
    agent = Agent(name="A", model=LocalModel())
    yield Runner.run_sync(agent, text).final_output

WORKER = '''
import asyncio, pickle, sys
chat, words, lines = pickle.loads(sys.stdin.buffer.read())
asyncio.run(chat("Hi, I am Alice", session_id="s"))
async def read():
    return [word async for word in words("What's my name?", session_id="s")]
print(" ".join(asyncio.run(read())))
print(*lines("What's my name?", session_id="s"))
'''
sent = cloudpickle.dumps((chat, words, lines))
subprocess.run([sys.executable, "-c", WORKER], input=sent, check=True)
"""


def test_a_function_of_a_script_that_is_sent_by_value(
    programs: Programs, tmp_path: Path, do: Any
) -> None:
    """cloudpickle sends functions of ``__main__`` by value: they arrive decorated."""
    environment = {**os.environ, "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    done = programs.run("-c", BY_VALUE, cwd=tmp_path, env=environment, timeout=100)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [ALICE, ALICE]
    memory = SQLiteSessionMemory(tmp_path / "by_value.db")
    assert do(stored(memory)) == "U A U A U A"
    do(memory.cleanup())


def test_a_memory_of_this_process_is_not_sent() -> None:
    """What only this process has is refused, with what to do."""

    async def inner(text: str) -> str:
        return text

    for memory in (InMemorySessionMemory(), ":memory:", SQLiteSessionMemory(":memory:")):
        with pytest.raises(TypeError, match="name the memory by its URL"):
            cloudpickle.dumps(with_session_memory(inner, memory=memory))


async def test_a_memory_that_is_sent(tmp_path: Path) -> None:
    """An SQLite memory arrives as one on the same file with the same options."""
    memory = SQLiteSessionMemory(tmp_path / "x.db", lease=7, synchronous="NORMAL")
    sent = pickle.loads(pickle.dumps(memory))
    assert (sent.identity, sent.lease_seconds) == (memory.identity, 7)
    assert sent._durability is memory._durability
    opened = open_memory(f"sqlite:///{tmp_path}/y.db")
    assert pickle.loads(pickle.dumps(opened)).identity == opened.identity


# --- what looks at functions -----------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)
def test_the_signature_shows_what_a_call_takes(function: Any) -> None:
    """inspect.signature and help() show session_id and idempotency_key behind its own."""
    shown = inspect.signature(function)
    assert [*shown.parameters][-2:] == ["session_id", "idempotency_key"]
    assert shown.parameters["session_id"].default is None
    assert shown.parameters["idempotency_key"].default is None
    assert str(inspect.signature(function.__wrapped__)) in (
        "(text: 'str', *, loud: 'bool' = False) -> 'str'",
        "(text: 'str') -> 'str'",
        "(text: 'str') -> 'AsyncIterator[str]'",
        "(text: 'str') -> 'Iterator[str]'",
    )
    told = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert "session_id: str | None = None, idempotency_key: str | None = None" in told
    assert (function.__doc__ or "?") in told
    hints = typing.get_type_hints(function)
    assert (hints["session_id"], hints["idempotency_key"]) == (str | None, str | None)


def test_signatures_of_methods_and_of_runner_itself() -> None:
    """A method's signature is without its instance; Runner.run keeps all of its own."""
    for method in (Support().reply, Support.of_class, Support.of_nobody):
        assert [*inspect.signature(method).parameters] == ["text", "session_id", "idempotency_key"]
    assert next(iter(inspect.signature(Support.reply).parameters)) == "self"
    run = with_session_memory(Runner.run, memory=InMemorySessionMemory())
    names = [*inspect.signature(run).parameters]
    assert names[:2] == ["starting_agent", "input"]
    assert names[-2:] == ["session_id", "idempotency_key"]
    assert inspect.iscoroutinefunction(run)
    assert not inspect.iscoroutinefunction(
        with_session_memory(Runner.run_streamed, memory=InMemorySessionMemory())
    )


def test_signatures_that_name_the_session_already() -> None:
    """An id that has a parameter of its own is not shown twice; other keywords stay last."""

    def declared(text: str, session_id: str) -> str:
        return text

    def named(thread_id: str, text: str) -> str:
        return text

    def anything(*texts: str, **more: str) -> str:
        return ""

    def shown(function: Any, **options: Any) -> list[str]:
        decorated = with_session_memory(function, memory=":memory:", **options)
        return [*inspect.signature(decorated).parameters]

    assert shown(declared) == ["text", "session_id", "idempotency_key"]
    assert shown(named, session_id="thread_id") == ["thread_id", "text", "idempotency_key"]
    assert shown(named, session_id=lambda one, two: one)[-1] == "idempotency_key"
    assert shown(anything) == ["texts", "session_id", "idempotency_key", "more"]


# --- what calls functions --------------------------------------------------------------------


def test_fastapi_calls_it(tmp_path: Path) -> None:
    """As an endpoint and as a dependency, plain, async and with yield."""
    memory = SQLiteSessionMemory(tmp_path / "api.db")
    service = FastAPI()
    remembering = with_session_memory(memory=memory)

    @service.get("/chat")
    @remembering
    async def endpoint(text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    @service.get("/sync")
    @remembering
    def sync_endpoint(text: str) -> str:
        return str(asyncio.run(Runner.run(local_agent(), text)).final_output)

    @remembering
    async def answer(text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    @service.get("/depends")
    async def depends(found: str = Depends(answer)) -> str:
        return found

    @remembering
    async def opened(text: str) -> Any:
        yield str((await Runner.run(local_agent(), text)).final_output)

    @service.get("/yields")
    async def yields(found: str = Depends(opened)) -> str:
        return found

    client = TestClient(service)
    for path in ("/chat", "/sync", "/depends", "/yields"):
        session = {"session_id": path}
        assert client.get(path, params={"text": HI, **session}).json() == NICE
        keyed = {"text": NAME, "idempotency_key": "k", **session}
        assert client.get(path, params=keyed).json() == ALICE
        with pytest.raises(SessionIdRequired, match="needs a session_id"):
            client.get(path, params={"text": HI})
    asked = service.openapi()["paths"]["/chat"]["get"]["parameters"]
    assert {one["name"]: one["required"] for one in asked} == {
        "text": True,
        "session_id": False,
        "idempotency_key": False,
    }


def test_fastapi_with_the_id_in_the_path() -> None:
    """The parameter that the decorator names is the only one for the session."""
    service = FastAPI()

    @service.get("/{thread_id}")
    @with_session_memory(memory=":memory:", session_id="thread_id")
    async def endpoint(thread_id: str, text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    client = TestClient(service)
    assert client.get("/a", params={"text": HI}).json() == NICE
    assert client.get("/a", params={"text": NAME}).json() == ALICE


def test_typer_calls_it() -> None:
    """A command has the options --session-id and --idempotency-key."""
    application = typer.Typer()

    @application.command()
    @with_session_memory(memory=":memory:")
    def say(text: str) -> None:
        typer.echo(asyncio.run(Runner.run(local_agent(), text)).final_output)

    done = CliRunner().invoke(application, [HI, "--session-id", "s", "--idempotency-key", "k"])
    assert (done.exit_code, done.output.strip()) == (0, NICE)
    assert CliRunner().invoke(application, [NAME, "--session-id", "s"]).output.strip() == ALICE
    assert isinstance(CliRunner().invoke(application, [HI]).exception, SessionIdRequired)


async def test_pydantic_calls_it() -> None:
    """validate_call checks the arguments, the session id among them."""

    @with_session_memory(memory=InMemorySessionMemory())
    async def say(text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    checked = validate_call(say)
    assert await checked(HI, session_id="s") == NICE
    with pytest.raises(ValidationError):
        await checked(HI, session_id=5)
    with pytest.raises(SessionIdRequired):
        await checked(HI)


async def test_callers_that_bind_by_the_signature() -> None:
    """Task queues bind the arguments to the signature, store them, and call with them later."""

    @with_session_memory(memory=InMemorySessionMemory())
    async def say(text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    bound = inspect.signature(say).bind(HI, session_id="s", idempotency_key="k")
    assert await say(*bound.args, **bound.kwargs) == NICE


async def test_a_call_still_joins_a_scope_without_an_id() -> None:
    """A call inside a scope or a turn need not name the session."""
    memory = InMemorySessionMemory()

    @with_session_memory(memory=memory)
    async def say(text: str) -> str:
        return str((await Runner.run(local_agent(), text)).final_output)

    async with session_scope("s", memory=memory):
        await say(HI)
    assert await stored(memory) == "U A"
    with pytest.raises(SessionIdRequired, match=r"say\(\) needs a session_id"):
        await say(HI)


# --- for_session -----------------------------------------------------------------------------


async def test_for_session(each_memory: Any) -> None:
    """The function with its own parameters, for a session and maybe a request."""

    @with_session_memory(memory=each_memory)
    async def say(text: str, *, loud: bool = False) -> str:
        answer = str((await Runner.run(local_agent(), text)).final_output)
        return answer.upper() if loud else answer

    alice = say.for_session("s")
    assert await alice(HI) == NICE
    assert await alice(NAME, loud=True) == ALICE.upper()
    assert inspect.signature(alice) == inspect.signature(say.__wrapped__)
    assert inspect.iscoroutinefunction(alice)
    assert alice.__name__ == "say"
    await say.for_session("s", idempotency_key="k")(NAME)
    await say.for_session("s", "k2")(NAME)
    keys = [record.idempotency_key for record in await each_memory.turns("s")]
    assert keys == ["k2", "k", None, None]


async def test_for_session_of_methods() -> None:
    """A method keeps its instance or class."""
    remember = with_session_memory(memory=InMemorySessionMemory())

    class Service:
        name = "of the class"

        def __init__(self) -> None:
            self.name = "mine"

        @remember
        async def reply(self, text: str) -> str:
            return f"{self.name}: {(await Runner.run(local_agent(), text)).final_output}"

        @remember
        @classmethod
        async def of_class(cls, text: str) -> str:
            return f"{cls.name}: {(await Runner.run(local_agent(), text)).final_output}"

        @remember
        @staticmethod
        async def of_nobody(text: str) -> str:
            return str((await Runner.run(local_agent(), text)).final_output)

    assert await Service().reply.for_session("m")(HI) == f"mine: {NICE}"
    assert await Service.of_class.for_session("m")(NAME) == f"of the class: {ALICE}"
    assert await Service.of_nobody.for_session("m")(NAME) == ALICE
    service = Service()
    assert await Service.reply.for_session("m")(service, NAME) == f"mine: {ALICE}"


async def test_for_session_of_a_runner_method() -> None:
    """Runner.run for one session takes exactly what Runner.run takes."""
    run = with_session_memory(Runner.run, memory=InMemorySessionMemory())
    alice = run.for_session("s")
    await alice(local_agent(), HI)
    assert (await alice(local_agent(), NAME, max_turns=2)).final_output == ALICE


def test_for_session_checks_what_it_is_given() -> None:
    """A wrong id or key is an error at once, not at the call."""
    for wrong in (" ", None, 5):
        with pytest.raises(InvalidSessionId, match="session_id must"):
            chat.for_session(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="idempotency_key must"):
        chat.for_session("s", "")
    assert asyncio.iscoroutinefunction(functools.partial(chat.for_session("s")))
