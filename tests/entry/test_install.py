"""install, and a Runner that is untouched where no session is meant."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import pytest
from agents import (
    AgentHooks,
    RunConfig,
    RunHooks,
    Runner,
    SQLiteSession,
)
from agents.testing import ModelStep

from session_middleware import (
    ConflictingMemory,
    InMemorySessionMemory,
    InvalidOption,
    InvalidSessionId,
    SessionIdRequired,
    SessionRunHooks,
    current_session,
    install,
    installed,
    session_scope,
    uninstall,
    with_session_memory,
)
from session_middleware.testing.models import assistant, call, local_agent, model_of, scripted_agent
from tests.support.sessions import (
    METHODS,
    carried_out,
    consumed,
    letters,
    run_by,
    states,
    stored,
    tool,
)

both_ways = pytest.mark.parametrize("method", METHODS)


# --- install -------------------------------------------------------------------------------


@both_ways
async def test_installed_runs_take_a_session_id(each_memory: Any, method: str) -> None:
    """Every Runner method takes session_id and idempotency_key while install() is in force."""
    with installed(memory=each_memory):
        await run_by(method, local_agent(), "Hi, I'm Alice", session_id="s", idempotency_key="k")
        result = await run_by(method, local_agent(), "What's my name?", session_id="s")
    assert result.final_output == "Your name is Alice."
    (_, first) = await each_memory.turns("s")
    assert first.idempotency_key == "k"


def test_installed_run_sync(each_memory: Any, do: Any) -> None:
    """run_sync too."""
    with installed(memory=each_memory):
        Runner.run_sync(local_agent(), "Hi, I'm Alice", session_id="s")
        result = Runner.run_sync(local_agent(), "What's my name?", session_id="s")
    assert result.final_output == "Your name is Alice."
    assert do(stored(each_memory)) == "U A U A"


@pytest.mark.parametrize("method", ["run", "run_sync", "run_streamed"])
def test_not_installed_the_keyword_is_the_sdks_error(do: Any, method: str) -> None:
    """Without install and scope, session_id reaches the SDK, which does not know it."""
    with_session_memory(Runner.run, memory=InMemorySessionMemory())  # Runner is wrapped

    def go() -> None:
        made = getattr(Runner, method)(local_agent(), "Hi", session_id="s")
        do(made)

    with pytest.raises(TypeError, match="session_id"):
        go()


def test_install_rules() -> None:
    """Twice the same is once, other settings are refused, and uninstall may come twice."""
    memory = InMemorySessionMemory()
    install(memory=memory)
    install(memory=memory)
    with pytest.raises(InvalidOption, match=r"uninstall\(\)"):
        install(memory=memory, on_busy="reject")
    uninstall()
    uninstall()
    with pytest.raises(TypeError, match="session_id"):
        Runner.run_sync(local_agent(), "Hi", session_id="s")


async def test_installed_is_restored(each_memory: Any) -> None:
    """After an installed() block what was installed before is back, after an error too."""
    outer = InMemorySessionMemory()
    with installed(memory=outer):
        with installed(memory=each_memory):
            await Runner.run(local_agent(), "Hi", session_id="s")
        with pytest.raises(LookupError), installed(memory=each_memory):
            raise LookupError
        await Runner.run(local_agent(), "Hi", session_id="s")
    assert await stored(outer) == await stored(each_memory) == "U A"


def test_a_wrong_option_installs_nothing() -> None:
    """What install refuses leaves everything as it was."""
    with pytest.raises(InvalidOption, match="got 'nonsense'"), installed(nonsense=1):  # type: ignore[call-arg]
        raise AssertionError
    with pytest.raises(TypeError, match="session_id"):
        Runner.run_sync(local_agent(), "Hi", session_id="s")


async def test_a_memory_per_starting_agent(each_memory: Any) -> None:
    """memory= may be a function of the agent a run starts with; None: untouched."""
    plain, remembering = local_agent(), local_agent()
    with installed(memory=lambda agent: each_memory if agent is remembering else None):
        await Runner.run(remembering, "Hi", session_id="s")
        await Runner.run(plain, "Hi", session_id="s")
    assert await stored(each_memory) == "U A"


async def test_without_an_id_a_run_is_untouched_or_refused(each_memory: Any) -> None:
    """Installed, no id or None: untouched; with require_session_id both are an error."""
    with installed(memory=each_memory):
        await Runner.run(local_agent(), "Hi")
        await Runner.run(local_agent(), "Hi", session_id=None)
    with installed(memory=each_memory, require_session_id=True):
        with pytest.raises(SessionIdRequired, match="session_id="):
            await Runner.run(local_agent(), "Hi")
        with pytest.raises(SessionIdRequired, match="session_id="):
            await Runner.run(local_agent(), "Hi", session_id=None)
    with pytest.raises(InvalidSessionId), installed(memory=each_memory):
        await Runner.run(local_agent(), "Hi", session_id=" ")
    assert await each_memory.list_sessions() == []


@both_ways
async def test_switched_off(each_memory: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SESSION_MIDDLEWARE_DISABLED=1: ids and views are accepted and ignored everywhere."""
    monkeypatch.setenv("SESSION_MIDDLEWARE_DISABLED", "1")
    await carried_out(method, local_agent(), "Hi", each_memory)
    with installed(memory=each_memory):
        await run_by(method, local_agent(), "Hi", session_id="s")
    async with session_scope("s", memory=each_memory):
        await run_by(method, local_agent(), "Hi")
        assert current_session() is None
    await run_by(method, local_agent(), "Hi", session=each_memory.session("s"))
    assert await each_memory.list_sessions() == []


