"""Copying conversations: forks, exports, imports."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace as with_fields

from session_middleware.errors import ConflictingMemory, InvalidSessionId
from session_middleware.memory import check_session_id, tell_released
from session_middleware.stores import export
from session_middleware.stores.cursors import read as read_cursor
from session_middleware.stores.managed_store import SessionInfo, SessionQuery, TurnCopy
from session_middleware.stores.managing.held import PAGE, Managed, no_session, prefix_of
from session_middleware.stores.numbers import MOST, whole_number
from session_middleware.stores.records import Lease
from session_middleware.stores.reported import reported


class Copying(Managed):
    """The methods that copy."""

    @reported("create_memory")
    async def fork(self, session_id: str, new_id: str, at_turn: int | None = None) -> SessionInfo:
        """Make a session of its own from the turns of another that have ended.

        Turns keep their numbers, times and outcomes. An approval that waits stays with the
        session it is from: in the new one its turn is cancelled.

        Args:
            session_id: the session to copy.
            new_id: the id of the new one, which must not be there yet.
            at_turn: the last turn to copy; None: the newest.

        Raises:
            InvalidSessionId: there is no such session, or there is one with the new id.
        """
        self._require_manage()
        info = await self._info(session_id)
        if info is None:
            raise no_session(session_id)
        if at_turn is not None:
            whole_number("at_turn", at_turn, at_least=1)
        copies = await self._copies_between(session_id, 1, at_turn or MOST)
        forked = [export.forked(copy, new_id) for copy in copies if copy.record.state != "running"]
        await self.put_session(with_fields(info, session_id=check_session_id(new_id)), forked)
        made = await self._info(new_id)
        if made is None:
            raise no_session(new_id)
        return made

    async def export(self, *session_ids: str, prefix: str | None = None) -> AsyncIterator[str]:
        """Yield sessions as lines of JSON, one turn a line; without arguments, all of them.

        A session is read turn by turn; one that changes meanwhile is told as it is when each of
        its turns is read.

        Raises:
            InvalidSessionId: there is no such session.

        Example:
            with open("chats.jsonl", "w") as file:
                async for line in memory.export(prefix="user-42:"):
                    file.write(line)
        """
        self._require_manage()
        sessions = 0
        yield export.first_line()
        async for info in self.chosen(session_ids, prefix):
            sessions += 1
            async for line in self._exported(info):
                yield line
        yield export.last_line(sessions)

    async def _exported(self, info: SessionInfo) -> AsyncIterator[str]:
        told = export.Digest()
        yield export.session_line(info, await self.newest_fence())
        async for copy in self.copies(info.session_id):
            yield told.line(copy)
        yield told.end_line()

    @reported("create_memory")
    async def import_(
        self, lines: Iterable[str] | AsyncIterable[str], *, replace: bool = False
    ) -> int:
        """Store the sessions of an export, each of them whole or not at all.

        Importing the same once more changes nothing. Returns how many sessions were stored.

        Args:
            lines: what ``export`` yielded, such as an open file.
            replace: a session that is there with other turns is replaced.

        Raises:
            InvalidOption: a line cannot be read; its number is named, and nothing of its session
                was stored. Sessions before it are.
            ConflictingMemory: a session is there with other turns.
        """
        return await self.import_as(check_session_id, lines, replace=replace)

    @reported("create_memory")
    async def import_as(
        self,
        new_id: Callable[[str], str],
        lines: Iterable[str] | AsyncIterable[str],
        *,
        replace: bool = False,
    ) -> int:
        """The same, with each session under the id that ``new_id`` makes of its own."""
        self._require_manage()
        imported = 0
        async for found in export.sessions_in(lines):
            info = with_fields(found.info, session_id=new_id(found.info.session_id))
            imported += await self.put_session(
                info, found.turns, found.fence, replaces=replace, same=True
            )
        return imported

    async def copies(self, session_id: str) -> AsyncIterator[TurnCopy]:
        """Yield all turns of a session, oldest first, reading some at a time."""
        after = 0
        while page := await self.read_copies(session_id, after, PAGE):
            for copy in page:
                yield copy
            after = page[-1].record.turn

    async def put_session(
        self,
        info: SessionInfo,
        turns: Sequence[TurnCopy],
        fence: int = 0,
        *,
        replaces: bool = False,
        same: bool = False,
    ) -> bool:
        """Store a copied session whole, holding it meanwhile.

        Args:
            same: a session that is there with the same turns is left as it is.
            replaces: one that is there with others is replaced.

        Returns:
            Whether it was stored.

        Raises:
            InvalidSessionId, ConflictingMemory: there is a session of this id already.
        """
        session_id = check_session_id(info.session_id)
        async with self.held(session_id) as lease:
            if await self.session_exists(session_id) and not replaces:
                if not same:
                    raise InvalidSessionId(
                        f"there is a session {session_id!r} already: name another, or delete it"
                    )
                if not await self._has(lease, turns):
                    raise ConflictingMemory(
                        f"there is a session {session_id!r} with other turns: delete it first, or "
                        "have it replaced"
                    )
                await self.let_go(lease)
                return False
            await self.write_copies(lease, info, turns, fence)
        tell_released(self.identity, session_id)
        return True

    async def _has(self, lease: Lease, turns: Sequence[TurnCopy]) -> bool:
        """Whether the session has these turns and no others, but for the lease's own."""
        there = export.Digest()
        async for copy in self.copies(lease.session_id):
            if copy.record.turn != lease.turn:
                there.line(copy)
        return there == export.digest_of(turns)

    async def chosen(
        self, session_ids: Sequence[str], prefix: str | None
    ) -> AsyncIterator[SessionInfo]:
        """The sessions with these ids, or else all of them, in pages."""
        for session_id in session_ids:
            info = await self._info(session_id)
            if info is None:
                raise no_session(session_id)
            yield info
        if session_ids and prefix is None:
            return
        after = None
        query = SessionQuery(prefix_of(prefix), PAGE, order="id")
        while page := await self.list_page(with_fields(query, after=after)):
            for info in page:
                yield info
            after = read_cursor(page[-1].cursor)
