"""What our stores share: ids and items checked and encoded, the six methods over the primitives.

A store implements ``SupportsTurns`` and a few writes of flat histories; everything a caller can
get wrong is caught here, before anything is stored. No I/O, and nothing of any one backend.
"""

from __future__ import annotations

import json
import re
import threading
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, TypeVar

import pydantic_core

from session_middleware.errors import InvalidItem
from session_middleware.history import split
from session_middleware.memory import (
    HeldTurn,
    Item,
    Items,
    Lease,
    SessionMemory,
    TurnRecord,
    check_session_id,
    held_turn,
    tell_released,
)

T = TypeVar("T")

MAX_DEPTH = 900

_SCALARS = (str, int, float, bool, type(None))
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


# --- items as text -------------------------------------------------------------------------


def encode_items(items: Sequence[object]) -> list[str]:
    """Each item as the JSON text to store.

    What is decoded from a text equals the item it was made of, except that a tuple comes back
    as the list that JSON makes of it, and a subclass of a JSON type as that type.

    Raises:
        InvalidItem: naming the position of the first item that cannot be stored.
    """
    if isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Sequence):
        raise InvalidItem(0, f"items come in a list, not in {type(items).__name__}")
    return [_encode_item(position, item) for position, item in enumerate(items)]


def _encode_item(position: int, item: object) -> str:
    # Reading the text back and comparing is faster than looking at every value in Python, and
    # it proves the round trip. Whatever does not come back as it was is looked at closely.
    try:
        text = _encode(item)
        if type(item) is dict and pydantic_core.from_json(text) == item:
            return text
    except (TypeError, ValueError, RecursionError):
        pass
    return _encode_closely(position, item)


