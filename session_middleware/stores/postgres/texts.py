"""Short texts of a record as PostgreSQL can store them.

A ``text`` there has no U+0000 and no lone surrogate. A text that has one is stored as JSON behind
an escape character, every other one as it is. Items are JSON already and do not come here.
"""

from __future__ import annotations

import json
from typing import Any

_ESCAPED = "\x1bjson:"


def storable(text: str | None) -> str | None:
    """The text to store."""
    if text is None or not (text.startswith(_ESCAPED) or "\0" in text or _has_surrogate(text)):
        return text
    return _ESCAPED + json.dumps(text)


def readable(text: str | None) -> str | None:
    """The text that was stored so."""
    if text is None or not text.startswith(_ESCAPED):
        return text
    try:
        found = json.loads(text.removeprefix(_ESCAPED))
    except ValueError:
        return text  # written by somebody else
    return found if isinstance(found, str) else text


def storable_value(value: Any) -> Any:
    """The value of a column, of whatever type."""
    return storable(value) if isinstance(value, str) else value


def readable_value(value: Any) -> Any:
    """The value of a column that was stored so."""
    return readable(value) if isinstance(value, str) else value


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
