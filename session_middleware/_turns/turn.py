"""A turn: one holder of a session, from acquiring it to letting it go.

One object for each outermost decorated call, scope or intercepted run. Everything that reads or
writes a session on behalf of a run goes through it, and it alone talks to the memory and to
telemetry. How a function or a Runner method is called is no concern of it; ``invoke.run`` tells
the story of a turn from the top to the bottom.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from session_middleware import _current
from session_middleware._turns import end as ending
from session_middleware._turns import queue
from session_middleware._turns.acquire import Acquisition
from session_middleware._turns.approach import depart
from session_middleware._turns.exclusion import Exclusion
from session_middleware._turns.expiry import Expiry
from session_middleware._turns.figures import figures_of
from session_middleware._turns.held_session import HeldSession
from session_middleware._turns.journal import scope_of
from session_middleware._turns.members import Members
from session_middleware._turns.methods import kind_of
from session_middleware._turns.runs import RunTracker
from session_middleware.errors import ConflictingMemory, MemoryUnavailable
from session_middleware.options import Options
from session_middleware.stores.protocol import READ_WITH_ACQUIRE, TurnStore
from session_middleware.stores.records import (
    Acquired,
    AcquireRequest,
    Lease,
    ReadRequest,
    RunItems,
    TurnEnd,
)
from session_middleware.telemetry import TurnTelemetry


class ActiveTurn:
    """One turn of a session, while it is under way.

    It ends when every participant has left: the function, scope or run it was made for, and every
    run that joined. Its methods may be called from any thread and any loop.

    Args:
        name: what traces call it.
        idempotency_key: names the request, so that a retry does not do its work twice.
        input_digest: of the new input, where it is known before the run.
        resume: the identity of the parked run that this turn continues.
        streaming: it is made for a streamed run.
    """

    def __init__(
        self,
        session_id: str,
        options: Options,
        *,
        name: str,
        idempotency_key: str | None = None,
        input_digest: str | None = None,
        resume: str | None = None,
        streaming: bool = False,
    ) -> None:
        memory = options.memory
        self.session_id = session_id
        self.options = options
        self.store: TurnStore = options.turns
        self.memory_identity: Hashable = self.store.identity
        self.place = (self.memory_identity, session_id)
        self.idempotency_key = idempotency_key
        self.started_at = datetime.now(UTC)
        self.telemetry = TurnTelemetry(
            options.telemetry,
            name=name,
            session_id=session_id,
            **kind_of(memory),
            streaming=streaming,
            redacts=options.redact is not None,
            figures=functools.partial(figures_of, self.store),
        )
        self.expiry = Expiry(options.turn_timeout)
        self.session = HeldSession(session_id, options, self.telemetry, self.expiry)
        self.tracker: RunTracker = self.session.tracker
        self.of_generator = False  # made for an async generator, which reads its own streams
        self._input_digest = input_digest
        self._resume = resume
        self._outer = turn_here()
        self.members = Members()
        self.resumed = False
        self._acquiring = Exclusion()

    @property
    def number(self) -> int | None:
        """The turn's number while it holds the session."""
        lease = self.session.lease
        return None if lease is None or self.members.over else lease.turn

    @property
    def lease(self) -> Lease | None:
        """The right to write, once the session was acquired."""
        return self.session.lease

    @property
    def over(self) -> bool:
        """Whether the turn stores nothing more: it ends, or its time is over."""
        return self.members.over

    @property
    def ended(self) -> bool:
        """Whether the turn is over, and nobody is part of it any more."""
        return self.members.ended

    def enclosing(self) -> Iterable[ActiveTurn]:
        """The turns this one was started in, which cannot end before it does."""
        outer = self._outer
        while outer is not None:
            if not outer.over:
                yield outer
            outer = outer._outer

    @contextmanager
    def in_force(self, run: object | None = None) -> Iterator[None]:
        """Put the turn in force for this block: as the scope, for the memory, and for tracing."""
        with self.telemetry.attached(), _current.in_force(self, run):
            yield

    # --- acquire ---------------------------------------------------------------------------

    async def acquire(self, *, read: bool = False, given: RunItems | None = None) -> None:
        """Acquire the session, once; calls that come meanwhile wait for the first.

        Args:
            read: a run loads the history next, so the memory may read it at once.
            given: the new input of that run, which the memory may store at once.
        """
        if not self._wants_session:
            return
        async with self._acquiring:
            if not self._wants_session:
                return
            reading = None
            if read and READ_WITH_ACQUIRE in self.options.capabilities:
                reading = self.session.loader.first_request()
            way = Acquisition(self.store, self.options, self.telemetry)
            request = self._request(way, reading, given)
            try:
                await way.wait_in_queue(self.place, self, request)
            except asyncio.CancelledError:
                await depart(self.place)
                raise
            try:
                acquired = await way.wait_for_lease(self.place, request)
                self._begin(acquired, request)
                self._hold(acquired, way.lasted)
            except BaseException as error:
                if self.session.lease is None and self._goes_on_without(error):
                    return
                queue.leave(self.place, self)
                raise

    @property
    def _wants_session(self) -> bool:
        return self.session.lease is None and not self.session.forgotten

    def _goes_on_without(self, error: BaseException) -> bool:
        """Whether the turn goes on without memory after this error."""
        if not isinstance(error, MemoryUnavailable):
            return False
        return self.session.forgets("load_failed", error)

    def _begin(self, acquired: Acquired, request: AcquireRequest) -> None:
        """Note what the memory did as it was asked for the session."""
        if acquired.stored and request.input is not None:
            self.session.buffer.store_early(request.input)
            self.tracker.start(request.input.run)  # before another run can come in
        if acquired.loaded is not None and request.read is not None:
            self.session.loader.prefetched(request.read, acquired.loaded)

    def _request(
        self,
        way: Acquisition,
        read: ReadRequest | None = None,
        given: RunItems | None = None,
    ) -> AcquireRequest:
        return AcquireRequest(
            self.session_id,
            self.started_at,
            idempotency_key=self.idempotency_key,
            input_digest=self._input_digest,
            resume=self._resume,
            read=read,
            input=given,
            otel_trace_id=self.telemetry.otel_trace_id,
            adopt=self.options.unknown_state == "adopt",
            ticket=way.ticket,
        )

    def _hold(self, acquired: Acquired, waited: float) -> None:
        self.tracker.begin(acquired.next_run, acquired.carried)
        self.session.lease = acquired.lease
        self.session.waited = waited
        self.resumed = acquired.resumed
        began = acquired.started_at if acquired.resumed else self.started_at
        scope = scope_of(self.session_id, self.idempotency_key, acquired.lease.turn, began)
        self.session.journal.begin(scope, acquired.journal)
        self.expiry.start(self.members.close, self.end_quietly)
        self.telemetry.acquired(acquired.lease.turn, took_over=acquired.took_over)
        if acquired.resumed:
            self.telemetry.resumed(self.session.manifest.continues(acquired.manifest))

    async def resume(self, identity: str) -> bool:
        """Continue a parked turn from within this one, which ends if it had not begun.

        The session was acquired, or the turn goes on without memory.

        Returns whether the parked run was known.
        """
        if self.tracker.unpark(identity):  # parked in this very turn
            return True
        lease = self.session.lease
        if lease is None or self._resume == identity:
            return lease is not None and self.resumed
        if self.tracker.running():
            raise ConflictingMemory(
                "a parked run is resumed while another run of this turn is going on: "
                "resume it in a turn of its own"
            )
        await self.session.flush()
        made_room = TurnEnd("completed", datetime.now(UTC), unlisted=not self.tracker.stored)
        await self.session.end(made_room)
        self._resume = identity
        self.session.lease = None
        patience = 2 * self.store.lease_seconds
        way = Acquisition(self.store, self.options, self.telemetry, patience)
        continued = await way.wait_for_lease(self.place, self._request(way))
        self._hold(continued, way.lasted)
        return continued.resumed

    # --- its runs --------------------------------------------------------------------------

    def next_run(self) -> int:
        """Reserve the next run number of the turn."""
        return self.tracker.next_run()

    async def settle(self) -> None:
        """Let the session be as if the SDK had stored all it handed over so far, and no more."""
        await self.session.settle()

    # --- end -------------------------------------------------------------------------------

    async def end(self) -> None:
        """Write the record, let the session go, report."""
        # Turns that each start the next one must not all be kept alive by the newest.
        self._outer = next(iter(self.enclosing()), None)
        await ending.end(self)

    async def end_quietly(self) -> None:
        """End the turn where an error has nobody to hear it; telemetry does."""
        await ending.end_quietly(self)


def turn_here() -> ActiveTurn | None:
    """The turn that this context was made in; it may have ended."""
    turn = _current.inherited_turn()
    return turn if isinstance(turn, ActiveTurn) else None
