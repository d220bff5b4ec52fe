"""Items as text: checked, encoded, decoded.

Pure functions, which every store uses; everything of an item that a caller can get wrong is caught
here, before anything is stored.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pydantic_core

from session_middleware.errors import InvalidItem
from session_middleware.stores.records import Item

T = TypeVar("T")

MAX_DEPTH = 200
"""How deep an item may be nested, itself included.

The SDK copies the items of a run with two Python frames a level: from an empty stack it carries
485 levels, from one of 500 frames 235, and then the run dies with RecursionError.
"""

_STEP = 60_000  # characters of JSON that are encoded and compared in about two milliseconds
_COST_OF_ITEM = 150  # characters in whose time an item is begun and ended

_SCALARS = (str, int, float, bool, type(None))
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


COMPACTION_MARK = '"type": "compaction"'
"""Stands in the text of every item that stands for all before it; in no other, or hardly."""


# --- items as text -------------------------------------------------------------------------


def encode_items(items: Sequence[object]) -> list[str]:
    """Each item as the JSON text to store.

    What is decoded from a text equals the item it was made of, except that a tuple comes back
    as the list that JSON makes of it, and a subclass of a JSON type as that type.

    Raises:
        InvalidItem: naming the position of the first item that cannot be stored.
    """
    if isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Sequence):
        raise InvalidItem(0, f"items must come in a list, got {_kind(items)}")
    return [_encode_item(position, item) for position, item in enumerate(items)]


async def encode_in_steps(items: Sequence[object]) -> list[str]:
    """The same, while other tasks of the loop go on: many items take a while.

    Raises:
        InvalidItem: as ``encode_items``.
    """
    if isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Sequence):
        return encode_items(items)
    texts: list[str] = []
    encoded = 0
    for position, item in enumerate(list(items)):
        if encoded > _STEP:
            encoded = 0
            await asyncio.sleep(0)
        text = _encode_item(position, item)
        encoded += len(text) + _COST_OF_ITEM
        texts.append(text)
    return texts


def _encode_item(position: int, item: object) -> str:
    # Decoding the text again and comparing is faster than looking at every value in Python, and
    # it proves the round trip. An item that does not come back as it was is looked at closely.
    try:
        text = _encode(item)
        # In a list, so that the parser's limit of 200 levels lets no deeper item through.
        if type(item) is dict and pydantic_core.from_json(f"[{text}]") == [item]:
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
    except (TypeError, ValueError):  # its message may show the value
        raise InvalidItem(
            position, "each of its numbers must be JSON, got NaN, infinity or too many digits"
        ) from None
    except RecursionError as error:
        raise InvalidItem(position, "the stack has no room left to encode it") from error
    if _SURROGATE_PAIR.search(text):
        # As escapes the two would be read back as the one character they stand for.
        raise InvalidItem(
            position, "it has a character as two surrogates: decode its text as UTF-16"
        )
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def require_dicts(items: Sequence[object]) -> None:
    """Raise InvalidItem for the first of these that is no dict."""
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise InvalidItem(position, f"it must be a dict (a JSON object), got {_kind(item)}")


def _kind(value: object) -> str:
    """What the value is, and how to make a dict of it where that is known. Never its content."""
    kind = type(value).__name__
    if hasattr(value, "model_dump"):
        return f"{kind}: pass its .model_dump(exclude_unset=True)"
    if hasattr(value, "to_input_item"):
        return f"{kind}: pass its .to_input_item()"
    return kind


def _fault(item: object) -> str | None:
    """What keeps this item from being stored as JSON, or None; a cycle is endless nesting."""
    if not isinstance(item, dict):
        return f"it must be a dict (a JSON object), got {_kind(item)}"
    stack: list[tuple[Any, int]] = [(item, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"it must be nested at most {MAX_DEPTH} deep, which is what a run can carry"
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    return f"each of its keys must be a string, got {type(key).__name__}"
            children = value.values()
        else:
            children = value
        for child in children:
            if isinstance(child, (dict, list, tuple)):
                stack.append((child, depth + 1))
            elif not isinstance(child, _SCALARS):
                return f"each of its values must be JSON, got {_kind(child)}"
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
    # Nested deeper than a run can carry, by another writer or an earlier version: the same.
    return item if isinstance(item, dict) and _fault(item) is None else None
