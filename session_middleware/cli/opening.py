"""Which memory a command works on, and how a command is one: its options, its loop, its memory.

The memory is the one that ``--memory`` names, narrowed by ``--scope``. A command that only reads
makes no file, and none migrates one but ``migrate``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import click

from session_middleware.cli.output import Output
from session_middleware.errors import MemoryUnavailable, UnsupportedSchema
from session_middleware.memory_option import DEFAULT_MEMORY
from session_middleware.stores import open_memory
from session_middleware.stores.base import TurnMemory
from session_middleware.stores.passwords import names_a_server, without_password
from session_middleware.stores.scoped import ScopedMemory
from session_middleware.words import shown

Opened: TypeAlias = TurnMemory | ScopedMemory
"""The memory that a command works on: a whole one, or the part of a tenant."""

T = TypeVar("T")

Body: TypeAlias = Callable[..., Coroutine[Any, Any, None]]

_SUGGESTED = 50  # ids that a shell offers at most


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the options say that every command has, before or behind its name.

    Attributes:
        memory: a URL or a path.
        scopes: tenants, the outer one first.
    """

    memory: str = DEFAULT_MEMORY
    scopes: tuple[str, ...] = ()
    as_json: bool = False

    def with_options(self, memory: str | None, scope: Sequence[str], as_json: bool) -> Chosen:
        """The same, but for what these options say."""
        return replace(
            self,
            memory=memory or self.memory,
            scopes=tuple(scope) or self.scopes,
            as_json=as_json or self.as_json,
        )

    @property
    def named(self) -> str:
        """The memory as it may be shown."""
        return shown(without_password(self.memory))


def memory_named(text: str) -> TurnMemory:
    """The memory of a URL, or of the path of an SQLite file; nothing is opened yet."""
    if text == ":memory:" or names_a_server(text):
        return open_memory(text)
    from session_middleware.stores.sqlite import SQLiteSessionMemory

    return SQLiteSessionMemory(text)


def file_of(memory: TurnMemory) -> str | None:
    """The path of the file that the memory keeps, where it keeps one."""
    from session_middleware.stores.sqlite import SQLiteSessionMemory

    if isinstance(memory, SQLiteSessionMemory) and memory.path != ":memory:":
        return memory.path
    return None


def missing_file(text: str) -> str | None:
    """The path of the file that the memory would keep and that is not there, or None."""
    path = file_of(memory_named(text))
    return None if path is None or os.path.exists(path) else path


@asynccontextmanager
async def opened(
    text: str, scopes: Sequence[str] = (), creates: bool = False
) -> AsyncIterator[Any]:
    """The memory of a URL or path for the block, as an ``Opened``.

    Args:
        creates: a file that is not there is made.

    Raises:
        MemoryUnavailable: there is no such file.
        UnsupportedSchema: its layout is older than this code's.
    """
    memory = memory_named(text)
    check_file(memory, creates)
    narrowed: Opened = memory
    for tenant in scopes:
        narrowed = narrowed.scoped(tenant)
    try:
        yield narrowed
    finally:
        await memory.cleanup()


def check_file(memory: TurnMemory, creates: bool = False) -> None:
    """Refuse a file that opening it would make or change; do nothing for another memory."""
    path = file_of(memory)
    if path is None:
        return
    from session_middleware.stores.sqlite import examine

    if creates and not os.path.exists(path):
        return
    if not os.path.exists(path):
        raise MemoryUnavailable(
            f"there is no file {path}: name a memory with --memory or SESSION_MIDDLEWARE_MEMORY"
        )
    found = examine.layout(path)
    if found.current or (creates and os.path.getsize(path) == 0):
        return
    if os.path.getsize(path) == 0:
        raise MemoryUnavailable(f"{path} is empty: no conversation was stored in it yet")
    raise UnsupportedSchema(
        f"{path} has layout {found.version}, and this version of session-middleware uses "
        f"{found.newest}: run 'session-middleware migrate', when every service is upgraded"
    )


# --- the event loop ----------------------------------------------------------------------------


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C interrupts it wherever it is.

    asyncio's own handler only cancels the task, which a read or a write that blocks never hears.

    Raises:
        KeyboardInterrupt: after everything that had begun came to its end.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return asyncio.run(work)
    signal.signal(signal.SIGINT, _interrupt)  # asyncio replaces the default one only
    try:
        return asyncio.run(work)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


# --- commands --------------------------------------------------------------------------------


def memory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which memory, and how to write."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line."),
        click.option(
            "--scope",
            multiple=True,
            metavar="TENANT",
            help="Only the sessions of this tenant; again for a scope within it.",
        ),
        click.option(
            "--memory",
            metavar="URL",
            help="A URL such as sqlite:///chat.db, or the path of an SQLite file. Default: "
            f"SESSION_MIDDLEWARE_MEMORY, else {DEFAULT_MEMORY}.",
        ),
    ):
        command = option(command)
    return command


def chosen(values: dict[str, Any]) -> Chosen:
    """What the options of this command and those before its name say; taken out of ``values``."""
    context = click.get_current_context()
    before = context.find_object(Chosen)
    if before is None:
        before = Chosen(os.environ.get("SESSION_MIDDLEWARE_MEMORY") or DEFAULT_MEMORY)
    return before.with_options(values.pop("memory"), values.pop("scope"), values.pop("as_json"))


def with_memory(creates: bool = False) -> Callable[[Body], Callable[..., None]]:
    """Make a command of a coroutine function ``(memory, output, chosen, **options)``."""

    def decorate(body: Body) -> Callable[..., None]:
        @functools.wraps(body)
        def command(**values: Any) -> None:
            choice = chosen(values)
            output = Output(choice.as_json)

            async def work() -> None:
                async with opened(choice.memory, choice.scopes, creates) as memory:
                    await body(memory, output, choice, **values)

            run(work())
            output.flush()

        made: Callable[..., None] = memory_options(command)
        return made

    return decorate


def complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The ids of the memory that begin so, for a shell; none where it cannot be read."""
    with ctx:
        values = {name: ctx.params.get(name) for name in ("memory", "as_json")}
        choice = chosen({**values, "scope": ctx.params.get("scope") or ()})

    async def ids() -> list[str]:
        async with opened(choice.memory, choice.scopes) as memory:
            page = await memory.sessions(incomplete or None, _SUGGESTED, order="id")
        return [info.session_id for info in page]

    try:
        found = asyncio.run(ids())
    except Exception:
        return []  # a shell shows no errors
    return [each for each in found if shown(each) == each]
