"""Drives a scenario to each of its awaits in turn, interrupts it there, and says what broke.

``points`` cancels a scenario at its 1st, 2nd, 3rd ... suspension, until it completes undisturbed.
``Watched`` makes a memory fail at its 1st, 2nd, 3rd ... operation. ``violations`` compares what a
session holds afterwards with what must be true of it. Nothing here is a test.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import wait as futures_wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from agents import Agent, FunctionTool, ModelResponse
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message, function_call

from session_middleware import InMemorySessionMemory, SQLiteSessionMemory, _background, history
from session_middleware.errors import MemoryUnavailable
from session_middleware.stores.protocol import SHORTCUTS
from session_middleware.stores.records import AcquireRequest, Item, Lease, RunItems, TurnEnd

Interruption = Literal["cancel", "cancel twice", "shut down"]


# --- an agent that calls a tool once and then answers ----------------------------------------


_NOTE = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


class NotingModel(Model):
    """Calls ``note`` with what the user said, then answers; decides by its input alone."""

    def __init__(self, *, breaks_after_tool: bool = False) -> None:
        self.breaks_after_tool = breaks_after_tool

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        model = self._answer(input)
        return await model.get_response(system_instructions, input, *args, **kwargs)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        model = self._answer(input)
        async for event in model.stream_response(system_instructions, input, *args, **kwargs):
            yield event

    def _answer(self, given: Any) -> ScriptedModel:
        last = {"role": "user", "content": given} if isinstance(given, str) else given[-1]
        if last.get("type") == "function_call_output":
            if self.breaks_after_tool:
                return ScriptedModel([RuntimeError("the model is down")])
            text = f"done: {last['output']}"
            return ScriptedModel([[assistant_message(text, item_id=f"msg_{uuid4().hex}")]])
        called = function_call("note", {"text": last["content"]}, call_id=f"call_{uuid4().hex}")
        return ScriptedModel([[called]])


def noting_agent(
    effects: list[str],
    *,
    breaks_after_tool: bool = False,
    needs_approval: bool = False,
    tool_waits: Callable[[], Awaitable[Any]] | None = None,
) -> Agent[Any]:
    """An agent whose tool appends the user's words to ``effects``, then awaits ``tool_waits()``."""

    async def note(context: Any, arguments: str) -> str:
        text = json.loads(arguments)["text"]
        await asyncio.sleep(0)
        effects.append(text)
        await (asyncio.sleep(0) if tool_waits is None else tool_waits())
        return f"noted {text}"

    tool = FunctionTool(
        name="note",
        description="Note something.",
        params_json_schema=_NOTE,
        on_invoke_tool=note,
        needs_approval=needs_approval,
    )
    model = NotingModel(breaks_after_tool=breaks_after_tool)
    return Agent(name="Noting", model=model, tools=[tool])


# --- a memory that is watched ----------------------------------------------------------------