async def test_the_default_memory_is_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """memory=True is what SESSION_MIDDLEWARE_MEMORY says."""
    monkeypatch.setenv("SESSION_MIDDLEWARE_MEMORY", f"sqlite:///{tmp_path}/named.db")
    chat = with_session_memory(Runner.run)
    await chat(local_agent(), "Hi", session_id="s")
    assert (tmp_path / "named.db").exists()
    assert not (tmp_path / "agent_sessions.db").exists()


async def test_the_patch_goes_when_nothing_needs_it() -> None:
    """Runner's methods are put back when the last scope or installation ends, and no memory is."""
    from session_middleware import _sdk
    from session_middleware._entry import intercept

    intercept._needs.clear()
    intercept.no_longer_needed(object())
    before = {name: inspect.getattr_static(Runner, name) for name in _sdk.RUNNER_METHODS}
    memory = InMemorySessionMemory()
    with installed(memory=memory):
        async with session_scope("s", memory=memory):
            pass
        assert _sdk.patched()
        assert inspect.signature(Runner.run) == inspect.signature(
            before["run"].__get__(None, Runner)
        )
    assert _sdk.patched()
    del memory
    gc.collect()
    with installed(memory=None):
        assert _sdk.patched()
    assert not _sdk.patched()
    assert all(inspect.getattr_static(Runner, name) is was for name, was in before.items())


# --- nothing changes without a session -----------------------------------------------------


async def observed(method: str) -> dict[str, Any]:
    """Everything a run lets its caller see."""
    agent = scripted_agent(
        call("look", call_id="c1"),
        ModelStep(output=assistant("42").output),
        tools=[tool("look", lambda: "seen")],
    )
    session = SQLiteSession("theirs")
    made = getattr(Runner, method)(
        agent, "What?", session=session, run_config=RunConfig(workflow_name="mine"), max_turns=5
    )
    events = []
    if method == "run_streamed":
        async for event in made.stream_events():
            events.append((event.type, getattr(event, "name", None)))
        result = made
    else:
        result = await made
    items = await session.get_items()
    session.close()
    return {
        "kind": type(result).__name__,
        "output": result.final_output,
        "items": [letters([item]) for item in result.to_input_list()],
        "stored": letters(items),
        "events": events,
        "seen": [letters(seen.input) for seen in model_of(agent).calls],
    }


def shape(traces: Any) -> list[Any]:
    """What the SDK traced, without what differs from run to run."""
    return [
        [
            (trace["workflow_name"], trace["group_id"], trace["metadata"])
            for trace in traces.started
        ],
        [(span["span_data"]["type"], span["span_data"].get("name")) for span in traces.spans],
    ]


@both_ways
async def test_transparent_without_a_session(
    each_memory: Any, method: str, sdk_traces: Any
) -> None:
    """Installed, but without a session id: results, events, items and traces are the same."""
    without = await observed(method)
    traced = shape(sdk_traces)
    for recorded in (sdk_traces.started, sdk_traces.ended, sdk_traces.spans):
        recorded.clear()
    with installed(memory=each_memory):
        inside = await observed(method)
    assert inside == without
    assert shape(sdk_traces) == traced
    assert await each_memory.list_sessions() == []


