"""Acquiring a session: first in the queue of this process, then by the lease in the memory.

What the turn does with its session is not known here.
"""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import time
from contextlib import suppress
from dataclasses import replace

from session_middleware import _background
from session_middleware._turns import queue
from session_middleware._turns.approach import looking_up
from session_middleware._turns.queue import Place, QueuedTurn
from session_middleware._turns.retry_after import tell_retry_after
from session_middleware.errors import (
    DuplicateTurn,
    MemoryUnavailable,
    SessionBusy,
    SessionMemoryError,
    TurnInProgress,
)
from session_middleware.options import Options
from session_middleware.stores.protocol import LOOK_UP, TICKETS, TurnStore
from session_middleware.stores.records import Acquired, AcquireRequest
from session_middleware.stores.tickets import SHOW_AGAIN
from session_middleware.telemetry import TurnTelemetry


class Acquisition:
    """One turn's way to its session.

    Args:
        store: the memory.
        options: how long to wait, if at all.
        telemetry: told of contention.
        patience: seconds to wait; None: for ever, 0: not at all. Default: as the options say.

    Attributes:
        ticket: names the turn among those of all processes that wait for the session; None: it
            does not wait, or the memory keeps no line.
    """

    def __init__(
        self,
        store: TurnStore,
        options: Options,
        telemetry: TurnTelemetry,
        patience: float | None = None,
    ) -> None:
        self._store = store
        self._telemetry = telemetry
        rejects = options.on_busy == "reject"
        self._limit = 0 if rejects else options.max_waiting
        self._patience = patience or options.wait_timeout or 2 * store.lease_seconds
        self._rejects = rejects and patience is None
        self._began = time.monotonic()
        waits_in_line = not self._rejects and TICKETS in store.capabilities
        self.ticket = secrets.randbits(63) if waits_in_line else None

    @property
    def lasted(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    async def wait_in_queue(self, place: Place, turn: QueuedTurn, request: AcquireRequest) -> None:
        """Wait for the turns of this process that came before.

        Raises:
            SessionBusy: the options do not let it wait, or not that long.
            DuplicateTurn, TurnInProgress, IdempotencyConflict: the request's work was done
                before, or is being done.
        """
        try:
            if queue.is_held(place):
                await self._look_up(place, request)
            patience = None if self._patience == float("inf") else self._patience
            contended = functools.partial(self._telemetry.contended, here=True)
            with self._telemetry.waiting():
                await queue.enter(
                    place, turn, limit=self._limit, patience=patience, contended=contended
                )
        except SessionBusy as busy:
            self._telemetry.contended(busy.turn, here=True, waits=not self._rejects)
            await tell_retry_after(self._store, place, busy)
            raise
        except TurnInProgress as running:
            await tell_retry_after(self._store, place, running)
            raise

    async def _look_up(self, place: Place, request: AcquireRequest) -> None:
        """Refuse at once what was done before, where the session is held by another turn."""
        repeats = request.idempotency_key is not None or request.resume is not None
        if repeats and LOOK_UP in self._store.capabilities:
            try:
                with suppress(MemoryUnavailable), looking_up(place):  # acquiring will say so
                    await self._store.look_up(replace(request, read=None, input=None, ticket=None))
            except DuplicateTurn as duplicate:
                await self._add_record(duplicate, request.session_id)
                raise

    async def wait_for_lease(self, place: Place, request: AcquireRequest) -> Acquired:
        """Acquire the lease, and wait while a turn of another process holds it."""
        try:
            return await self._ask_until_free(request)
        except BaseException as error:
            if request.ticket is not None:
                withdrawn = self._store.withdraw_ticket(request.session_id, request.ticket)
                with suppress(SessionMemoryError):  # otherwise the ticket dies by itself
                    await _background.run_shielded(withdrawn)
            if isinstance(error, (SessionBusy, TurnInProgress)):
                await tell_retry_after(self._store, place, error)
            raise

    async def _ask_until_free(self, request: AcquireRequest) -> Acquired:
        again = False
        while True:
            try:
                with self._telemetry.operation("acquire_session", again=again) as operation:
                    acquired = await self._store.acquire(request)
                    if acquired.stored and request.input is not None:
                        operation.count = len(request.input.texts)
                    return acquired
            except DuplicateTurn as duplicate:
                await self._add_record(duplicate, request.session_id)
                raise
            except SessionBusy as busy:
                again = True
                self._telemetry.contended(busy.turn, waits=not self._rejects)
                waited = self.lasted
                left = self._patience - waited
                if self._rejects or left <= 0:
                    raise
                with self._telemetry.waiting():
                    await self._wait(request, waited, left)

    async def _wait(self, request: AcquireRequest, waited: float, left: float) -> None:
        """Wait until it is worth asking again, for at most ``left`` seconds."""
        if request.ticket is None:
            await _pause(waited, left)
        else:
            seconds = min(left, SHOW_AGAIN)
            await self._store.wait_for_session(request.session_id, request.ticket, seconds)

    async def _add_record(self, duplicate: DuplicateTurn, session_id: str) -> None:
        """Give the error the record of the turn that did the work."""
        with suppress(SessionMemoryError):  # it is no more than a help
            records = await self._store.turns(session_id, limit=1, before=duplicate.turn + 1)
            duplicate.record = next(iter(records), None)


async def _pause(waited: float, left: float) -> None:
    """Wait for a memory without tickets: the longer, the longer it took so far."""
    pause = min(0.5, max(0.005, waited / 8)) * random.uniform(0.5, 1.5)  # noqa: S311
    await asyncio.sleep(min(pause, left))
