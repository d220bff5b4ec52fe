"""install, uninstall and installed: the middleware for every Runner call of a process.

This module checks the settings and puts them in force; ``_entry.intercept`` applies them to a
call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

from session_middleware._entry.installation import (
    Installation,
    current_installation,
    put_installation,
)
from session_middleware._entry.intercept import ensure_intercepted, no_longer_needed
from session_middleware.errors import InvalidOption
from session_middleware.memory import SessionMemory
from session_middleware.memory_option import MemoryOption
from session_middleware.options import TurnOptions, make_options


def install(
    *,
    memory: MemoryOption | Callable[[Any], MemoryOption] = True,
    require_session_id: bool = False,
    observe: bool = False,
    **options: Unpack[TurnOptions],
) -> None:
    """Give every Runner call of this process a ``session_id=`` keyword.

    A call without a session id goes through untouched.

    Args:
        memory: as for ``with_session_memory``, or a function from the starting agent to one.
        require_session_id: raise SessionIdRequired for a call without a session id. Default
            False.
        observe: also trace and count runs that bring a ``session=`` of another kind. Default
            False.
        options: see ``with_session_memory``.

    Raises:
        InvalidOption: an option is wrong, or install() was called before with other settings.

    >>> install(memory=":memory:")
    >>> uninstall()
    """
    chosen = callable(memory) and not isinstance(memory, (SessionMemory, type))
    new = Installation(
        memory=memory if chosen else None,
        options=make_options(None if chosen else memory, dict(options)),  # type: ignore[arg-type]
        require_session_id=require_session_id,
        observe=observe,
    )
    if current_installation() not in (None, new):
        raise InvalidOption(
            "install() was called before with other settings: call uninstall() first, or use "
            "installed(...) for a limited time"
        )
    ensure_intercepted(install)
    put_installation(new)


def uninstall() -> None:
    """End what ``install`` began; no error if it was not called."""
    put_installation(None)
    no_longer_needed(install)


@contextmanager
def installed(
    *,
    memory: MemoryOption | Callable[[Any], MemoryOption] = True,
    require_session_id: bool = False,
    observe: bool = False,
    **options: Unpack[TurnOptions],
) -> Iterator[None]:
    """``install`` for the length of a block; the earlier installation comes back after it.

    Takes and raises the same as ``install``.

    >>> with installed(memory=":memory:"):
    ...     pass
    """
    before = put_installation(None)
    try:
        install(memory=memory, require_session_id=require_session_id, observe=observe, **options)
        yield
    finally:
        put_installation(before)
        if before is None:
            no_longer_needed(install)
