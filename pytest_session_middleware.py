"""The fixtures of ``session_middleware.testing``, which pytest finds by itself.

A module beside the package, because pytest imports it in every run where the package is
installed: the package, and with it the Agents SDK, is imported when a test asks for a fixture,
and by nobody else's tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from session_middleware import TurnMemory
    from session_middleware.testing import LeaseClock, Provider, WorkerProcesses
    from session_middleware.testing.memories import MemoriesOfTest


def _postgres_url() -> str | None:
    return os.environ.get("SESSION_MIDDLEWARE_TEST_POSTGRES_URL")


def _redis_url() -> str | None:
    return os.environ.get("SESSION_MIDDLEWARE_TEST_REDIS_URL")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of ``each_session_memory`` on every backend that can be had."""
    if "each_session_memory" not in metafunc.fixturenames:
        return
    backends = ["in_memory", "sqlite"]
    backends += ["postgres"] if _postgres_url() else []
    backends += ["redis"] if _redis_url() else []
    metafunc.parametrize("each_session_memory", backends, indirect=True)


@pytest.fixture
def _memories_of_test(tmp_path: Path) -> Iterator[MemoriesOfTest]:
    from session_middleware.testing.memories import MemoriesOfTest

    with MemoriesOfTest(tmp_path) as memories:
        yield memories


@pytest.fixture
def session_memory(_memories_of_test: MemoriesOfTest) -> TurnMemory:
    """A memory on a file of the test's own, which ``memory=True`` means during the test.

    Functions that were decorated before the test use it as well, and processes that the test
    starts use its file. No test with this fixture writes ./agent_sessions.db.
    """
    return _memories_of_test.memory


@pytest.fixture
def each_session_memory(
    request: pytest.FixtureRequest, _memories_of_test: MemoriesOfTest
) -> TurnMemory:
    """Like ``session_memory``, and the test runs once for every backend.

    In memory, on a file, and on PostgreSQL and Redis where SESSION_MIDDLEWARE_TEST_POSTGRES_URL
    and SESSION_MIDDLEWARE_TEST_REDIS_URL name a server.
    """
    if request.param == "sqlite":
        return _memories_of_test.memory
    if request.param == "in_memory":
        return _memories_of_test.in_memory()
    memory: TurnMemory = request.getfixturevalue(f"{request.param}_session_memory")
    return memory


@pytest.fixture
def postgres_session_memory(_memories_of_test: MemoriesOfTest) -> TurnMemory:
    """Like ``session_memory``, in a schema of its own, which goes with the test.

    SESSION_MIDDLEWARE_TEST_POSTGRES_URL names the database; without it the test is skipped.
    """
    url = _postgres_url()
    if not url:
        pytest.skip("SESSION_MIDDLEWARE_TEST_POSTGRES_URL names no server")
    return _memories_of_test.on_postgres(url)


@pytest.fixture
def redis_session_memory(_memories_of_test: MemoriesOfTest) -> TurnMemory:
    """Like ``session_memory``, under a key prefix of its own, whose keys go with the test.

    SESSION_MIDDLEWARE_TEST_REDIS_URL names the server; without it the test is skipped.
    """
    url = _redis_url()
    if not url:
        pytest.skip("SESSION_MIDDLEWARE_TEST_REDIS_URL names no server")
    return _memories_of_test.on_redis(url)


@pytest.fixture
def lease_clock(_memories_of_test: MemoriesOfTest) -> LeaseClock:
    """A clock for the leases in the memories of the test: ``await lease_clock.advance(60)``."""
    return _memories_of_test.clock


@pytest.fixture
def scripted_agent(_memories_of_test: MemoriesOfTest) -> Callable[..., Any]:
    """``scripted_agent(*steps, **agent_options)``: an agent whose model takes these steps."""
    from session_middleware.testing import scripted_agent

    return scripted_agent


@pytest.fixture
def local_agent(_memories_of_test: MemoriesOfTest) -> Callable[..., Any]:
    """``local_agent(**agent_options)``: an agent whose model answers from its history alone."""
    from session_middleware.testing import local_agent

    return local_agent


@pytest.fixture
def session_provider(_memories_of_test: MemoriesOfTest) -> Iterator[Provider]:
    """A model provider on 127.0.0.1 that refuses invalid histories, for the real OpenAI client."""
    from session_middleware.testing import local_provider

    with local_provider() as provider:
        yield provider


@pytest.fixture
def fail_at(_memories_of_test: MemoriesOfTest) -> Callable[..., Any]:
    """``fail_at(memory, n, operation)``: let the n-th operation of a memory fail, once."""
    from session_middleware.testing import fail_at

    return fail_at


@pytest.fixture
def worker_process(_memories_of_test: MemoriesOfTest) -> Iterator[WorkerProcesses]:
    """``worker_process(function, *args)``: run a function in a process of its own, to its end.

    ``worker_process.start(function, *args)`` does not wait for it. None outlives the test.
    """
    from session_middleware.testing import WorkerProcesses

    with WorkerProcesses() as workers:
        yield workers
