"""Cursors: where a page of sessions ended, as a text that can stand in a URL. Pure."""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

_MARK = "c1."


class Cursor(NamedTuple):
    """The place of a session in an order: what it is sorted by, and its id among equals."""

    order: str
    key: str
    session_id: str

    def __str__(self) -> str:
        return _MARK + base64.urlsafe_b64encode(json.dumps(self).encode()).decode().rstrip("=")


def read(text: str) -> Cursor | None:
    """The cursor that this is the text of; None where it is none."""
    if not text.startswith(_MARK):
        return None
    body = text.removeprefix(_MARK)
    try:
        parts = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return None
    if not isinstance(parts, list) or len(parts) != 3:
        return None
    return Cursor(*parts) if all(isinstance(part, str) for part in parts) else None