def _encode_closely(position: int, item: object) -> str:
    fault = _fault(item)
    if fault is not None:
        raise InvalidItem(position, fault)
    try:
        text = _with_room(_encode, item)
    except (TypeError, ValueError) as error:  # NaN, Infinity, an integer of too many digits
        raise InvalidItem(position, f"it is not JSON ({error})") from error
    except RecursionError as error:
        raise InvalidItem(position, "it is nested deeper than this interpreter allows") from error
    if _SURROGATE_PAIR.search(text):
        # As escapes the two would be read back as the one character they stand for.
        raise InvalidItem(position, "it has a character as two surrogates: decode it as UTF-16")
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _fault(item: object) -> str | None:
    """What keeps this item from being stored as JSON, or None; a cycle is endless nesting."""
    if not isinstance(item, dict):
        return f"it is {type(item).__name__}, not a dict (a JSON object)"
    stack: list[tuple[Any, int]] = [(item, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"it is nested deeper than {MAX_DEPTH}"
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    return f"one of its keys is {type(key).__name__}, not a string"
            children = value.values()
        else:
            children = value
        for child in children:
            if isinstance(child, (dict, list, tuple)):
                stack.append((child, depth + 1))
            elif not isinstance(child, _SCALARS):
                return f"it holds a {type(child).__name__}, which is not JSON"
    return None


def _with_room(work: Callable[[Any], T], value: Any) -> T:
    """``work(value)``; in a fresh thread where this one's stack is too full for it.

    The C encoder and decoder count their nesting against the recursion limit, on top of the
    frames that are there already.
    """
    try:
        return work(value)
    except RecursionError:
        pass
    outcome: list[T] = []
    failure: list[BaseException] = []

    def attempt() -> None:
        try:
            outcome.append(work(value))
        except (ValueError, TypeError, RecursionError) as error:
            failure.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def decode_items(texts: Sequence[str]) -> tuple[list[Item | None], int]:
    """The items of these texts, None in place of a corrupt one, and how many are corrupt.

    All texts are decoded in one go, which is several times faster than one by one; only where
    that fails, each is looked at for itself.
    """
    if not texts:
        return [], 0
    try:
        items = pydantic_core.from_json("[" + ",".join(texts) + "]")
    except (ValueError, TypeError):
        items = None
    if items is not None and len(items) == len(texts) and set(map(type, items)) == {dict}:
        return items, 0
    decoded = [_decode_item(text) for text in texts]
    return decoded, decoded.count(None)


def decode_joined(text: bytes | None, count: int) -> list[Item] | None:
    """These items, joined by commas; None where there are not so many, or one is corrupt."""
    try:
        items: list[Any] = pydantic_core.from_json(b"[" + (text or b"") + b"]")
    except ValueError:
        return None
    return items if len(items) == count and set(map(type, items)) <= {dict} else None


def _decode_item(text: object) -> Item | None:
    try:
        item = _with_room(json.loads, text)
    except (ValueError, TypeError, RecursionError):
        return None  # not JSON: the caller counts and reports it, the storage keeps it
    return item if isinstance(item, dict) else None


# --- what may be shown ---------------------------------------------------------------------

_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_SECRET_OPTION = re.compile(
    r"(?i)(?P<name>[?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)[^&\s]*"
)


def without_password(text: str) -> str:
    """The text with names and passwords taken out of every URL in it, rather too much than less."""
    return _SECRET_OPTION.sub(r"\g<name>***", _CREDENTIALS.sub(r"\g<scheme>***@", text))


# --- the six methods -----------------------------------------------------------------------


class TurnMemory(SessionMemory):
    """A memory with turns: the six methods of the interface, over the store's primitives.

    Runs do not come through the six: a subclass that changes what is kept overrides
    ``append_items``, ``load_turns`` and ``load_items``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        defined = [vars(kind).keys() for kind in cls.__mro__]
        first = {name: at for at, names in reversed([*enumerate(defined)]) for name in names}
        if "write_turn" in first and first["write_turn"] > min(
            first["append_items"], first["end_turn"]
        ):
            # Runs would not come by what this class changes: it has no SupportsTurnWrites.
            cls.write_turn = None  # type: ignore[attr-defined]
        if first.get("stores_with_taking", -1) > min(
            first["append_items"], first.get("write_turn", len(defined))
        ):
            cls.stores_with_taking = False  # as above

    reads_with_taking: ClassVar[bool] = False
    stores_with_taking: ClassVar[bool] = False

    closed: bool = False
    """Whether ``cleanup`` was called; a store sets it, and raises MemoryClosed from then on."""

    @property
    @abstractmethod
    def identity(self) -> Hashable: ...

    @abstractmethod
    async def load_items(
        self, session_id: str, *, turn: int | None = None, limit: int | None = None
    ) -> list[Item]: ...

    @abstractmethod
    async def append_items(
        self,
        lease: Lease,
        run: int,
        position: int,
        items: Sequence[Item],
        *,
        input_digest: str | None = None,
    ) -> None: ...

    @abstractmethod
    async def append_turn(self, session_id: str, items: Sequence[Item]) -> None:
        """Store items as a completed turn of their own, after every turn there is."""

    @abstractmethod
    async def replace_history(
        self, session_id: str, turns: Sequence[Sequence[Item]], lease: Lease | None
    ) -> None:
        """Put these turns in place of the history; with no turns, an empty session exists.

        Without a lease the session is taken from whoever holds it. With one, the current turn
        stays and all items become its own, as its run 0, which no Runner run ever is.
        """

    @abstractmethod
    async def forget_session(self, session_id: str, lease: Lease | None) -> None:
        """Remove the session; with a lease, all but the current turn, which goes on empty."""

    async def _held(self, session_id: str) -> HeldTurn | None:
        """The turn that this context holds on the session, with all its items stored, or None."""
        held = held_turn(self.identity, session_id)
        if held is not None:
            await held.settle()
        return held

    async def _lease(self, session_id: str) -> Lease | None:
        """The lease of that turn, or None."""
        held = await self._held(session_id)
        return None if held is None else held.lease

    async def load_session(self, session_id: str) -> Items:
        """Return the whole history, oldest item first; an empty list for an unknown session."""
        await self._held(check_session_id(session_id))
        return await self.load_items(session_id)

    async def save_session(self, session_id: str, conversation_history: Items) -> None:
        """Replace the history by this one, split into turns.

        Each user message that follows an item of another kind begins a turn. Within the current
        turn of this session the whole history becomes that turn's. From outside, a turn that
        runs there loses the session (TurnLost).

        Raises:
            InvalidSessionId, InvalidItem: nothing was changed.
        """
        check_session_id(session_id)
        encode_items(conversation_history)  # a fault is named by its position in the whole list
        lease = await self._lease(session_id)
        await self.replace_history(session_id, split(conversation_history), lease)
        if lease is None:
            tell_released(self.identity, session_id)

    async def append_to_session(self, session_id: str, new_items: Items) -> None:
        """Add items: within the current turn of this session, else as a turn of their own.

        Raises:
            InvalidSessionId, InvalidItem: nothing was stored.
            TurnLost: the current turn no longer holds the session.
        """
        check_session_id(session_id)
        if isinstance(new_items, list) and not new_items:
            return
        held = await self._held(session_id)
        if held is not None and held.lease is not None:
            await self.append_items(held.lease, held.next_run(), 0, new_items)
        else:
            await self.append_turn(session_id, new_items)

    async def clear_session(self, session_id: str) -> None:
        """Forget the session; no error where there is none.

        Within the current turn of this session that turn goes on with nothing stored. From
        outside, a turn that runs there loses the session (TurnLost).
        """
        lease = await self._lease(check_session_id(session_id))
        await self.forget_session(session_id, lease)
        if lease is None:
            tell_released(self.identity, session_id)

    @abstractmethod
    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items."""
