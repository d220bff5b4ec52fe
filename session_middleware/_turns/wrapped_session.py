"""A session of the SDK's that wraps a view of ours, such as ``EncryptedSession``, in a turn.

The SDK is given a proxy of the user's wrapper, which passes for it in every way. What the wrapper
then asks of the view, on behalf of that run, is done by the session of the run: so the run is a
full turn. The wrapper used directly, in a tool say, asks the view itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import wrapt

from session_middleware.errors import ConflictingMemory

if TYPE_CHECKING:
    from session_middleware._turns.turn import ActiveTurn


class SessionOfRun(Protocol):
    """The session of a run, as a view needs it."""

    @property
    def session_id(self) -> str: ...
    async def get_items(self, limit: int | None = None) -> Any: ...
    async def add_items(self, items: Any, before: Any = None) -> None: ...
    async def pop_item(self) -> Any: ...
    async def clear_session(self) -> None: ...


@dataclass(eq=False, slots=True)
class Asking:
    """A run on whose behalf a wrapper asks its view.

    Attributes:
        run: the session of the run.
        added: the items that the SDK handed to the wrapper last, before it changed them.
    """

    run: SessionOfRun
    added: Any = None


_asking: ContextVar[Asking | None] = ContextVar("session_middleware.asking", default=None)


def asking_run(session_id: str) -> Asking | None:
    """The run on whose behalf the view of this session is asked; None where it is used directly."""
    asking = _asking.get()
    return asking if asking is not None and asking.run.session_id == session_id else None


class WrappedSession(wrapt.BaseObjectProxy[Any]):
    """A user's wrapper around a view, for one run."""

    def __init__(self, wrapper: Any, run: SessionOfRun) -> None:
        super().__init__(wrapper)
        self._self_asking = Asking(run)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if not inspect.ismethod(value):
            return value
        # Wrapped, so that the signature stays: the SDK looks at it.
        return wrapt.FunctionWrapper(value, self._self_call)

    def _self_call(self, method: Any, instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if method.__name__ == "add_items":
            self._self_asking.added = args[0] if args else kwargs.get("items")
        with _asking_for(self._self_asking):
            result = method(*args, **kwargs)
        return self._self_await(result) if inspect.isawaitable(result) else result

    async def _self_await(self, result: Awaitable[Any]) -> Any:
        with _asking_for(self._self_asking):
            return await result

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


@contextmanager
def _asking_for(asking: Asking) -> Iterator[None]:
    token = _asking.set(asking)
    try:
        yield
    finally:
        _asking.reset(token)


def refuse_opaque_items(turn: ActiveTurn, wrapper: object) -> None:
    """Refuse options that depend on items which a wrapper makes unreadable.

    Raises:
        ConflictingMemory: the turn has an idempotency key, or its options redact items.
    """
    key, redact = turn.idempotency_key, turn.options.redact
    given = "redact=" if redact is not None else "idempotency_key=" if key is not None else None
    if given is not None:
        raise ConflictingMemory(
            f"{wrapper.__class__.__name__} changes the items of session {turn.session_id!r} before "
            f"they are stored, and {given} needs them as they are: leave one of the two out"
        )
