"""What a forked child begins anew: one list, in one order."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

import session_middleware
from session_middleware import _fork
from session_middleware._fork import Step


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_begins_anew_in_the_order_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps pause in the opposite order, and begin anew in theirs, however they were named."""
    monkeypatch.setattr(_fork, "_steps", {})
    seen: list[str] = []
    for step in (Step.SESSION_QUEUES, Step.BACKGROUND_LOOP, Step.CONNECTIONS):
        _fork.at_fork(
            step,
            lambda name=step.name: seen.append(f"anew {name}"),
            before=lambda name=step.name: seen.append(f"pause {name}"),
            in_parent=lambda name=step.name: seen.append(f"resume {name}"),
        )
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, "\n".join(seen).encode())
        os._exit(0)
    os.waitpid(child, 0)
    in_child = os.read(reader, 10_000).decode().splitlines()
    os.close(reader)
    os.close(writer)
    names = ["BACKGROUND_LOOP", "CONNECTIONS", "SESSION_QUEUES"]
    paused = [f"pause {name}" for name in reversed(names)]
    assert in_child == paused + [f"anew {name}" for name in names]
    assert seen == paused + [f"resume {name}" for name in names]


class Holder:
    """Something with a connection, as far as a fork is concerned."""

    def __init__(self) -> None:
        self.connection: object = object()

    def forget(self) -> None:
        self.connection = None


def test_members_forget_what_is_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that still lives forgets, in its step, and what it had is not closed in the child."""
    monkeypatch.setattr(_fork, "_steps", {})
    monkeypatch.setattr(_fork, "_inherited", [])
    members = _fork.forgetting_at_fork(
        Step.CONNECTIONS, Holder.forget, keeps=lambda holder: holder.connection
    )
    holder, gone = Holder(), Holder()
    members.add(holder)
    members.add(gone)
    of_parent = holder.connection
    del gone
    _fork._in_child()
    assert holder.connection is None
    assert _fork._inherited == [of_parent]


def test_every_step_has_a_module() -> None:
    """Importing the package and its stores names all steps."""
    for store in ("flat", "in_memory", "sqlite"):
        import_module(f"session_middleware.stores.{store}.memory")
    assert set(_fork._steps) == set(Step)


def test_only_one_module_hears_of_forks() -> None:
    """No other module asks the interpreter to be called at a fork."""
    package = Path(session_middleware.__file__).parent
    asking = [path.name for path in package.rglob("*.py") if "register_at_fork" in path.read_text()]
    assert asking == ["_fork.py"]