class Watched:
    """Mixed into a memory: fails where it is told to, and knows what it acknowledged.

    Attributes:
        fail_at: the operation of a turn that fails, counted from 1; None: none.
        after_effect: it fails after it has done its work, as when an answer is lost.
        pauses: suspend before and after each operation, as a slow memory does.
        failed: the name of the operation that failed.
        acknowledged: by session, every item whose storing was acknowledged.
    """

    fail_at: int | None = None
    after_effect = False
    pauses = False
    operations = 0
    failed: str | None = None

    @property
    def acknowledged(self) -> dict[str, list[Item]]:
        known: dict[str, list[Item]] = self.__dict__.setdefault("_acknowledged", {})
        return known

    @property
    def _ahead(self) -> dict[int, list[Item]]:
        """By token, what was stored when the session was acquired."""
        stored: dict[int, list[Item]] = self.__dict__.setdefault("_stored_ahead", {})
        return stored

    def will_fail(self, at: int, *, after_effect: bool) -> None:
        """Count anew, and fail at this operation."""
        self.fail_at, self.after_effect, self.operations, self.failed = at, after_effect, 0, None

    def recovers(self) -> None:
        self.fail_at = None

    async def _operation(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        self.operations += 1
        fails = self.operations == self.fail_at
        if fails:
            self.failed = name
        if self.pauses:
            await asyncio.sleep(0)
        if fails and not self.after_effect:
            raise MemoryUnavailable(f"{name} failed") from OSError("no storage")
        result = await work()
        if self.pauses:
            await asyncio.sleep(0)
        if fails:
            raise MemoryUnavailable(f"{name} was not answered") from OSError("no answer")
        return result

    async def acquire(self, request: AcquireRequest) -> Any:
        work = self._operation("acquire", lambda: super(Watched, self).acquire(request))  # type: ignore[misc]
        acquiring, cancelled = await _background.run_shielded(work)
        if cancelled is not None:
            if acquiring.exception() is None:
                await self._undo(request, acquiring.result())  # type: ignore[attr-defined]
            raise cancelled
        acquired = acquiring.result()
        if acquired.stored and request.input is not None:
            self._ahead[acquired.lease.token] = _items_of([request.input])
            self._acknowledge(acquired.lease, self._ahead[acquired.lease.token])
        return acquired

    def _withdraw(self, lease: Lease) -> None:
        """What was stored with the acquire may go again as long as nothing else was stored."""
        acknowledged = self.acknowledged.get(lease.session_id, [])
        ahead = self._ahead.pop(lease.token)
        if ahead:
            assert acknowledged[-len(ahead) :] == ahead
            del acknowledged[-len(ahead) :]

    async def load_turns(self, session_id: str, **how: Any) -> Any:
        return await self._operation(
            "load",
            lambda: super(Watched, self).load_turns(session_id, **how),  # type: ignore[misc]
        )

    async def load_items(self, session_id: str, **how: Any) -> Any:
        return await self._operation(
            "load items",
            lambda: super(Watched, self).load_items(session_id, **how),  # type: ignore[misc]
        )

    async def append_items(
        self, lease: Lease, run: int, position: int, items: Sequence[Item], **how: Any
    ) -> None:
        await self._operation(
            "append",
            lambda: super(Watched, self).append_items(lease, run, position, items, **how),  # type: ignore[misc]
        )
        self.acknowledged.setdefault(lease.session_id, []).extend(items)

    async def retry_run(self, lease: Lease, failed: int, run: int) -> Any:
        return await self._operation(
            "retry",
            lambda: super(Watched, self).retry_run(lease, failed, run),  # type: ignore[misc]
        )

    async def end_turn(self, lease: Lease, end: TurnEnd) -> None:
        await self._operation("end", lambda: super(Watched, self).end_turn(lease, end))  # type: ignore[misc]
        if end.discard and self._ahead.get(lease.token):
            self._withdraw(lease)

    async def write_turn(
        self, lease: Lease, items: Sequence[RunItems], end: TurnEnd | None = None
    ) -> None:
        await self._operation(
            "append" if end is None else "append and end",
            lambda: super(Watched, self).write_turn(lease, items, end),  # type: ignore[misc]
        )
        if any(new.instead for new in items):
            self._withdraw(lease)
        self._acknowledge(lease, _items_of(items))

    def _acknowledge(self, lease: Lease, items: list[Item]) -> None:
        self.acknowledged.setdefault(lease.session_id, []).extend(items)


def _items_of(written: Sequence[RunItems]) -> list[Item]:
    return [json.loads(text) for new in written for text in new.texts]


class WatchedInMemory(Watched, InMemorySessionMemory):
    """The memory of the process, watched; slow, so that it can be interrupted."""

    pauses = True
    capabilities = InMemorySessionMemory.capabilities


class WatchedOneByOne(WatchedInMemory):
    """One that cannot store items and the end of their turn at once."""

    capabilities = InMemorySessionMemory.capabilities - SHORTCUTS


class WatchedSQLite(Watched, SQLiteSessionMemory):
    """The SQLite memory, watched."""

    capabilities = SQLiteSessionMemory.capabilities


# --- interrupting ----------------------------------------------------------------------------


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that reports each of its suspensions."""

    def __init__(self, inner: Any, suspended: Callable[[], None]) -> None:
        self._inner = inner
        self._suspended = suspended
        self.__qualname__ = getattr(inner, "__qualname__", "counted")

    def send(self, value: Any) -> Any:
        result = self._inner.send(value)
        self._suspended()
        return result

    def throw(self, *error: Any) -> Any:
        result = self._inner.throw(*error)
        self._suspended()
        return result

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()


@dataclass
class _Interrupter:
    at: int
    how: Interruption
    task: asyncio.Task[Any] | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0

    def suspended(self) -> None:
        if self.task is None:
            return
        self.count += 1
        if self.count == self.at:
            self.reached.set()
            if self.how != "shut down":
                self.task.cancel()
        elif self.how == "cancel twice" and self.count in (self.at + 1, self.at + 3):
            self.task.cancel()


_interrupters: ContextVar[_Interrupter] = ContextVar("interrupters")


def interrupt_only(task: asyncio.Task[Any]) -> None:
    """Within a scenario: count from here on, and interrupt this task instead of the whole."""
    interrupter = _interrupters.get(None)
    if interrupter is not None:
        interrupter.task, interrupter.count = task, 0


def interrupted_at(at: int, how: Interruption, scenario: Callable[[], Awaitable[Any]]) -> bool:
    """Run the scenario in a loop of its own and interrupt it at its ``at``-th suspension.

    The suspensions of all its tasks count. Whatever it left running is waited for, or, with
    "shut down", cancelled as ``asyncio.run`` does it. Returns whether it got that far; then its
    outcome does not matter, while an undisturbed scenario must succeed.
    """
    interrupter = _Interrupter(at, how)

    def make_task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_Counted(coroutine, interrupter.suspended), loop=loop, **options)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(make_task)

        _interrupters.set(interrupter)

        async def begin() -> Any:
            return await scenario()

        task = interrupter.task = asyncio.ensure_future(begin())
        reached = asyncio.ensure_future(interrupter.reached.wait())
        if how == "shut down":
            await asyncio.wait((task, reached), return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.wait((task,))
            reached.cancel()
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is not None and not interrupter.reached.is_set():
                raise error

    asyncio.run(main())
    settle()
    return interrupter.reached.is_set()


def settle() -> None:
    """Wait for the ends of turns that nobody could await."""
    futures_wait(list(_background._unfinished))


def points(
    how: Interruption,
    scenario: Callable[[int], Callable[[], Awaitable[Any]]],
    afterwards: Callable[[int], list[str]],
    *,
    start: int = 1,
    step: int = 1,
) -> tuple[int, list[str]]:
    """Interrupt ``scenario(at)`` at ``start``, ``start + step`` ... until it is undisturbed.

    ``afterwards(at)`` returns what it found broken. Returns the number of points, and all that.
    """
    found: list[str] = []
    for reached, at in enumerate(itertools.count(start, step)):
        got_there = interrupted_at(at, how, scenario(at))
        found += [f"{how} at {at}: {violation}" for violation in afterwards(at)]
        if not got_there:
            return reached, found
    raise AssertionError("unreachable")


# --- what must be true of a session ----------------------------------------------------------

_WHOLE = ("", "U", "UC", "UCO", "UCOA")


def shape(items: Sequence[Item]) -> str:
    """One letter per item: user, call, output, assistant."""
    letters = {"function_call": "C", "function_call_output": "O"}
    return "".join(
        "U" if item.get("role") == "user" else letters.get(str(item.get("type")), "A")
        for item in items
    )


def name(item: Item) -> str:
    """What an item is recognised by."""
    if item.get("role") == "user":
        return f"user {item['content']}"
    return f"{item.get('type')} {item.get('call_id') or item.get('id')}"


def violations(
    items: Sequence[Item],
    *,
    acknowledged: Sequence[Item] = (),
    pending: bool = False,
    again: bool = False,
) -> list[str]:
    """What is wrong with a session's items.

    Args:
        acknowledged: items whose storing was acknowledged.
        pending: a call may wait for approval.
        again: a run was made again in the same turn. What it answered may have been replaced
            then, and a whole run that was completed may stand before its repetition.
    """
    found = [
        f"{fault.kind} at {fault.position} in {shape(items)}" for fault in history.check(items)
    ]
    whole = [part for part in _WHOLE if pending or part != "UC"]
    for part in shape(items).split("U")[1:]:
        if f"U{part}" not in whole:
            found.append(f"no whole model turns: {shape(items)}")
            break
    stored = {name(item) for item in items}
    if again:
        if shape(items).startswith("UCOAU"):
            items = items[4:]
        acknowledged = [item for item in acknowledged if item.get("role") != "assistant"]
    counted = Counter(map(name, items))
    found += [f"doubled: {what}" for what, times in counted.items() if times > 1]
    found += [f"lost: {name(item)}" for item in acknowledged if name(item) not in stored]
    return found
