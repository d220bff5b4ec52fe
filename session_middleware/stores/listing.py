"""What stores tell of sessions and of runs that wait, made from what they read. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from session_middleware.errors import DuplicateTurn, UnknownState
from session_middleware.stores.cursors import Cursor
from session_middleware.stores.items import decode_items
from session_middleware.stores.managed_store import (
    EXCERPT,
    LONGEST_SHOWN,
    Labels,
    PendingTurn,
    SessionInfo,
)
from session_middleware.stores.records import PendingCall, TurnState
from session_middleware.stores.sql import metadata_of


def info_of(
    session_id: str,
    *,
    created_at: datetime,
    updated_at: datetime,
    turns: int,
    items: int,
    size: int,
    title: str | None,
    metadata: dict[str, Any],
    state: TurnState | None,
    first: str | None,
    last: str | None,
    answer: str | None,
    cursor: Cursor,
) -> SessionInfo:
    """What is told of a session.

    Args:
        first, last: its first and last item as JSON, None where one is too long to be shown.
        answer: the newest output text of its turns.
    """
    question = _said(first, "user")
    answer = answer if answer is not None else _said(last, "assistant")
    return SessionInfo(
        session_id,
        created_at,
        updated_at,
        turns,
        items,
        size,
        title,
        metadata,
        state,
        None if question is None else question[:EXCERPT],
        None if answer is None else answer[:EXCERPT],
        str(cursor),
    )


def _said(text: str | None, role: str) -> str | None:
    """The words of the item, where somebody in that role said it."""
    if text is None or len(text) > LONGEST_SHOWN:
        return None
    (item,), _ = decode_items([text])
    if item is None or item.get("role") != role:
        return None
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    words = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(word for word in words if isinstance(word, str)) or None


def relabelled(
    title: str | None, metadata: str | None, labels: Labels
) -> tuple[str | None, str | None]:
    """Title and metadata of a session after the change; its metadata is the text of a column."""
    merged = {**metadata_of(metadata), **labels.metadata}
    merged = {name: value for name, value in merged.items() if value is not None}
    title = title if labels.title == "" else labels.title
    return title, json.dumps(merged) if merged else None


def decided(
    runs: Sequence[PendingTurn],
    session_id: str,
    turn: int,
    call_id: str,
    approved: bool,
    message: str | None,
) -> tuple[PendingTurn, tuple[PendingCall, ...]]:
    """The run among those of the turn in which the call waits, and its calls with the decision.

    Raises:
        DuplicateTurn: the call was decided before; that decision stands.
        UnknownState: no such call waits there.
    """
    for run in runs:
        for call in run.calls:
            if call.id == call_id and call.approved is None:
                done = replace(call, approved=approved, message=message)
                return run, tuple(done if each is call else each for each in run.calls)
            if call.id == call_id:
                raise DuplicateTurn(
                    f"call {call_id!r} of turn {turn} of session {session_id!r} was "
                    f"{'approved' if call.approved else 'rejected'} before, and that stands",
                    turn=turn,
                )
    raise UnknownState(
        f"no call {call_id!r} waits for approval in turn {turn} of session {session_id!r}: it was "
        "settled, or removed with its session"
    )
