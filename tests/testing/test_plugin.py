"""The plugin in suites of other people, each run by pytest in a process of its own.

Most of these are forked from one that has imported the SDK; two whose subject is an import, and one
that starts workers, are interpreters.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pytest

import pytest_session_middleware
from tests.support.postgres import make_database
from tests.support.programs import Programs

SUITE = """
import asyncio
import os
import pytest
from pathlib import Path
from agents import Runner
from session_middleware import with_session_memory
from session_middleware.testing import assert_session, local_agent

@with_session_memory  # memory=True, decorated before any test
async def chat(text):
    return (await Runner.run(local_agent(), text)).final_output
"""

OTHERS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # that one takes a second
STRICT = ("-W", "error", "-p", "no:asyncio")  # that plugin warns of its own options


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of somebody else's: nothing of this project's configuration or environment."""
    for name in list(os.environ):
        if name.startswith(("SESSION_MIDDLEWARE", "COV_", "PYTEST_ADDOPTS")):
            monkeypatch.delenv(name)
    return pytester


def run(programs: Programs, suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the suite."""
    # Nothing of what was imported before pytest came is anything of ours.
    imported = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
    began = time.perf_counter()
    command = ("-m", "pytest", f"--basetemp={suite.path}/temporary", *OTHERS, *arguments, *imported)
    done = programs.run(*command, cwd=suite.path, timeout=100)
    print(done.stdout, done.stderr)
    lines = (done.stdout.splitlines(), done.stderr.splitlines())
    return pytest.RunResult(done.returncode, *lines, time.perf_counter() - began)


@pytest.fixture
def passes(programs: Programs, suite: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run the suite with some arguments, and compare its outcomes."""

    def check(*arguments: str, **counts: int) -> pytest.RunResult:
        result = run(programs, suite, *arguments)
        result.assert_outcomes(**counts)
        return result

    return check


def test_pytest_finds_it() -> None:
    """The entry point leads to the module beside the package."""
    (found,) = entry_points(group="pytest11", name="session_middleware")
    assert found.load() is pytest_session_middleware


def test_a_suite_that_does_not_use_it(suite: pytest.Pytester) -> None:
    """Neither the package nor the Agents SDK is imported, and no fixture comes by itself."""
    suite.makepyfile(
        """
        import sys

        def test_nothing(request):
            assert "session_middleware" not in sys.modules
            assert "agents" not in sys.modules
            own = {"_memories_of_test", "session_memory", "local_agent"}
            assert own.isdisjoint(request.fixturenames)
        """
    )
    suite.runpytest_subprocess(*OTHERS, *STRICT).assert_outcomes(passed=1)


def test_memory_true_is_a_memory_of_the_test(suite: pytest.Pytester) -> None:
    """Two tests with one session id do not see each other, and no agent_sessions.db is written."""
    suite.makepyfile(
        SUITE
        + """
@pytest.mark.parametrize("name", ["Alice", "Bob"])
def test_it(session_memory, name):
    asyncio.run(chat(f"I'm {name}", session_id="s"))
    assert asyncio.run(chat("What's my name?", session_id="s")) == f"Your name is {name}."
    asyncio.run(assert_session(session_memory, "s", letters="U A U A"))
    assert not Path("agent_sessions.db").exists()

def test_other_forms(session_memory):
    from session_middleware import install, session_scope, uninstall

    async def forms():
        async with session_scope("scope"):
            await Runner.run(local_agent(), "Hi")
        install()
        await Runner.run(local_agent(), "Hi", session_id="installed")
        uninstall()
        install(memory=lambda agent: True)
        await Runner.run(local_agent(), "Hi", session_id="chosen")
        uninstall()
        return sorted(await session_memory.list_sessions())

    assert asyncio.run(forms()) == ["chosen", "installed", "scope"]

def test_other_processes(session_memory, worker_process):
    worker_process(say_hello).check()
    asyncio.run(assert_session(session_memory, "other", letters="U A"))

async def say_hello():
    await chat("Hi", session_id="other")

def test_afterwards():
    assert "SESSION_MIDDLEWARE_MEMORY" not in os.environ
    asyncio.run(chat("Hi", session_id="s"))
    assert Path("agent_sessions.db").exists()
"""
    )
    suite.runpytest_subprocess(*OTHERS, *STRICT).assert_outcomes(passed=5)


def test_a_whole_suite_with_one_line(suite: pytest.Pytester, passes: Any) -> None:
    """pytest's own option usefixtures isolates tests that name no fixture."""
    suite.makepyfile(
        SUITE
        + """
def test_it():
    asyncio.run(chat("Hi", session_id="s"))

def test_again():
    assert asyncio.run(chat("What's my name?", session_id="s")) == "You have not told me your name."
"""
    )
    suite.makeini("[pytest]\nusefixtures = session_memory")
    passes(passed=2)
    assert not (suite.path / "agent_sessions.db").exists()


def test_any_fixture_isolates(suite: pytest.Pytester, passes: Any) -> None:
    """A test that asks for any fixture of the plugin writes no agent_sessions.db."""
    for fixture in ("scripted_agent", "local_agent", "fail_at", "lease_clock"):
        test = (
            SUITE
            + f"""
def test_it({fixture}):
    asyncio.run(chat("Hi", session_id="s"))
    assert not Path("agent_sessions.db").exists()
"""
        )
        suite.makepyfile(**{f"test_{fixture}": test})
    passes(passed=4)
    assert not (suite.path / "agent_sessions.db").exists()


BACKENDS = """
async def test_it(each_session_memory):
    await chat("I'm Alice", session_id="s")
    held = await assert_session(each_session_memory, "s", letters="U A", states=["completed"])

async def test_once_more(each_session_memory):
    assert await chat("What's my name?", session_id="s") == "You have not told me your name."
"""


def test_each_backend_without_servers(suite: pytest.Pytester, passes: Any) -> None:
    """In memory and on a file; tests of a server are skipped with the variable that names it."""
    suite.makepyfile(
        SUITE
        + BACKENDS
        + """
def test_servers(postgres_session_memory, redis_session_memory):
    raise AssertionError
"""
    )
    suite.makeini("[pytest]\nasyncio_mode = auto")
    result = passes("-rs", passed=4, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*SESSION_MIDDLEWARE_TEST_POSTGRES_URL names no server"])


async def test_each_backend_with_servers(
    suite: pytest.Pytester,
    passes: Any,
    monkeypatch: pytest.MonkeyPatch,
    postgres_server_url: str,
    redis_url: str,
) -> None:
    """Every test has a schema or a prefix of its own, and leaves nothing on the servers."""
    import asyncpg
    import redis

    url = await make_database(postgres_server_url)
    monkeypatch.setenv("SESSION_MIDDLEWARE_TEST_POSTGRES_URL", url)
    monkeypatch.setenv("SESSION_MIDDLEWARE_TEST_REDIS_URL", redis_url)
    suite.makepyfile(
        SUITE
        + BACKENDS
        + """
from session_middleware import SessionBusy
from session_middleware.stores.records import AcquireRequest
from datetime import UTC, datetime

async def leases_end(memory, lease_clock):
    def acquire():
        return memory.acquire(AcquireRequest("s", datetime.now(UTC)))

    await acquire()
    await lease_clock.advance(20)
    with pytest.raises(SessionBusy):
        await acquire()
    await lease_clock.advance(20)
    await acquire()
    await memory.cleanup()  # a test may close its memory itself

async def test_postgres(postgres_session_memory, lease_clock):
    await leases_end(postgres_session_memory, lease_clock)

async def test_redis(redis_session_memory, lease_clock):
    await leases_end(redis_session_memory, lease_clock)

def test_other_processes(postgres_session_memory, worker_process):
    worker_process(say_hello).check()
    asyncio.run(assert_session(postgres_session_memory, "other", letters="U A"))

async def say_hello():
    await chat("Hi", session_id="other")
"""
    )
    suite.makeini("[pytest]\nasyncio_mode = auto")
    with redis.Redis.from_url(redis_url) as client:
        before = client.dbsize()
        passes(passed=11)
        assert client.dbsize() == before
    connection = await asyncpg.connect(url)
    left = await connection.fetch("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'test_%'")
    await connection.close()
    assert left == []


def test_the_clock_is_not_for_memories_whose_leases_never_end(
    suite: pytest.Pytester, passes: Any
) -> None:
    """It says so, instead of doing nothing."""
    suite.makepyfile(
        SUITE
        + """
from session_middleware import InvalidOption

@pytest.mark.parametrize("seconds", [0, -1, True, "60"])
def test_seconds(lease_clock, seconds):
    with pytest.raises(InvalidOption, match="seconds must be a positive number, got"):
        asyncio.run(lease_clock.advance(seconds))

def test_it(each_session_memory, lease_clock):
    if each_session_memory.backend == "memory":
        with pytest.raises(InvalidOption, match="leases of InMemorySessionMemory never end"):
            asyncio.run(lease_clock.advance(60))
    else:
        asyncio.run(lease_clock.advance(60))
"""
    )
    passes(passed=6)


def test_the_other_fixtures(programs: Programs, suite: pytest.Pytester) -> None:
    """A provider, agents, faults and a busy session, in one test each."""
    suite.makepyfile(
        SUITE
        + """
from session_middleware import MemoryUnavailable, SessionBusy, session_scope
from session_middleware.testing import assert_no_session, assistant, busy_session

def test_provider(session_provider, session_memory):
    agent = session_provider.agent()

    @with_session_memory
    async def ask(text):
        return (await Runner.run(agent, text)).final_output

    async def talk():
        await ask("I'm Alice", session_id="s")
        return await ask("What's my name?", session_id="s")

    assert asyncio.run(talk()) == "Your name is Alice."
    assert len(session_provider.requests) == 2

def answer(agent, text):
    return asyncio.run(Runner.run(agent, text)).final_output

def test_agents(scripted_agent, local_agent):
    assert answer(scripted_agent(assistant("Hello")), "Hi") == "Hello"
    assert answer(local_agent(), "I'm Bob") == "Nice to meet you, Bob."

def test_fault(fail_at, session_memory):
    with fail_at(session_memory, operation="acquire"), pytest.raises(MemoryUnavailable):
        asyncio.run(chat("Hi", session_id="s"))
    asyncio.run(assert_no_session(session_memory, "s"))

def test_busy(each_session_memory):
    async def scenario():
        async with busy_session(each_session_memory, "s"):
            with pytest.raises(SessionBusy):
                async with session_scope("s", on_busy="reject"):
                    pass
        await assert_no_session(each_session_memory, "s")
        await chat("Hi", session_id="s")
        await assert_session(each_session_memory, "s", states=["completed"])

    asyncio.run(scenario())

def test_a_message(session_memory):
    asyncio.run(chat("Hi", session_id="s"))
    asyncio.run(assert_session(session_memory, "s", texts=["Hello"]))
"""
    )
    result = run(programs, suite)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        ["E *AssertionError: other texts than expected", "E *  expected *'Hello'*", "E *    U  Hi"]
    )
    result.stdout.no_fnmatch_line("*assertions.py:*: AssertionError*")


def test_the_fixtures_of_a_suite_go_first(suite: pytest.Pytester, passes: Any) -> None:
    """A fixture of the same name in a suite is the one that its tests get."""
    suite.makepyfile(
        """
        import pytest

        @pytest.fixture
        def session_memory():
            return "mine"

        def test_it(session_memory):
            assert session_memory == "mine"
        """
    )
    passes(passed=1)


def test_its_import_is_cheap() -> None:
    """The plugin imports pytest and what pytest imports; a run without it is as slow."""
    import subprocess

    code = (
        "import pytest, sys; before = set(sys.modules); import pytest_session_middleware;"
        "print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'pytest_session_middleware'}\n"
