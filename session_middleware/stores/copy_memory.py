"""Copying every conversation of one memory into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from session_middleware.errors import InvalidOption, MemoryUnavailable
from session_middleware.stores import export
from session_middleware.stores.managing import ManagedMemory


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """What ``copy_memory`` has done so far.

    Attributes:
        session_id: the session that it looked at last.
        sessions: how many sessions it looked at.
        copied: how many of them it stored; the others were there already, the same.
        turns: how many turns that session has.
    """

    session_id: str
    sessions: int
    copied: int
    turns: int


async def copy_memory(
    source: ManagedMemory,
    target: ManagedMemory,
    *,
    prefix: str | None = None,
    replace: bool = False,
    progress: Callable[[CopyProgress], None] | None = None,
) -> int:
    """Copy sessions with their turns, records, parked states and journals; return how many.

    One session at a time is held in both memories, so that no turn of it runs meanwhile. A copy
    that was interrupted is made again: what is there already, the same, is left as it is. Each
    session is read again in the target, and its turns are compared by number and digest.

    A run that waits for approval can be resumed in either memory afterwards: use only one.

    Args:
        source: the memory to copy from; nothing in it changes.
        target: the memory to copy to.
        prefix: only sessions whose id begins with it.
        replace: a session that is in the target with other turns is replaced.
        progress: called after each session.

    Raises:
        ConflictingMemory: a session is in the target with other turns.
        SessionBusy: a turn holds a session, and went on doing so.
        MemoryUnavailable: a copied session is not what it was copied from.

    Example:
        await copy_memory(SQLiteSessionMemory("chat.db"), open_memory("sqlite:///copy.db"))
    """
    for name, memory in (("source", source), ("target", target)):
        if not isinstance(memory, ManagedMemory):
            raise InvalidOption(
                f"{name} must be a memory with turns, such as SQLiteSessionMemory, got "
                f"{type(memory).__name__}"
            )
    if source.identity == target.identity:
        raise InvalidOption("source and target must be two memories, got one storage twice")
    seen = copied = 0
    async for info in source.chosen((), prefix):
        seen += 1
        turns = await _copied(source, target, info.session_id, replace)
        copied += turns.stored
        if progress is not None:
            progress(CopyProgress(info.session_id, seen, copied, turns.count))
    return copied


@dataclass(frozen=True, slots=True)
class _Copied:
    stored: bool
    count: int


async def _copied(
    source: ManagedMemory, target: ManagedMemory, session_id: str, replace: bool
) -> _Copied:
    """Copy one session, which is held meanwhile; it may have been deleted by now."""
    async with source.held(session_id) as lease:
        info = await source.session_info(session_id)
        held = lease.turn
        turns = [copy async for copy in source.copies(session_id) if copy.record.turn != held]
        stored = False
        if info is not None:
            fence = await source.newest_fence()
            stored = await target.put_session(info, turns, fence, replaces=replace, same=True)
        if stored:
            there = [copy async for copy in target.copies(session_id)]
            if export.digest_of(there) != export.digest_of(turns):
                raise MemoryUnavailable(
                    f"session {session_id!r} is not in the target what it is in the source: "
                    "another program changes one of them. Copy it again with replace=True"
                )
        await source.let_go(lease)
    return _Copied(stored, len(turns))
