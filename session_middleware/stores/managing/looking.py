"""Looking at conversations, and what people note on them: titles, metadata, decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from session_middleware.errors import InvalidItem, InvalidOption
from session_middleware.memory import check_session_id
from session_middleware.stores import replay
from session_middleware.stores.cursors import Cursor
from session_middleware.stores.cursors import read as read_cursor
from session_middleware.stores.items import encode_items
from session_middleware.stores.managed_store import (
    Labels,
    Order,
    PendingQuery,
    PendingTurn,
    SessionInfo,
    SessionQuery,
)
from session_middleware.stores.managing.held import Managed, no_session, prefix_of
from session_middleware.stores.numbers import MOST, whole_number
from session_middleware.stores.records import Item, TurnRecord
from session_middleware.stores.reported import reported

_LONGEST_TITLE = 1_000
_ORDERS = ("updated", "created", "id")


class Looking(Managed):
    """The methods that change no history."""

    async def sessions(
        self,
        prefix: str | None = None,
        limit: int = 100,
        after: SessionInfo | str | None = None,
        order: Order = "updated",
    ) -> list[SessionInfo]:
        """Return one page of sessions, in one query, without their items.

        Args:
            prefix: only ids that begin with it, character for character.
            limit: at most this many; 1 or more.
            after: the last session of the page before, its ``cursor``, or its id.
            order: "updated" (the last activity first), "created" (the newest first) or "id".

        Raises:
            InvalidOption: a wrong value.

        Example:
            page = await memory.sessions(prefix="user-42:")
            older = await memory.sessions(prefix="user-42:", after=page[-1]) if page else []
        """
        self._require_manage()
        whole_number("limit", limit, at_least=1)
        if order not in _ORDERS:
            raise InvalidOption(f"order must be one of {', '.join(map(repr, _ORDERS))}")
        query = SessionQuery(prefix_of(prefix), min(limit, MOST), order=order)
        return await self.list_page(replace(query, after=await self._cursor(after, order)))

    async def _cursor(self, after: SessionInfo | str | None, order: Order) -> Cursor | None:
        """Where the page begins; the id of a session stands for that session."""
        if after is None:
            return None
        if not isinstance(after, (SessionInfo, str)):
            raise InvalidOption(
                f"after must be a SessionInfo, its cursor or None, got {type(after).__name__}"
            )
        text = after if isinstance(after, str) else after.cursor
        cursor = read_cursor(text)
        if cursor is None:
            named = SessionQuery(session_id=check_session_id(text), limit=1, order=order)
            page = await self.list_page(named)
            cursor = read_cursor(page[0].cursor) if page else None
        if cursor is None or cursor.order != order:
            raise InvalidOption(f"after must be from a page in the order {order!r}")
        return cursor

    async def session_info(self, session_id: str) -> SessionInfo | None:
        """Return what is known of one session; None where nothing is stored in it."""
        self._require_manage()
        return await self._info(session_id)

    async def find_turn(self, trace_id: str) -> TurnRecord | None:
        """Return the turn that a trace is of, with its items; None where no turn has it.

        Args:
            trace_id: an OpenTelemetry trace id as hexadecimal digits, or the SDK's "trace_...".
        """
        self._require_manage()
        if not isinstance(trace_id, str) or not trace_id.strip():
            raise InvalidOption("trace_id must be the id of a trace, such as 'trace_4f1c...'")
        wanted = trace_id.strip()
        place = await self.find_trace(wanted if wanted.startswith("trace_") else wanted.lower())
        if place is None:
            return None
        session_id, turn = place
        return await self._record_of(session_id, turn)

    async def history_at(
        self, session_id: str, turn: int, run: int = 1, call: int = 1
    ) -> list[Item]:
        """Return the items that a model call was given, equal to what the SDK handed over.

        The history after window and repair, the run's input, and its items up to the call.
        Instructions are the agent's, and what a ``call_model_input_filter`` of the user's changes
        is not seen here. Where ``redact`` changed what was stored, this is the redacted form.

        Args:
            session_id: the session.
            turn: the number of the turn.
            run: the run of the turn, from 1.
            call: the model call of the run, from 1.

        Raises:
            InvalidOption: the memory knows no such call.
        """
        self._require_manage()
        check_session_id(session_id)
        for name, value in (("turn", turn), ("run", run), ("call", call)):
            whole_number(name, value, at_least=1)
        record = await self._record_of(session_id, turn)
        wanted = replay.wanted_turns(record, session_id, turn, run)
        copies = await self._copies_between(session_id, *wanted)
        return replay.given(copies, record, run, call)

    async def pending(
        self, session_id: str | None = None, prefix: str | None = None
    ) -> list[PendingTurn]:
        """Return the runs that wait for approval, the one that waits longest first.

        Args:
            session_id: only of this session.
            prefix: only of sessions whose id begins with it.

        Example:
            for waiting in await memory.pending(prefix="user-42:"):
                print(waiting.session_id, [call.name for call in waiting.calls])
        """
        self._require_manage()
        if session_id is not None:
            check_session_id(session_id)
        return await self.parked_runs(PendingQuery(session_id, prefix_of(prefix)))

    @reported("update_memory")
    async def decide(
        self,
        session_id: str,
        turn: int,
        call_id: str,
        approve: bool = True,
        message: str | None = None,
    ) -> None:
        """Note a person's decision on a call that waits; the first one stands.

        Nothing runs now: ``PendingTurn.restore`` applies the decision where the run is resumed.

        Args:
            session_id, turn, call_id: as ``pending`` tells them.
            approve: whether the tool may run.
            message: what the model is told of a rejected call; None: the SDK's own words.

        Raises:
            DuplicateTurn: the call was decided before.
            UnknownState: no such call waits there.
        """
        self._require_manage()
        check_session_id(session_id)
        whole_number("turn", turn, at_least=1)
        if not isinstance(call_id, str) or not isinstance(approve, bool):
            raise InvalidOption("call_id must be a string, and approve True or False")
        if message is not None and not isinstance(message, str):
            raise InvalidOption(f"message must be a string, got {type(message).__name__}")
        if message is not None and approve:
            raise InvalidOption("message is what the model is told of a call that is rejected")
        await self.note_decision(session_id, turn, call_id, approved=approve, message=message)

    # --- labels ----------------------------------------------------------------------------

    @reported("update_memory")
    async def set_title(self, session_id: str, title: str | None) -> None:
        """Give the session a title of at most 1,000 characters; None removes it.

        Raises:
            InvalidSessionId: there is no such session.
        """
        if title is not None and (not isinstance(title, str) or not title.strip()):
            raise InvalidOption("title must be a string that is not blank, or None")
        if title is not None and len(title) > _LONGEST_TITLE:
            raise InvalidOption(
                f"title must have at most {_LONGEST_TITLE} characters, got {len(title)}"
            )
        await self._label(session_id, Labels(_clean(title)))

    @reported("update_memory")
    async def set_metadata(self, session_id: str, metadata: Mapping[str, Any]) -> None:
        """Merge these members into the session's metadata; a member that is None is removed.

        Raises:
            InvalidSessionId: there is no such session.
            InvalidOption: the metadata is no JSON object.
        """
        if not isinstance(metadata, Mapping):
            raise InvalidOption(f"metadata must be a JSON object, got {type(metadata).__name__}")
        try:
            encode_items([dict(metadata)])
        except InvalidItem as error:
            raise InvalidOption(
                "metadata must be a JSON object: each key a string, each value JSON"
            ) from error
        await self._label(session_id, Labels(metadata=dict(metadata)))

    async def _label(self, session_id: str, labels: Labels) -> None:
        self._require_manage()
        if not await self.label(check_session_id(session_id), labels):
            raise no_session(session_id)


def _clean(text: str | None) -> str | None:
    """The title, if every storage can keep it."""
    try:
        if text is not None:
            text.encode()
    except UnicodeEncodeError:
        raise InvalidOption("title must not have a lone surrogate") from None
    if text is not None and "\0" in text:
        raise InvalidOption("title must not have a NUL character")
    return text
