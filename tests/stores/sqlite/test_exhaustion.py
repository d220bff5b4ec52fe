"""Out of descriptors or threads: the first call says so, the next one tries again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import Faults, needs_compiler
from tests.support.programs import forking_programs
from tests.support.store_scripts import Scripts

pytestmark = needs_compiler

USE = """
import resource, sqlite3

usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)

def limit(spare):
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, most))

async def use(before, after=lambda: None):
    before()
    failures = []
    while not failures or failures[-1]:
        session_id = f"attempt {len(failures)}"
        try:
            async with asyncio.timeout(60):
                lease = (await acquire(session_id)).lease
                await memory.append_items(lease, 1, 0, [user("1")])
                await memory.end_turn(lease, completed())
                assert await memory.load_session(session_id) == [user("1")]
        except MemoryUnavailable as error:
            assert isinstance(error.__cause__, (OSError, RuntimeError, sqlite3.Error)), error
            failures.append(type(error.__cause__).__name__)
            after()
        else:
            failures.append("")
    say(" ".join(failures))
"""


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "chat.db", tmp_path)


@pytest.fixture
def scripts(tmp_path: Path, faults: Faults) -> Iterator[Scripts]:
    with Scripts(tmp_path / "chat.db", faults.environment) as made:
        yield made


@pytest.mark.parametrize("spare", range(14))
def test_a_first_use_without_descriptors_is_unavailable_and_the_next_succeeds(scripts, spare):
    """However many descriptors are left, nothing hangs, and all is well once there are more."""
    out = scripts.run(
        f"{USE}"
        "usually = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))\n"
        f"asyncio.run(use(lambda: limit({spare}), usually))"
    )
    failures = out.split()
    assert len(failures) <= 1
    assert failures or spare > 3


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_thread_that_cannot_start_is_unavailable_and_the_next_call_succeeds(scripts, faults, nth):
    """Neither the background loop nor a connection that cannot have a thread hangs anybody."""
    faults.arm("thread", nth)
    out = scripts.run(f"{USE}asyncio.run(use(lambda: None))")
    assert out.split() == ["RuntimeError"]
    assert faults.counts["thread"] == 4


def test_no_threads_for_a_while(scripts, faults):
    """Call after call is unavailable while no thread can start, and then all is well."""
    faults.arm("thread", 1, times=5)
    out = scripts.run(f"{USE}asyncio.run(use(lambda: None))")
    assert out.split() == ["RuntimeError"] * 5


def test_code_without_a_loop_is_told_that_no_thread_can_start(scripts, faults):
    """Synchronous code, which waits on the background loop, gets MemoryUnavailable as well."""
    faults.arm("thread", 1, times=2)
    out = scripts.run(
        """
        from session_middleware import _background
        for _ in range(2):
            try:
                _background.wait(memory.append_to_session("a", [user("1")]))
            except MemoryUnavailable as error:
                say(type(error.__cause__).__name__)
        _background.wait(memory.cleanup())
        """
    )
    assert out.split() == ["RuntimeError"]


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """Faults, and programs that meet them."""
    folder = tmp_path_factory.mktemp("limited")
    faults = Faults(folder / "chat.db", folder)
    with forking_programs(faults.environment) as programs:
        yield faults, programs


@pytest.mark.parametrize("kind", ["run", "run_sync"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_may_forget_that_no_thread_can_start(limited, tmp_path, kind, nth):
    """With on_unavailable="forget" a run goes on without memory, and the next one has it."""
    faults, programs = limited
    faults.arm("thread", nth, times=2)
    script = f"""
import asyncio, sys
from agents import Runner, set_tracing_disabled
from session_middleware import SQLiteSessionMemory, with_session_memory
from session_middleware.testing.models import local_agent

set_tracing_disabled(True)
memory = SQLiteSessionMemory(sys.argv[1])
run = with_session_memory(Runner.{kind}, memory=memory, on_unavailable="forget")

async def in_a_loop():
    return await run(local_agent(), "Hi", session_id="s")

for _ in range(3):
    if {kind!r} == "run":
        result = asyncio.run(in_a_loop())
    else:
        result = run(local_agent(), "Hi", session_id="s")
    print(result.final_output)
"""
    done = programs.run("-c", script, str(tmp_path / "chat.db"))
    faults.disarm()
    assert done.stderr == ""
    answers = done.stdout.splitlines()
    assert answers[0] == "I have heard 1 message from you."
    assert len(answers) == 3
