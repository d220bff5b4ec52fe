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
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from typing import Any, TypeVar

from session_middleware._fork import Step, at_fork
from session_middleware.errors import MemoryUnavailable, SessionMemoryError

T = TypeVar("T")

EXIT_SECONDS = 5.0
_LOOP_DESCRIPTORS = 3  # a selector and a pair of sockets

_NEEDED_AS_THEY_ARE = ("threading", "queue", "select", "socket")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_exit_callbacks: list[Callable[[], Awaitable[None]]] = []
_unfinished: set[Future[Any]] = set()
_inherited: list[asyncio.AbstractEventLoop] = []


def loop() -> asyncio.AbstractEventLoop:
    """The process's background loop, started when it is first asked for.

    Raises:
        MemoryUnavailable: the process may open no more files, or start no more threads; the
            next call tries again.
    """
    global _loop
    running = _loop
    if running is not None:
        return running
    with _lock:
        if _loop is None:
            _loop = _start_loop()
        return _loop


def check_threads() -> None:
    """Refuse to work where threads are no threads.

    Raises:
        SessionMemoryError: gevent or eventlet has replaced them, or what their event loops wait
            by, with greenlets. Those share one thread, and one thread runs one event loop.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and any(map(gevent.is_module_patched, _NEEDED_AS_THEY_ARE)):
        patched = "gevent.monkey"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        patched = "eventlet"
    else:
        return
    raise SessionMemoryError(
        f"a session needs real threads, and {patched} has patched this process: run agents that "
        "have sessions in a process that is not patched, such as a worker of another class"
    )


def _start_loop() -> asyncio.AbstractEventLoop:
    check_threads()
    started = None
    try:
        _check_descriptors()
        started = asyncio.new_event_loop()
        threading.Thread(target=started.run_forever, name="session-middleware", daemon=True).start()
    except (OSError, RuntimeError) as error:  # RuntimeError: "can't start new thread"
        if started is not None:
            started.close()
        raise MemoryUnavailable(
            f"the thread that memories are served by cannot be started ({error}): let this "
            "process open more files and start more threads, then try again"
        ) from error
    return started


def loop_is_running() -> bool:
    """Whether this thread runs an event loop, so that it must not block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _check_descriptors() -> None:
    """Raise OSError where a new loop would; half made, it would complain on stderr as it goes."""
    opened: list[int] = []
    try:
        for _ in range(_LOOP_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start ``work`` on the background loop and return at once; the exit waits for it.

    Raises:
        MemoryUnavailable: there is no loop and none can be started; ``work`` is closed.
    """
    try:
        running = loop()
    except MemoryUnavailable:
        work.close()
        raise
    future = asyncio.run_coroutine_threadsafe(work, running)
    _unfinished.add(future)
    future.add_done_callback(_unfinished.discard)
    return future


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` on the background loop and block until it is done; for code without a loop.

    Interrupting the wait (KeyboardInterrupt) cancels the work. Where the background loop cannot
    start, the work runs here: a run that may go on without memory does so.
    """
    try:
        loop()
    except MemoryUnavailable as error:
        try:
            return asyncio.run(work)
        except OSError:  # nor is there room for a loop of our own
            work.close()
            raise error from error.__cause__
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


async def run_shielded(
    work: Awaitable[T],
) -> tuple[asyncio.Future[T], asyncio.CancelledError | None]:
    """Await ``work`` to its outcome whatever cancels the caller meanwhile.

    Returns the finished future and the cancellation that arrived, which the caller must raise
    once it has done what the outcome asks for.
    """
    loop = asyncio.get_running_loop()
    done: Outcome[None] = Outcome(loop=loop)

    async def carry() -> T:
        try:
            return await work
        finally:
            if not loop.is_closed():
                done.set_result(None)

    task = loop.create_task(carry())
    # A loop that shuts down cancels all tasks it knows of; this one is waited for by one of
    # those, and must come to its own end.
    asyncio._unregister_task(task)
    cancelled: asyncio.CancelledError | None = None
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
    task, cancelled = await run_shielded(work)
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
at_fork(Step.BACKGROUND_LOOP, _forget_after_fork)
