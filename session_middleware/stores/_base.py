"""What our stores share: ids and items checked and encoded, the six methods over the primitives.

A store implements ``SupportsTurns`` and a few writes of flat histories; everything a caller can
get wrong is caught here, before anything is stored.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import pydantic_core

from session_middleware.errors import InvalidItem
from session_middleware.memory import (
    HeldTurn,
    Item,
    Lease,
    SessionMemory,
    TurnRecord,
    check_session_id,
    held_turn,
)

MAX_DEPTH = 900

_SCALARS = (str, int, float, bool, type(None))


def _fault(item: object) -> str | None:
    """What keeps this item from being stored as JSON, or None."""
    if not isinstance(item, dict):
        return f"it is {type(item).__name__}, not a dict (a JSON object)"
    stack: list[tuple[Any, int]] = [(item, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"it is nested deeper than {MAX_DEPTH}"
        if isinstance(value, dict):
            for key, child in value.items():
                if not isinstance(key, str):
                    return f"its key {key!r} is {type(key).__name__}, not a string"
                if isinstance(child, (dict, list, tuple)) or not isinstance(child, _SCALARS):
                    stack.append((child, depth + 1))
        elif isinstance(value, (list, tuple)):
            for child in value:
                if isinstance(child, (dict, list, tuple)) or not isinstance(child, _SCALARS):
                    stack.append((child, depth + 1))
        elif not isinstance(value, _SCALARS):
            return f"it holds a {type(value).__name__}, which is not JSON"
    return None


def encode_items(items: Sequence[object]) -> list[str]:
    """Each item as the JSON text to store.

    Raises:
        InvalidItem: naming the position of the first item that cannot be stored.
    """
    if isinstance(items, (str, bytes, dict)) or not isinstance(items, Sequence):
        raise InvalidItem(0, f"items come in a list, not in {type(items).__name__}")
    texts: list[str] = []
    for position, item in enumerate(items):
        fault = _fault(item)
        if fault is not None:
            raise InvalidItem(position, fault)
        try:
            text = json.dumps(item, allow_nan=False, ensure_ascii=False)
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:  # a lone surrogate: written as an escape
                    text = json.dumps(item, allow_nan=False, ensure_ascii=True)
        except ValueError as error:
            raise InvalidItem(position, f"it is not JSON ({error})") from error
        except RecursionError as error:
            raise InvalidItem(position, f"it is nested deeper than {MAX_DEPTH}") from error
        texts.append(text)
    return texts


def decode_items(texts: Sequence[str]) -> tuple[list[Item | None], int]:
    """The items of these texts, None in place of a corrupt one, and how many are corrupt.

    All texts are decoded in one go, which is several times faster than one by one; only where
    that fails, each is looked at for itself.
    """
    if not texts:
        return [], 0
    try:
        items = pydantic_core.from_json("[" + ",".join(texts) + "]")
    except ValueError:
        items = None
    if items is not None and len(items) == len(texts) and all(type(i) is dict for i in items):
        return items, 0
    decoded: list[Item | None] = []
    corrupt = 0
    for text in texts:
        try:
            item = json.loads(text)
        except (ValueError, RecursionError, TypeError):
            item = None
        if not isinstance(item, dict):
            item = None
            corrupt += 1
        decoded.append(item)
    return decoded, corrupt


_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*@")


def without_password(text: str) -> str:
    """The text with the user name and password taken out of every URL in it."""
    return _CREDENTIALS.sub(r"\g<scheme>***@", text)


class TurnMemory(SessionMemory):
    """A memory with turns: the six methods of the interface, over the store's primitives."""

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
        """Put these turns in place of the history.

        Without a lease the session is taken from whoever holds it. With one, the current turn
        stays and all items become its own, under a run of their own.
        """

    @abstractmethod
    async def forget_session(self, session_id: str, lease: Lease | None) -> None:
        """Remove the session; with a lease, all its items, and the current turn goes on."""

    def _held(self, session_id: str) -> HeldTurn | None:
        return held_turn(self.identity, session_id)

    async def load_session(self, session_id: str) -> list[Item]:
        """Return the whole history, oldest item first."""
        return await self.load_items(check_session_id(session_id))

    async def append_to_session(self, session_id: str, new_items: list[Item]) -> None:
        """Add items: within the current turn of this session, else as a turn of their own."""
        check_session_id(session_id)
        held = self._held(session_id)
        if held is not None and held.lease is not None:
            await self.append_items(held.lease, held.next_run(), 0, new_items)
        else:
            await self.append_turn(session_id, new_items)

    @abstractmethod
    async def turns(
        self, session_id: str, limit: int | None = None, before: int | None = None
    ) -> list[TurnRecord]:
        """The session's turns, newest first, with their items."""
