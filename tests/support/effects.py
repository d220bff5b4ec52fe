"""Workers that serve one request with tools that have effects, and may be killed on the way.

``python -m tests.support.effects`` imports everything once and forks a worker for each line of its
input, the JSON of a ``Job``; it answers each with the worker's exit status. An effect is a line
that a tool appends to a file, with the key that it would hand to a provider.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from agents import (
    Agent,
    FunctionTool,
    ModelResponse,
    Runner,
    RunState,
    SQLiteSession,
    set_tracing_disabled,
)
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message, function_call

from session_middleware import (
    DuplicateTurn,
    MemoryUnavailable,
    SessionBusy,
    SQLiteSessionMemory,
    TurnInProgress,
    TurnLost,
    current_tool_call,
    with_session_memory,
)
from session_middleware.effects import UNKNOWN_TEXT
from tests.support import ROOT
from tests.support.conditions import until
from tests.support.programs import PIPE, Programs, import_all_of_ours

NAMES = ("mail", "charge", "ship")


@dataclasses.dataclass
class Job:
    """What a worker does.

    Attributes:
        folder: where the memory, the effects and a parked state are.
        tools: how many tools the model calls at once.
        approves: they wait for approval; the worker resumes the state that was parked.
        repeats: the model calls again what it is told is unknown.
        dies_at: the step of the event loop's tasks at which the worker is killed, from 1.
        dies_in: the tool in which it is killed, "before" or "after" its effect, or "answer": when
            the model has called it, and nobody has heard of that.
        how: what happens to it there: "kill", "stop" (while it waits for "woken"), "cancel"
            (its request), "full" (no file may grow any more), or "fail" (the provider does).
        on_unavailable: the option of that name.
        plain: the SDK's own session, which knows no requests, instead of a memory.
    """

    folder: str
    tools: int = 1
    method: str = "run"
    approves: bool = False
    repeats: bool = False
    dies_at: int | None = None
    dies_in: tuple[str, str] | None = None
    how: str = "kill"
    on_unavailable: Literal["raise", "forget"] = "raise"
    plain: bool = False


# --- the agent -------------------------------------------------------------------------------


class Decisive(Model):
    """Answers from its input alone, as another worker's model would."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def _answer(self, given: Any) -> ScriptedModel:
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        outputs = {
            item["call_id"]: item["output"]
            for item in items
            if item.get("type") == "function_call_output"
        }
        calls = [item for item in items if item.get("type") == "function_call"]
        unknown = {
            call["name"]
            for call in calls
            if UNKNOWN_TEXT in str(outputs.get(call["call_id"], UNKNOWN_TEXT))
        }
        known = {call["name"] for call in calls} - unknown
        known |= {
            call["name"]
            for call in calls
            if UNKNOWN_TEXT not in str(outputs.get(call["call_id"], UNKNOWN_TEXT))
        }
        wanted = [name for name in NAMES[: self.job.tools] if name not in known]
        if calls and not self.job.repeats:
            wanted = []
        for name in wanted:
            _strike(self.job, name, "answer")
        if not wanted:
            if self.job.how == "fail" and outputs:
                raise ConnectionError("the provider is down")
            return ScriptedModel([[assistant_message("done", item_id=f"msg_{os.getpid()}")]])
        at = f"{os.getpid()}_{len(items)}"
        return ScriptedModel(
            [[function_call(name, {"n": 1}, call_id=f"{name}_{at}") for name in wanted]]
        )

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        answer = self._answer(options.get("input", args[1] if len(args) > 1 else None))
        return await answer.get_response(*args, **options)

    async def stream_response(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        answer = self._answer(options.get("input", args[1] if len(args) > 1 else None))
        async for event in answer.stream_response(*args, **options):
            yield event


def agent_of(job: Job) -> Agent[Any]:
    effects = Path(job.folder, "effects")

    def tool(name: str) -> FunctionTool:
        async def work(context: Any, arguments: str) -> str:
            _note_begun(job, name)
            await asyncio.sleep(0)
            _strike(job, name, "before")
            call = current_tool_call(context)
            assert job.plain or call is not None
            key, attempt = (call.key, call.attempt) if call else (None, None)
            line = json.dumps({"tool": name, "key": key, "attempt": attempt}) + "\n"
            file = os.open(effects, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
            os.write(file, line.encode())
            os.close(file)
            _strike(job, name, "after")
            await asyncio.sleep(0)
            return f"{name} done"

        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        }
        return FunctionTool(name, name, schema, work, needs_approval=job.approves)

    tools: list[Any] = [tool(name) for name in NAMES[: job.tools]]
    return Agent(name="Worker", model=Decisive(job), tools=tools)


def _note_begun(job: Job, name: str) -> None:
    """Make a folder, which can be made where no file may grow."""
    Path(job.folder, f"{name} began {os.getpid()}").mkdir()


def _strike(job: Job, name: str, when: str) -> None:
    if job.dies_in is None or tuple(job.dies_in) != (name, when):
        return
    if job.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif job.how == "stop":
        job.dies_in = None
        Path(job.folder, "here").write_text(str(os.getpid()))
        woken = Path(job.folder, "woken")
        while not woken.exists():
            time.sleep(0.005)
    elif job.how == "cancel":
        _Counted.request.cancel()
    elif job.how == "full":
        _limit_files(0)


def _limit_files(size: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


# --- a worker --------------------------------------------------------------------------------


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that kills the process when the steps of all such coroutines are used up."""

    steps = 0
    dies_at: int | None = None
    request: asyncio.Future[bool]

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def send(self, value: Any) -> Any:
        _Counted.steps += 1
        if _Counted.steps == _Counted.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]


def serve(job: Job) -> None:
    """Serve the request until it is done, as one worker; write how many steps that took.

    It is refused for as long as a dead worker's lease lasts. How it failed where it was made to is
    in the file "failed".
    """
    set_tracing_disabled(True)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(
            lambda loop, coroutine, **more: asyncio.Task(_Counted(coroutine), loop=loop, **more)
        )
        _Counted.steps, _Counted.dies_at = 0, job.dies_at
        await until(attempt)

    def attempt() -> asyncio.Future[bool]:
        _Counted.request = asyncio.ensure_future(_is_served(job))
        return _Counted.request

    try:
        asyncio.run(main())
    except (MemoryUnavailable, TurnLost, ConnectionError, asyncio.CancelledError) as error:
        if job.how == "kill":
            raise
        _limit_files(resource.RLIM_INFINITY)
        Path(job.folder, "failed").write_text(f"{type(error).__name__}: {error}")
    Path(job.folder, "steps").write_text(str(_Counted.steps))


async def _is_served(job: Job) -> bool:
    try:
        await _request(job)
    except (TurnInProgress, SessionBusy):
        return False
    except DuplicateTurn:
        return True
    return True


async def _request(job: Job) -> None:
    if job.plain:
        await _plain_request(job)
        return
    memory = SQLiteSessionMemory(Path(job.folder, "chat.db"), lease=0.4)
    options: Any = {"wait_timeout": 0.1, "on_unavailable": job.on_unavailable}
    wrapped = with_session_memory(getattr(Runner, job.method), memory=memory, **options)
    agent = agent_of(job)
    given: Any = "Please"
    parked = _parked(job)
    if parked is not None:
        given = await RunState.from_json(agent, parked)
        for item in given.get_interruptions():
            given.approve(item)
    key = None if job.approves else "request"
    made = wrapped(agent, given, session_id="s", idempotency_key=key)
    result = made if job.method == "run_streamed" else await made
    if job.method == "run_streamed":
        async for _ in result.stream_events():
            pass
    if result.interruptions:
        _park(job, result.to_state().to_json())


async def _plain_request(job: Job) -> None:
    """The same with the SDK's own session."""
    session = SQLiteSession("s", Path(job.folder, "chat.db"))
    try:
        await Runner.run(agent_of(job), "Please", session=session)
    finally:
        session.close()


def _parked(job: Job) -> Any:
    file = Path(job.folder, "parked.json")
    return json.loads(file.read_text()) if job.approves and file.exists() else None


def _park(job: Job, state: Any) -> None:
    Path(job.folder, "parked.json").write_text(json.dumps(state))


class Workers:
    """The process that forks workers."""

    def __init__(self, programs: Programs) -> None:
        self._process = programs.start(
            "-m",
            "tests.support.effects",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=PIPE,
            stdout=PIPE,
        )

    def serve(self, job: Job) -> int:
        """Let one worker do the job; returns its exit status, -9 if it was killed."""
        self.start(job)
        return self.status()

    def start(self, job: Job) -> None:
        """Let one worker do the job, and go on meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self._process.stdin.flush()

    def status(self) -> int:
        """The exit status of the worker that was started."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def effects_in(folder: Path) -> list[dict[str, Any]]:
    """The effects that happened, in order."""
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in (folder / "effects").read_text().splitlines()]
    return []


def _fork_workers() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                serve(Job(**json.loads(line)))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    import_all_of_ours()
    gc.freeze()
    _fork_workers()