async def test_the_sdks_own_errors_stay() -> None:
    """What the SDK refuses, it refuses in its own words, installed or not."""

    async def refusal(**arguments: Any) -> tuple[type, str]:
        try:
            await Runner.run(local_agent(), "Hi", **arguments)
        except Exception as error:
            return type(error), str(error)
        raise AssertionError("it was not refused")

    for arguments in ({"hooks": AgentHooks()}, {"nonsense": 1}, {"max_turns": 0}):
        without = await refusal(**arguments)
        with installed(memory=InMemorySessionMemory()):
            assert await refusal(**arguments) == without
            if "nonsense" not in arguments:
                assert await refusal(**arguments, session_id="s") == without


# --- conflicts -----------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    "arguments",
    [
        {"conversation_id": "conv_1"},
        {"previous_response_id": "resp_1"},
        {"auto_previous_response_id": True},
    ],
)
async def test_a_history_has_one_owner(
    each_memory: Any, method: str, arguments: dict[str, Any]
) -> None:
    """The provider's own conversation state and a session exclude each other."""
    with pytest.raises(ConflictingMemory, match=next(iter(arguments))):
        await carried_out(method, local_agent(), "Hi", each_memory, **arguments)
    async with session_scope("s", memory=each_memory, on_busy="reject"):
        pass
    assert await stored(each_memory) == ""


@both_ways
async def test_a_session_besides_the_decorators_memory(each_memory: Any, method: str) -> None:
    """A decorated Runner method does not put its memory in place of a session= of theirs."""
    theirs = SQLiteSession("theirs")
    with pytest.raises(ConflictingMemory, match="leave one out"):
        await carried_out(method, local_agent(), "Hi", each_memory, session=theirs)
    assert (await theirs.get_items(), await stored(each_memory)) == ([], "")
    theirs.close()


@both_ways
async def test_decorated_twice(each_memory: Any, method: str) -> None:
    """A Runner method that is decorated a second time still stores every item once."""
    inner = with_session_memory(getattr(Runner, method), memory=each_memory)
    made = with_session_memory(inner, memory=each_memory)(local_agent(), "Hi", session_id="s")
    await (consumed(made) if method == "run_streamed" else made)
    assert await stored(each_memory) == "U A"


async def test_a_session_of_the_users(each_memory: Any) -> None:
    """A session= of theirs is respected, in a scope too; together with session_id it is refused."""
    theirs = SQLiteSession("theirs")
    with installed(memory=each_memory):
        async with session_scope("s", memory=each_memory):
            await Runner.run(local_agent(), "Hi", session=theirs)
        with pytest.raises(ConflictingMemory, match="leave one out"):
            await Runner.run(local_agent(), "Hi", session=theirs, session_id="s")
    assert letters(await theirs.get_items()) == "U A"
    theirs.close()
    assert await stored(each_memory) == ""


# --- hooks ---------------------------------------------------------------------------------


class Noting(RunHooks[Any]):
    """Hooks that note what they are called for."""

    def __init__(self, name: str, notes: list[str], raises: bool = False) -> None:
        self.name, self.notes, self.raises = name, notes, raises

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        self.notes.append(f"{self.name} start")
        if self.raises:
            raise LookupError(self.name)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        self.notes.append(f"{self.name} {tool.name}: {result}")

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        self.notes.append(f"{self.name} end: {output}")


@both_ways
async def test_the_users_hooks_are_called(each_memory: Any, method: str) -> None:
    """Theirs stay in force, several can be composed, in their order."""
    notes: list[str] = []
    agent = scripted_agent(call("look"), assistant("42"), tools=[tool("look", lambda: "seen")])
    hooks = SessionRunHooks(Noting("a", notes), Noting("b", notes))
    await carried_out(method, agent, "What?", each_memory, hooks=hooks)
    assert notes == [
        "a start",
        "b start",
        "a look: seen",
        "b look: seen",
        "a end: 42",
        "b end: 42",
    ]
    notes.clear()
    await carried_out(method, local_agent(), "Hi", each_memory, hooks=Noting("c", notes))
    assert notes[0] == "c start"


@both_ways
async def test_a_hook_of_theirs_that_raises(each_memory: Any, method: str) -> None:
    """It ends the run, as without us, and the turn has failed."""
    with pytest.raises(LookupError, match="c"):
        await carried_out(method, local_agent(), "Hi", each_memory, hooks=Noting("c", [], True))
    assert await states(each_memory) == ["failed"]
