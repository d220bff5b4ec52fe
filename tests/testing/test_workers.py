"""Functions in processes of their own: their outcome, their words, and that none is left behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from session_middleware.testing import WorkerProcesses


def says(*words: str) -> None:
    print(*words)


async def waits() -> None:
    print("waiting", flush=True)
    await asyncio.Event().wait()


def raises() -> None:
    raise ValueError("a fault of the worker's")


def test_what_it_prints() -> None:
    """Arguments go in; the exit code and what was printed come out."""
    with WorkerProcesses() as worker_process:
        outcome = worker_process(says, "hello", "there").check()
    assert (outcome.exit_code, outcome.output, outcome.errors) == (0, "hello there\n", "")
    assert not outcome.killed


def test_a_worker_that_raises() -> None:
    """``check`` shows its traceback."""
    with WorkerProcesses() as worker_process:
        outcome = worker_process(raises)
        assert not outcome.killed
        with pytest.raises(AssertionError, match=r"ended with 1:\n(.|\n)*a fault of the worker's"):
            outcome.check()


def test_a_worker_at_work() -> None:
    """It is waited for by what it prints, and killed; one that is left is killed at the end."""
    with WorkerProcesses() as worker_process:
        worker = worker_process.start(waits)
        worker.wait_for("waiting")
        assert worker.kill().killed
        with pytest.raises(AssertionError, match="did not print 'more'; it printed 'waiting"):
            worker.wait_for("more")
        left = worker_process.start(waits)
        left.wait_for("waiting")
    assert left.process.returncode is not None


def test_a_worker_that_is_late() -> None:
    """It is killed, and the test is told."""
    with (
        WorkerProcesses() as worker_process,
        pytest.raises(AssertionError, match=r"ran longer than 0\.1 s"),
    ):
        worker_process(time.sleep, 60, timeout=0.1)


@pytest.mark.parametrize("function", [lambda: None, WorkerProcesses.start])
def test_a_function_that_no_process_can_find(function: Any) -> None:
    """It must be at the top level of a module."""
    with (
        WorkerProcesses() as worker_process,
        pytest.raises(TypeError, match="must be at the top level of its module, got"),
    ):
        worker_process(function)
