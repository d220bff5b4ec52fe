"""Removing conversations, or the newest turns of one, without a trace of their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from session_middleware._current import current_turn
from session_middleware.errors import InvalidOption
from session_middleware.memory import check_session_id, tell_released
from session_middleware.stores.cursors import read as read_cursor
from session_middleware.stores.managed_store import SessionQuery
from session_middleware.stores.managing.held import PAGE, Managed, prefix_of
from session_middleware.stores.numbers import LONGEST, whole_number
from session_middleware.stores.records import TurnEnd, TurnRecord
from session_middleware.stores.reported import reported


class Removing(Managed):
    """The methods that remove."""

    @reported("delete_memory")
    async def delete(self, *session_ids: str) -> int:
        """Remove these sessions with all they have; return how many there were.

        When it returns, no word of them is left in the storage's own files. A turn that runs in
        one of them is lost (TurnLost); a call from within the turn is ``clear_session``. Where a
        connection to a server broke and the statement was sent again, the number may be lower
        than that of the sessions that were removed.
        """
        self._require_manage()
        ids = [check_session_id(session_id) for session_id in dict.fromkeys(session_ids)]
        mine = [each for each in ids if current_turn(self.identity, each) is not None]
        existing = [each for each in mine if await self.session_exists(each)]
        for session_id in mine:
            await self.clear_session(session_id)
        return len(existing) + await self._delete([each for each in ids if each not in mine])

    @reported("delete_memory")
    async def delete_prefix(self, prefix: str) -> int:
        """Remove every session whose id begins with ``prefix``; return how many there were."""
        self._require_manage()
        if not isinstance(prefix, str) or not prefix:
            raise InvalidOption("prefix must be a string that is not empty")
        query = SessionQuery(prefix_of(prefix), PAGE, order="id")
        deleted, after = 0, None
        while page := await self.list_page(replace(query, after=after)):
            after = read_cursor(page[-1].cursor)
            deleted += await self._delete([info.session_id for info in page])
        return deleted

    @reported("delete_memory")
    async def prune(self, older_than: float | timedelta) -> int:
        """Remove the sessions without activity for so long; return how many.

        A session that a turn holds is never removed.

        Args:
            older_than: seconds, or a timedelta; a session that was used exactly so long ago goes.
        """
        return await self.prune_prefix(None, older_than)

    @reported("delete_memory")
    async def prune_prefix(self, prefix: str | None, older_than: float | timedelta) -> int:
        """The same, of the sessions whose id begins with ``prefix``."""
        self._require_manage()
        seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise InvalidOption("older_than must be a number of seconds or a timedelta, 0 or more")
        if seconds > 100 * LONGEST:  # before there was any
            return 0
        idle_since = datetime.now(UTC) - timedelta(seconds=seconds)
        deleted, after = 0, None
        query = SessionQuery(prefix_of(prefix), PAGE, idle_since=idle_since)
        while page := await self.list_page(replace(query, after=after)):
            after = read_cursor(page[-1].cursor)
            deleted += await self._delete([info.session_id for info in page], idle_since)
        return deleted

    async def _delete(self, session_ids: Sequence[str], idle_since: datetime | None = None) -> int:
        if not session_ids:
            return 0
        deleted = await self.delete_sessions(session_ids, idle_since=idle_since)
        if idle_since is None:
            for session_id in session_ids:
                tell_released(self.identity, session_id)
        return deleted

    @reported("delete_memory")
    async def undo(self, session_id: str, turns: int = 1) -> list[TurnRecord]:
        """Remove the newest turns that have items, and return them as they were, newest first.

        Their records stay, without a word of them, so that the same idempotency key is not worked
        on again. An approval that waits in them can no longer be given.

        Raises:
            SessionBusy: a turn holds the session, and went on doing so.
        """
        self._require_manage()
        check_session_id(session_id)
        wanted = whole_number("turns", turns, at_least=1)
        async with self.held(session_id) as lease:
            removed: list[TurnRecord] = []
            before = lease.turn
            most = min(wanted, PAGE)
            while len(removed) < wanted and (
                page := await self.turns(session_id, limit=most, before=before)
            ):
                before = page[-1].turn
                removed += [record for record in page if record.items][: wanted - len(removed)]
            end = TurnEnd("cancelled", datetime.now(UTC), unlisted=True)
            await self.remove_turns(lease, [record.turn for record in removed], end)
        return removed
