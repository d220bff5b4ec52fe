"""What a session memory is: the interface, the records, and what only some memories can do.

Contracts only. Nothing here stores, runs, logs or traces, and nothing here imports a store.

``SessionMemory`` is what everybody implements. What a memory can do beyond it is in
``stores.protocol``.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from session_middleware.errors import InvalidSessionId
from session_middleware.stores.records import Items

if TYPE_CHECKING:
    from agents import SessionABC

MAX_SESSION_ID = 512


def check_session_id(session_id: object) -> str:
    """Return the id if it can name a session.

    Raises:
        InvalidSessionId: it is no string, blank, longer than 512 characters, or has control
            characters or lone surrogates.
    """
    if not isinstance(session_id, str):
        raise InvalidSessionId(
            'session_id must be a string such as "user-42", got a value of type '
            f"{type(session_id).__name__}"
        )
    if not session_id.strip():
        raise InvalidSessionId(
            f'session_id must not be blank, got {session_id[:20]!r}: pass one such as "user-42"'
        )
    if len(session_id) > MAX_SESSION_ID:
        raise InvalidSessionId(
            f"session_id must have at most {MAX_SESSION_ID} characters, got {len(session_id)}: use "
            "a digest of it"
        )
    if session_id.isprintable():  # has neither, and most ids are
        return session_id
    for index, character in enumerate(session_id):
        category = unicodedata.category(character)
        if category in ("Cc", "Cs"):
            kind = "a control character" if category == "Cc" else "a lone surrogate"
            raise InvalidSessionId(
                f"session_id must not have {kind}, got U+{ord(character):04X} at position {index}"
            )
    return session_id


# --- sessions taken away -------------------------------------------------------------------

_release_listener: Callable[[Hashable, str], None] | None = None


def set_release_listener(listener: Callable[[Hashable, str], None]) -> None:
    """Have ``listener(identity, session_id)`` told of sessions taken away; called by the core."""
    global _release_listener
    _release_listener = listener


def tell_released(identity: Hashable, session_id: str) -> None:
    """Say that whoever held the session has lost it, so that nobody here waits for its end."""
    if _release_listener is not None:
        _release_listener(identity, session_id)


# --- parked runs ---------------------------------------------------------------------------

_restorer: Callable[[Any, Any, Any], Awaitable[Any]] | None = None


def set_restorer(restorer: Callable[[Any, Any, Any], Awaitable[Any]]) -> None:
    """Tell ``PendingTurn.restore`` how a state is made again; called once, by the core.

    ``restorer`` is given the PendingTurn, the agent and the user's context object.
    """
    global _restorer
    _restorer = restorer


async def restored(pending: object, agent: Any, context: Any) -> Any:
    """The state of a run that waits for approval, made again."""
    if _restorer is None:  # pragma: no cover - the package itself sets it on import
        raise RuntimeError("import session_middleware before restoring a state")
    return await _restorer(pending, agent, context)


# --- the interface -------------------------------------------------------------------------

_make_view: Callable[[SessionMemory, str], SessionABC] | None = None
_expect_views: Callable[[SessionMemory], None] | None = None


def set_view_factory(
    factory: Callable[[SessionMemory, str], SessionABC],
    expect: Callable[[SessionMemory], None],
) -> None:
    """Tell ``SessionMemory`` how views are made; called once, by the entry layer.

    ``expect`` is told of each memory that is made: in ``Runner.run(..., session=m.session("a"))``
    Python looks up the method before it makes the view, which would be too late to wrap it.
    """
    global _make_view, _expect_views
    _make_view, _expect_views = factory, expect


class SessionMemory(ABC):
    """Where conversations are kept, by session id. Subclass it to bring your own storage.

    The six abstract methods are all a memory needs. A history is a list of items in the order
    of the conversation; an unknown session has an empty one.

    Attributes:
        capabilities: the names, of those in ``stores.protocol``, of what the memory can do
            beyond the six methods; none by default.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls.__init__ is object.__init__ and (args or kwargs):  # as without this method
            raise TypeError(f"{cls.__name__}() takes no arguments")
        memory = super().__new__(cls)
        if _expect_views is not None:
            _expect_views(memory)
        return memory

    @abstractmethod
    async def load_session(self, session_id: str) -> Items:
        """Return the whole history, oldest item first; an empty list for an unknown session."""

    @abstractmethod
    async def save_session(self, session_id: str, conversation_history: Items) -> None:
        """Replace the history by this one."""

    @abstractmethod
    async def append_to_session(self, session_id: str, new_items: Items) -> None:
        """Add items at the end of the history."""

    @abstractmethod
    async def clear_session(self, session_id: str) -> None:
        """Forget the session; no error where there is none."""

    @abstractmethod
    async def list_sessions(self) -> list[str]:
        """Return the ids of all sessions."""

    @abstractmethod
    async def session_exists(self, session_id: str) -> bool:
        """Return whether there is a session of this id."""

    async def cleanup(self) -> None:  # noqa: B027 - optional on purpose: most memories have nothing to free
        """Free what the memory holds. Does nothing unless a memory says otherwise."""

    def session(self, session_id: str) -> SessionABC:
        """Return a view of one session in the SDK's own ``Session`` protocol.

        Passed as ``session=`` to a Runner method it makes that run a full turn; its methods can
        also be called directly.

        Raises:
            InvalidSessionId: the id cannot name a session.
        """
        if _make_view is None:  # pragma: no cover - the package itself sets it on import
            raise RuntimeError("import session_middleware before making a session view")
        return _make_view(self, check_session_id(session_id))

    @property
    def whole(self) -> SessionMemory:
        """The memory that has the sessions: itself, unless it is a scope of another."""
        return self

    def full_id(self, session_id: str) -> str:
        """Return the id under which this memory stores the session: the id itself, if not scoped.

        Raises:
            InvalidSessionId: the id cannot name a session.
        """
        return check_session_id(session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.cleanup()
