"""One daemon event loop per process, for work that must not depend on the user's loop.

Leases are renewed here, connections are opened here (a thread started from a daemon thread is
a daemon too, so an open connection never keeps a process alive), and code without a loop of its
own waits here for what is asynchronous. Nothing in this module knows what the work is.

A forked child starts with no loop and makes its own when it first needs one. At exit,
``at_exit`` callbacks run while the loop is still alive, for at most ``EXIT_SECONDS`` together.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_SECONDS = 5.0

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_exit_callbacks: list[Callable[[], Awaitable[None]]] = []
_unfinished: set[Future[Any]] = set()
_inherited: list[asyncio.AbstractEventLoop] = []


def loop() -> asyncio.AbstractEventLoop:
    """The process's background loop, started when it is first asked for."""
    global _loop
    running = _loop
    if running is not None:
        return running
    with _lock:
        if _loop is None:
            started = asyncio.new_event_loop()
            threading.Thread(
                target=started.run_forever, name="session-middleware", daemon=True
            ).start()
            _loop = started
        return _loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start ``work`` on the background loop and return at once; the exit waits for it."""
    future = asyncio.run_coroutine_threadsafe(work, loop())
    _unfinished.add(future)
    future.add_done_callback(_unfinished.discard)
    return future


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` on the background loop and block until it is done; for code without a loop.

    Interrupting the wait (KeyboardInterrupt) cancels the work.
    """
    future = submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def at_exit(callback: Callable[[], Awaitable[None]]) -> None:
    """Await ``callback()`` on the background loop when the interpreter exits."""
    if callback not in _exit_callbacks:
        _exit_callbacks.append(callback)


class Outcome(asyncio.Future[T]):
    """A future that cannot be cancelled: whoever awaits it is cancelled once it is done.

    asyncio is told so, and raises the cancellation in the waiting task then.
    """

    def cancel(self, msg: Any = None) -> bool:
        return False


async def settle(
    work: Awaitable[T],
) -> tuple[asyncio.Future[T], asyncio.CancelledError | None]:
    """Await ``work`` to its outcome whatever cancels the caller meanwhile.

    Returns the finished future and the cancellation that arrived, which the caller must raise
    once it has done what the outcome asks for.
    """
    task = asyncio.ensure_future(work)
    if isinstance(task, asyncio.Task):
        # A loop that shuts down cancels all tasks it knows of; this one is waited for by one
        # of those, and must come to its own end.
        asyncio._unregister_task(task)
    cancelled: asyncio.CancelledError | None = None
    done: Outcome[None] = Outcome(loop=task.get_loop())
    task.add_done_callback(lambda _: done.set_result(None))
    try:
        await done
    except asyncio.CancelledError as cancellation:
        cancelled = cancellation
    if not task.cancelled():
        task.exception()  # looked at here, so that nobody warns of it later
    return task, cancelled


async def finish(work: Awaitable[T]) -> T:
    """Await ``work`` to its outcome, then go on with the cancellation that arrived, if any.

    A write that has begun is never torn: its outcome is known before the cancellation goes on.
    An error of the work is lost to a caller that was cancelled.
    """
    task, cancelled = await settle(work)
    if cancelled is not None:
        raise cancelled
    return task.result()


def _run_exit_callbacks() -> None:
    if _loop is None:
        return
    futures_wait(list(_unfinished), EXIT_SECONDS)

    async def run_all() -> None:
        await asyncio.wait_for(
            asyncio.gather(*(callback() for callback in _exit_callbacks), return_exceptions=True),
            EXIT_SECONDS,
        )

    with contextlib.suppress(Exception):  # the process is leaving; leases end by themselves
        submit(run_all()).result(EXIT_SECONDS)


def _forget_after_fork() -> None:
    global _loop, _lock
    _lock = threading.Lock()
    if _loop is not None:
        _inherited.append(_loop)  # of the parent: closing it, or losing it, would be felt there
    _loop = None
    _unfinished.clear()


atexit.register(_run_exit_callbacks)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
