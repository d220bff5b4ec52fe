"""What the processes of ``turns/test_processes.py`` do.

Each function is the body of a script by a careless user: none closes its memory. A script says
"finished" when it has nothing more to do, and what else it has to tell before that.

Importing everything takes seconds, so ``python -m tests.support.processes`` does it once and forks
a process for each line of its input: the tuple of a named pipe to speak into, the function, its
arguments.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents import Runner, set_tracing_disabled

from session_middleware import (
    MemoryUnavailable,
    SessionMemoryError,
    SQLiteSessionMemory,
    TurnInProgress,
    TurnLost,
    _background,
    install,
    last_turns,
    with_session_memory,
)
from session_middleware.stores.sqlite import memory as sqlite_memory
from tests.support.conditions import until
from tests.support.interruptions import NotingModel, noting_agent
from tests.support.programs import import_all_of_ours

SHORT_LEASE = 0.5
PATIENCE = 600
# A process that waits in vain at its exit does so for longer than any test.
_background.EXIT_SECONDS = PATIENCE
sqlite_memory._EXIT_PATIENCE = PATIENCE


def say(what: str) -> None:
    print(what, flush=True)


def run(path: str, text: str = "hello", *, session_id: str = "s", **options: Any) -> Any:
    """A coroutine of one run."""
    remembering = with_session_memory(Runner.run, memory=SQLiteSessionMemory(path))
    return remembering(noting_agent([]), text, session_id=session_id, **options)


def stream(path: str) -> Any:
    start = with_session_memory(Runner.run_streamed, memory=SQLiteSessionMemory(path))
    return start(noting_agent([]), "hello", session_id="s")


async def has_begun(path: str, session_id: str = "s") -> None:
    """Wait until the session has a turn."""
    memory = SQLiteSessionMemory(path)
    await until(lambda: memory.turns(session_id))


# --- scripts that end without a word -----------------------------------------------------------


def one_run(path: str) -> None:
    asyncio.run(run(path))


def in_sync(path: str) -> None:
    run_sync = with_session_memory(Runner.run_sync, memory=SQLiteSessionMemory(path))
    run_sync(noting_agent([]), "hello", session_id="s")


def stream_consumed(path: str) -> None:
    async def main() -> None:
        async for _ in stream(path).stream_events():
            pass

    asyncio.run(main())


def stream_left_early(path: str) -> None:
    async def main() -> None:
        async for _ in stream(path).stream_events():
            break

    asyncio.run(main())


def stream_cancelled(path: str) -> None:
    async def main() -> None:
        result = stream(path)
        async for event in result.stream_events():
            if event.type == "run_item_stream_event":
                result.cancel()

    asyncio.run(main())


def stream_never_iterated(path: str) -> None:
    async def main() -> None:
        stream(path)

    asyncio.run(main())


def stream_going_on(path: str) -> None:
    async def main() -> None:
        result = stream(path)
        await has_begun(path)
        assert result is not None

    asyncio.run(main())


def task_left_behind(path: str) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(run(path))
        await has_begun(path)
        assert task is not None

    asyncio.run(main())


def forked_after_a_run(path: str) -> None:
    """One run before the fork, one in the child, one in the parent."""
    asyncio.run(run(path, "before"))
    child = os.fork()
    if child == 0:
        asyncio.run(run(path, "child"))
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    asyncio.run(run(path, "after"))


ENDING: dict[str, tuple[str, ...]] = {
    "one_run": ("UCOA",),
    "in_sync": ("UCOA",),
    "stream_consumed": ("UCOA",),
    "stream_left_early": ("", "U", "UCO", "UCOA"),
    "stream_cancelled": ("", "U", "UCO", "UCOA"),
    "stream_never_iterated": ("", "U", "UCO", "UCOA"),
    "stream_going_on": ("", "U", "UCO", "UCOA"),
    "task_left_behind": ("", "U", "UCO", "UCOA"),
    "forked_after_a_run": ("UCOAUCOAUCOA",),
}
"""What the session may hold after each of these scripts."""


# --- servers -------------------------------------------------------------------------------------


def prefork(path: str, workers: str, turns: str, session: str) -> None:
    """A server that loads its application, serves once, and forks its workers.

    ``session`` is "shared" by all workers, or each has its "own".
    """
    install(memory=SQLiteSessionMemory(path), wait_timeout=PATIENCE, window=last_turns(5))
    asyncio.run(Runner.run(noting_agent([]), "warm up", session_id="warm"))  # type: ignore[call-arg]
    children = []
    for worker in range(int(workers)):
        child = os.fork()
        if child == 0:
            session_id = "shared" if session == "shared" else f"own {worker}"

            async def serve(worker: int = worker, session_id: str = session_id) -> None:
                for turn in range(int(turns)):
                    await Runner.run(  # type: ignore[call-arg]
                        noting_agent([]), f"{worker}.{turn}", session_id=session_id
                    )

            asyncio.run(serve())
            sys.exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), statuses


# --- crashes -------------------------------------------------------------------------------------


async def _work(remembering: Any, attempt: int, acknowledge: int) -> None:
    for turn in itertools.count(1):
        text = f"{attempt}.{turn}"
        await remembering(noting_agent([]), text, session_id="s")
        os.write(acknowledge, f"{text}\n".encode())


def killed(path: str, times: str) -> None:
    """Kill a worker at a random moment, again and again; say what was acknowledged."""
    for attempt in range(int(times)):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            memory = SQLiteSessionMemory(path, lease=SHORT_LEASE)
            remembering = with_session_memory(Runner.run, memory=memory, wait_timeout=PATIENCE)
            asyncio.run(_work(remembering, attempt, write))
        os.close(write)
        with os.fdopen(read) as pipe:
            first = pipe.readline()
            time.sleep(random.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            acknowledged = [first, *pipe.readlines()]
        say("\n".join(line.strip() for line in acknowledged if line.endswith("\n")))


class _Stalling(NotingModel):
    """Says so and then does not answer, once the tool has done its work."""

    def _answer(self, given: Any) -> Any:
        if isinstance(given, list) and given[-1].get("type") == "function_call_output":
            say("tool done")
            time.sleep(600)
        return super()._answer(given)


class _Charges(list[str]):
    """Effects that reach the world outside: a line in a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def append(self, what: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{what}\n")


async def _asked_again(run: Callable[[], Awaitable[Any]]) -> None:
    """Ask until no turn with the same key is in progress."""
    while True:
        try:
            await run()
        except TurnInProgress as busy:
            await asyncio.sleep(busy.retry_after or 0)
        else:
            return


def charge(path: str, stalls: str) -> None:
    """A keyed request whose tool charges somebody; asked again while it is being worked on."""
    agent = noting_agent(_Charges(f"{path}.charges"))
    if stalls == "stalls":
        agent.model = _Stalling()
    memory = SQLiteSessionMemory(path, lease=SHORT_LEASE)
    remembering = with_session_memory(Runner.run, memory=memory, wait_timeout=PATIENCE)

    asyncio.run(
        _asked_again(lambda: remembering(agent, "hello", session_id="s", idempotency_key="k"))
    )


class _Announced(list[str]):
    """Effects that say so as soon as the tool waits."""

    def append(self, what: str) -> None:
        asyncio.get_running_loop().call_soon(say, "in tool")


def stopped(path: str) -> None:
    """A run that is stopped within its tool, which goes on once ``path``.woken is there."""
    memory = SQLiteSessionMemory(path, lease=SHORT_LEASE)

    woken = Path(f"{path}.woken")
    agent = noting_agent(_Announced(), tool_waits=lambda: until(woken.exists))

    async def main() -> None:
        remembering = with_session_memory(Runner.run, memory=memory)
        try:
            await remembering(agent, "stalled", session_id="s")
        except TurnLost:
            say("TurnLost")

    asyncio.run(main())


def traced(path: str) -> None:
    """A run that is traced and never comes out of its tool; ``path``.trace has the trace's id."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import format_trace_id, get_current_span

    def note() -> None:
        trace_id = get_current_span().get_span_context().trace_id
        Path(f"{path}.trace").write_text(format_trace_id(trace_id))
        say("in tool")

    async def stalls() -> None:
        note()
        await asyncio.Event().wait()

    memory = SQLiteSessionMemory(path, lease=SHORT_LEASE)
    telemetry = {"tracer_provider": TracerProvider(shutdown_on_exit=False)}
    remembering = with_session_memory(Runner.run, memory=memory, telemetry=telemetry)
    asyncio.run(remembering(noting_agent([], tool_waits=stalls), "hello", session_id="s"))


def interrupted(path: str) -> None:
    """run_sync, interrupted from the keyboard."""
    run_sync = with_session_memory(Runner.run_sync, memory=SQLiteSessionMemory(path))
    with suppress(KeyboardInterrupt):
        run_sync(
            noting_agent(_Announced(), tool_waits=asyncio.Event().wait), "hello", session_id="s"
        )
        say("not interrupted")


def full(path: str) -> None:
    """A disk on which the file may not grow any more."""
    import resource

    from session_middleware import MemoryUnavailable

    asyncio.run(run(path, "small"))
    size = os.path.getsize(path) + os.path.getsize(f"{path}-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        asyncio.run(run(path, "large " * 200_000))
    except MemoryUnavailable as error:
        say(f"MemoryUnavailable from {type(error.__cause__).__name__}")


# --- a faulty disk -------------------------------------------------------------------------------


class _Failing(NotingModel):
    """Fails when its tool has done its work, as a provider that is overloaded does."""

    def _answer(self, given: Any) -> Any:
        if isinstance(given, list) and given[-1].get("type") == "function_call_output":
            raise ConnectionError("the provider is down")
        return super()._answer(given)


def conversation(path: str) -> None:
    """A run, a stream, a retry, an approval and a discarded turn; says which were acknowledged."""
    memory = SQLiteSessionMemory(path, lease=SHORT_LEASE, operation_timeout=2)
    effects = _Charges(str(Path(path).with_name(f"effects of {Path(path).name}")))

    def remembered(method: Any, **options: Any) -> Any:
        return with_session_memory(method, memory=memory, wait_timeout=PATIENCE, **options)

    async def whole() -> None:
        await remembered(Runner.run)(noting_agent(effects), "whole", session_id="whole")

    async def streamed() -> None:
        start = remembered(Runner.run_streamed)
        async for _ in start(
            noting_agent(effects), "streamed", session_id="streamed"
        ).stream_events():
            pass

    async def retried() -> None:
        run = remembered(Runner.run)
        key = {"session_id": "retried", "idempotency_key": "key"}
        failing = noting_agent(effects)
        failing.model = _Failing()
        with suppress(ConnectionError):
            await run(failing, "retried", **key)
        await _asked_again(lambda: run(noting_agent(effects), "retried", **key))

    async def approved() -> None:
        run = remembered(Runner.run)
        agent = noting_agent(effects, needs_approval=True)
        state = (await run(agent, "approved", session_id="approved")).to_state()
        for item in state.get_interruptions():
            state.approve(item)
        await run(agent, state, session_id="approved")

    async def discarded() -> None:
        failing = noting_agent(effects)
        failing.model = _Failing()
        run = remembered(Runner.run, on_failure="discard")
        try:
            await run(failing, "discarded", session_id="discarded")
        except ConnectionError as error:
            if hasattr(error, "__notes__"):  # what was to be discarded is still there
                raise MemoryUnavailable("it was not discarded") from error

    async def main() -> None:
        for part in (whole, streamed, retried, approved, discarded):
            try:
                await part()
            except SessionMemoryError as error:
                say(f"{part.__name__}: {type(error).__name__}")
            else:
                say(f"{part.__name__}: acknowledged")

    asyncio.run(main())


def serve() -> tuple[str, list[str]]:
    """Fork for each line of the input; returns in the children, with what they have to do."""
    gc.freeze()  # no process takes apart what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    for line in sys.stdin:
        pipe, name, *arguments = ast.literal_eval(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A shell starts what it runs in the background with this ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            speaking = os.open(pipe, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(speaking, stream)
            os.close(speaking)
            return name, arguments
        say(str(child))
    sys.exit()


if __name__ == "__main__":
    set_tracing_disabled(True)
    import_all_of_ours()
    name, arguments = serve()
    globals()[name](*arguments)
    say("finished")
