"""The examples in the docstrings of public things run, whether written with ``>>>`` or not."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import agents
import pytest
from agents import Agent, RunHooks, Runner, SQLiteSession, function_tool
from agents.tool_context import ToolContext

import session_middleware
from session_middleware import uninstall
from session_middleware.testing import LocalModel

MODULES = ["session_middleware", "session_middleware.telemetry", "session_middleware.testing"]
NEED_A_SERVICE = {"busy_session", "WorkerProcesses"}
"""Their examples are of somebody's service; docs/guides/testing.md has them with one."""


def public(module: ModuleType) -> Iterator[Any]:
    """The names that a module exports, and the methods of its classes."""
    for name in sorted({*module.__all__, *getattr(module, "_ON_DEMAND", ())}):
        value = getattr(module, name)
        yield value
        if inspect.isclass(value):
            yield from (
                method
                for each, method in inspect.getmembers(value, callable)
                if not each.startswith("_") and inspect.isroutine(method)
            )


def examples() -> dict[str, str]:
    """The source of each example, by the name of what it is of."""
    found = {}
    for module in map(import_module, MODULES):
        for value in public(module):
            doc, name = inspect.getdoc(value) or "", getattr(value, "__qualname__", "")
            block = re.search(r"^Examples?:\n((?: {4}.*\n?|\n)+)", doc, re.MULTILINE)
            if ">>>" in doc:
                found[name] = "".join(
                    each.source for each in doctest.DocTestParser().get_examples(doc)
                )
            elif block is not None and name not in NEED_A_SERVICE:
                found[name] = textwrap.dedent(block[1])
    return found


@pytest.fixture
async def names(memory: Any) -> dict[str, Any]:
    """What the examples take for granted."""

    @function_tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    await Runner.run(
        Agent(name="Assistant", model=LocalModel()), "Hi", session=SQLiteSession("a", "old.db")
    )
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    await memory.save_session("user_alice", said)
    every = {name: getattr(session_middleware, name) for name in session_middleware.__all__}
    testing = vars(import_module("session_middleware.testing"))
    return {
        **every,
        **{name: testing[name] for name in testing["__all__"]},
        **{"RedisSessionMemory": session_middleware.RedisSessionMemory, "memory": memory},
        **{"agent": Agent(name="Assistant", model=LocalModel()), "add": add},
        **{"Runner": Runner, "Agent": Agent, "RunHooks": RunHooks, "agents": agents},
        **{"function_tool": function_tool, "ToolContext": ToolContext},
    }


@pytest.mark.parametrize("name", examples())
def test_example(name: str, names: dict[str, Any]) -> None:
    """Each does what it shows, without an error."""
    code = compile(examples()[name], name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)
    finally:
        uninstall()


def test_there_are_examples() -> None:
    """What people use first has one."""
    shown = examples()
    for name in ("with_session_memory", "session_scope", "install", "SQLiteSessionMemory"):
        assert name in shown
