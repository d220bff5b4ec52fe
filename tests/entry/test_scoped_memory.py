"""A scope as ``memory=``: runs go to the tenant's own sessions, by every form."""

from __future__ import annotations

import asyncio
import json
from contextvars import Context
from typing import Any

import pytest
from agents import Runner

from session_middleware import (
    InvalidOption,
    InvalidSessionId,
    SessionBusy,
    current_session,
    installed,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import assistant, scripted_agent
from tests.support.sessions import stored


def agent(*texts: str) -> Any:
    return scripted_agent(*map(assistant, texts or ("1",)))


async def test_every_form_takes_a_scope(each_memory: Any) -> None:
    """Decorated functions, wrapped methods, scopes, install and views, each under the full id."""
    scope = each_memory.scoped("tenant")
    seen: list[Any] = []

    @with_session_memory(memory=scope)
    async def chat(text: str) -> None:
        seen.append(current_session())
        await Runner.run(agent(), text)

    await chat("1", session_id="s")
    await with_session_memory(Runner.run, memory=scope)(agent(), "2", session_id="s")
    async with session_scope("s", memory=scope):
        await Runner.run(agent(), "3")
    with installed(memory=scope):
        await Runner.run(agent(), "4", session_id="s")
    await Runner.run(agent(), "5", session=scope.session("s"))
    assert seen == [("tenant:s", 1)]
    assert await each_memory.list_sessions() == ["tenant:s"]
    assert await stored(scope) == " ".join(["U A"] * 5)


async def test_forms_of_one_scope_join_each_other(each_memory: Any) -> None:
    """What is called inside a turn of the same session is part of it, and not scoped twice."""
    scope = each_memory.scoped("tenant")

    @with_session_memory(memory=scope)
    async def inner(text: str) -> None:
        await Runner.run(agent(), text)

    @with_session_memory(memory=scope)
    async def outer(text: str) -> None:
        await inner(text, session_id="s")
        await inner(text)
        await Runner.run(agent(), text, session_id="s")

    await outer("1", session_id="s")
    async with session_scope("s", memory=scope):
        await inner("2")
    assert await each_memory.list_sessions() == ["tenant:s"]
    assert [record.runs for record in await scope.turns("s")] == [1, 3]


async def test_equal_ids_of_two_tenants_do_not_meet(each_memory: Any) -> None:
    """Neither waits for the other, and neither sees the other's words."""
    scopes = [each_memory.scoped(tenant) for tenant in ("a", "b")]
    async with session_scope("s", memory=scopes[0]):
        async with session_scope("s", memory=scopes[1], on_busy="reject"):
            await Runner.run(agent(), "for b")
        with pytest.raises(SessionBusy):
            await asyncio.create_task(_rejected(scopes[0]))
        await Runner.run(agent(), "for a")
    assert [len(await scope.load_session("s")) for scope in scopes] == [2, 2]
    assert (await scopes[1].load_session("s"))[0]["content"] == "for b"


async def _rejected(scope: Any) -> None:
    async def enter() -> None:
        async with session_scope("s", memory=scope, on_busy="reject"):
            pass

    await asyncio.get_running_loop().create_task(enter(), context=Context())


async def test_an_id_must_fit_with_its_tenant(each_memory: Any) -> None:
    """The full id has the limits of every id."""
    scope = each_memory.scoped("tenant").scoped("team")
    run = with_session_memory(Runner.run, memory=scope)
    await run(agent(), "1", session_id="x" * 500)
    assert await each_memory.list_sessions() == ["tenant:team:" + "x" * 500]
    for wrong in ("x" * 501, "", " ", "a\n"):
        with pytest.raises(InvalidSessionId):
            await run(agent(), "1", session_id=wrong)


async def test_traces_group_by_the_full_id(each_memory: Any, sdk_traces: Any) -> None:
    """Two tenants' equal ids are two groups."""
    for tenant in ("a", "b"):
        run = with_session_memory(Runner.run, memory=each_memory.scoped(tenant))
        await run(agent(), "1", session_id="s")
    assert sdk_traces.group_ids == ["a:s", "b:s"]


@pytest.mark.parametrize("session_id", [3, "", "a\n"])
async def test_an_import_into_a_scope_names_a_line_that_is_wrong(
    each_memory: Any, session_id: Any
) -> None:
    """As an import into the whole memory does; nothing is stored."""
    scope = each_memory.scoped("tenant")
    await scope.append_to_session("s", [{"role": "user", "content": "1"}])
    lines = [line async for line in scope.export()]
    lines[1] = json.dumps({**json.loads(lines[1]), "session": session_id})
    await scope.delete("s")
    for memory in (scope, each_memory):
        with pytest.raises(InvalidOption, match="line 2 "):
            await memory.import_(lines)
    assert await each_memory.list_sessions() == []
