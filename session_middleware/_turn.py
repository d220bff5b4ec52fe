"""A turn: take the session, load, window, repair, run, persist, end, report.

One object per outermost decorated call, scope or intercepted run. Everything that reads or
writes a session on behalf of a run goes through it, and it alone talks to the memory and to
telemetry. How a function or a Runner method is called is no concern of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from session_middleware import _background, _leasing, _line, _loading
from session_middleware._account import Account, LeftRun
from session_middleware._options import Options
from session_middleware._outbox import Outbox
from session_middleware._scope import Scope, current_scope, in_force
from session_middleware.errors import (
    ConflictingMemory,
    MemoryUnavailable,
    SessionBusy,
    SessionMemoryError,
    TurnLost,
)
from session_middleware.memory import (
    Item,
    Lease,
    Loaded,
    Reading,
    RunItems,
    SupportsRunEnds,
    SupportsTurns,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnState,
    holding,
)
from session_middleware.stores import encode_items
from session_middleware.telemetry import TurnTelemetry


class Turn:
    """One turn of a session.

    It ends when everybody who is part of it has left: the function, scope or run it was made
    for, and every run that joined. Its methods may be called from any thread and any loop.

    Args:
        name: what traces call it.
        idempotency_key: names the request, so that a retry does not do its work twice.
        input_digest: of the new input, where it is known before the run.
        resume: the identity of the parked run that this turn goes on with.
        streaming: it is made for a streamed run.

    Attributes:
        expiry: done when the session was let go because the turn's time was over.
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
        self.store: SupportsTurns = options.turns
        self.memory_identity: Hashable = self.store.identity
        self.idempotency_key = idempotency_key
        self.started_at = datetime.now(UTC)
        self.account = Account()
        self.forgotten = False
        self.telemetry = TurnTelemetry(
            options.telemetry,
            name=name,
            session_id=session_id,
            backend=str(getattr(memory, "backend", None) or type(memory).__name__),
            networked=bool(getattr(memory, "networked", False)),
            streaming=streaming,
        )
        self._input_digest = input_digest
        self._resume = resume
        self._place = (self.memory_identity, session_id)
        self._outer = turn_here()
        self._lock = threading.Lock()
        self._seats = 0
        self._owned = False
        self._over = False
        self._taken: Taken | None = None
        self._taking: Future[None] | None = None
        self._error: BaseException | None = None
        self._told: BaseException | None = None
        self.expiry: Future[None] | None = None
        self._prefetched: tuple[Reading, Loaded] | None = None
        self._stored_input: RunItems | None = None  # with the taking, and not yet handed over
        self._only_input = False  # nothing was stored after it, so that it may not be flushed
        self._outbox = Outbox()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def number(self) -> int | None:
        """The turn's number while it holds the session."""
        taken = self._taken
        return None if taken is None or self._over else taken.lease.turn

    @property
    def lease(self) -> Lease | None:
        """The right to write, once the session was taken."""
        return None if self._taken is None else self._taken.lease

    @property
    def is_over(self) -> bool:
        """Whether the turn has ended, or is ending."""
        return self._over

    def held_with(self) -> Iterable[Turn]:
        """The turns this one was started in, which cannot end before it does."""
        outer = self._outer
        while outer is not None:
            if not outer.is_over:
                yield outer
            outer = outer._outer

    @contextmanager
    def in_force(self, run: object | None = None) -> Iterator[None]:
        """Put the turn in force for this block: as the scope, for the memory, and for tracing."""
        with in_force(Scope(self, run)), holding(self), self.telemetry.attached():
            yield

    # --- who is part of it -----------------------------------------------------------------

    def enter(self, *, owner: bool) -> bool:
        """Somebody becomes part of the turn; False if it is over.

        Whoever the turn was made for enters first, as its owner.
        """
        with self._lock:
            if self._over:
                return False
            self._seats += 1
            self._owned = self._owned or owner
        if owner:
            self.telemetry.start()
        return True

    def left(self, error: BaseException | None, *, owner: bool) -> bool:
        """Somebody leaves; returns whether the turn is to be ended now.

        What goes wrong in a run concerns its owner, a function that may well catch it, as long
        as there is one: only what runs on after it, such as a stream, speaks for itself.
        """
        with self._lock:
            if self._error is None and (owner or not self._owned):
                self._error = error
            if owner:
                self._owned = False
            self._seats -= 1
            if self._seats > 0 or self._over:
                return False
            self._over = True
            return True

    def complain_of_expiry(self) -> None:
        """Tell who would report success that the turn had lost its session by then."""
        if self.expiry is not None:
            raise TurnLost(f"{self._error}; what it stored until then is kept: start a new turn")

    def complain_of_lateness(self) -> None:
        """Refuse a new part in a turn whose time is over while what it was made for goes on.

        It would begin a new turn, as if nothing had happened.
        """
        if self.expiry is not None and self._seats > 0:
            raise TurnLost(f"{self._error}: what is still part of it can store nothing more")

    # --- take ------------------------------------------------------------------------------

    async def take(self, *, read: bool = False, given: RunItems | None = None) -> None:
        """Take the session, once; calls that come meanwhile wait for the first.

        Args:
            read: a run loads the history next, so the memory may read it at once.
            given: the new input of that run, which the memory may store at once.
        """
        while self._taken is None and not self.forgotten:
            mine: Future[None] = Future()
            with self._lock:
                others = self._taking
                if others is None:
                    self._taking = mine
            if others is not None:
                await asyncio.shield(asyncio.wrap_future(others))
                continue
            try:
                await self._take(read, given)
            finally:
                with self._lock:
                    self._taking = None
                mine.set_result(None)

    async def _take(self, read: bool, given: RunItems | None) -> None:
        """Wait in line, then for the memory's lease."""
        reading = None
        if read and self.options.reads_with_taking:
            reading = _loading.first_reading(self.options.window, self.telemetry.recording)
        reject = self.options.on_busy == "reject"
        patience: float | None = self.options.wait_timeout or 2 * self.store.lease_seconds
        if patience == float("inf"):
            patience = None
        began = time.monotonic()
        try:
            if _line.is_held(self._place):
                await _leasing.look_up(self.store, self._request())
            await _line.enter(self._place, self, reject=reject, patience=patience)
        except SessionBusy as busy:
            self.telemetry.contended(busy.turn)
            raise
        try:
            taken = await self._lease(began, 0 if reject else patience, reading, given)
            if taken.stored and given is not None:
                self._stored_input = given
                self.account.starts(given.run)  # before another run can come in
            self._holds(taken)
        except MemoryUnavailable as error:
            if not self.forgets("load_failed", error):
                _line.leave(self._place, self)
                raise
        except BaseException:
            _line.leave(self._place, self)
            raise
        else:
            if reading is not None and taken.loaded is not None:
                self._prefetched = reading, taken.loaded
        self.telemetry.taken(self.number or 0, time.monotonic() - began)

    async def _lease(
        self,
        began: float,
        patience: float | None,
        read: Reading | None = None,
        given: RunItems | None = None,
    ) -> Taken:
        request = self._request(read, given)
        return await _leasing.take(
            self.store, request, self.telemetry.contended, began=began, patience=patience
        )

    def _request(self, read: Reading | None = None, given: RunItems | None = None) -> TakeTurn:
        return TakeTurn(
            self.session_id,
            self.started_at,
            idempotency_key=self.idempotency_key,
            input_digest=self._input_digest,
            resume=self._resume,
            read=read,
            input=given,
        )

    def _holds(self, taken: Taken) -> None:
        self.account.begin(taken.next_run, taken.carried)
        self._taken = taken
        if self.options.turn_timeout is not None:
            loop = _background.loop()
            loop.call_soon_threadsafe(self._set_alarm, loop, self.options.turn_timeout)

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        if not self._over:
            self._alarm = loop.call_later(seconds, lambda: loop.create_task(self._expire()))

    async def _expire(self) -> None:
        """The turn has had its time: let the session go; what still runs can write no more."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self.expiry = Future()
            self._error = TimeoutError(f"the turn took longer than {self.options.turn_timeout} s")
        try:
            await self.end_quietly()
        finally:
            self.expiry.set_result(None)

    async def resume(self, identity: str) -> bool:
        """Go on with a parked turn from within this one, which ends if it had not begun.

        Returns whether the parked run was known.
        """
        if self.account.unpark(identity):  # parked in this very turn
            return True
        await self.take()
        taken = self._taken
        if taken is None or self._resume == identity:
            return taken is not None and taken.resumed
        if self.account.going_on():
            raise ConflictingMemory(
                "a parked run is resumed while another run of this turn is going on: "
                "resume it in a turn of its own"
            )
        await self.send()
        state: TurnState = "completed" if self.account.stored else "replaced"
        await self.store.end_turn(taken.lease, TurnEnd(state, datetime.now(UTC)))
        self._resume = identity
        self._taken = None
        began = time.monotonic()
        self._holds(await self._lease(began, 2 * self.store.lease_seconds))
        self.telemetry.taken(self.number or 0, time.monotonic() - began)
        return self._taken is not None and self._taken.resumed

    # --- runs ------------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether it goes on when the next one leaves."""
        return self._seats > 1

    @property
    def owes(self) -> bool:
        """Whether items of its runs wait to be stored."""
        return bool(self._outbox)

    def next_run(self) -> int:
        """Reserve the next run number of the turn."""
        return self.account.next_run()

    def traced(self, trace: tuple[str, str | None] | None) -> None:
        """A run belongs to that SDK trace (its id and group id)."""
        if trace is not None and self.account.in_trace(trace[0]):
            self.telemetry.sdk_trace(*trace)

    async def run_is_over(self, run: int | None) -> None:
        """Tell a memory that makes runs wait for each other that this one stores no more."""
        if run is None or self._taken is None or self._over:
            return
        store = self.store
        # Of a class Python remembers the answer; asking the object alone takes forty times as long.
        if issubclass(type(store), SupportsRunEnds) and isinstance(store, SupportsRunEnds):
            await store.end_run(self._taken.lease, run)

    # --- load and persist ------------------------------------------------------------------

    async def load(self, run: int, limit: int | None) -> list[Item]:
        """The history as the model gets it."""
        prefetched, self._prefetched = self._prefetched, None
        await self.send()
        lease = self.lease
        hidden = self.account.going_on(besides=run)
        if hidden:
            prefetched = None
        if self._stored_input is not None and self._stored_input.run == run:
            hidden.add(run)  # the SDK adds it to the history itself
        items, digest = await _loading.load(
            self.store,
            self.session_id,
            self.options.window,
            limit,
            (lease.turn, hidden) if lease is not None and hidden else None,
            self.telemetry,
            prefetched,
        )
        self.account.history_digest = digest
        return items

    async def load_own(self, limit: int | None) -> list[Item]:
        """The newest items of this turn itself, raw: what a resumed run compares."""
        await self.send()
        lease = self.lease
        if lease is None:
            return []
        with self.telemetry.operation("search_memory") as operation:
            items = await self.store.load_items(self.session_id, turn=lease.turn, limit=limit)
            operation.count = len(items)
        return items

    async def append(
        self,
        run: int,
        position: int,
        items: list[Item],
        input_digest: str,
        *,
        last: bool = False,
        instead: bool = False,
    ) -> None:
        """Store items of a run.

        Args:
            last: they are what its model says in the end. As nothing follows but the end of the
                turn, they may wait for it, to be stored in the same transaction.
            instead: they come in place of the input that was stored when the session was taken.

        Raises:
            InvalidItem: one of them cannot be stored; none of them is.
            TurnLost: the session is no longer this turn's; nothing was written.
        """
        lease = self.lease
        if lease is None:
            return
        self._still_its_own()
        self._prefetched = None
        if instead:
            self._stored_input = None
        if (last or instead) and self.options.turn_writes is not None:
            new = RunItems(run, position, encode_items(items), input_digest, instead)
            self._outbox.put(new)
            if instead:
                await self.send()
            return
        await self.send()
        with self.telemetry.operation("create_memory") as operation:
            operation.count = len(items)
            await self.store.append_items(lease, run, position, items, input_digest=input_digest)
        self._stored(run, len(items))

    def has_stored(self, given: RunItems) -> bool:
        """Whether that input of a run was stored when the session was taken."""
        return self._stored_input is given

    def hand_over(self, given: RunItems) -> None:
        """The SDK has handed over that input, and it is as it was stored.

        Raises:
            TurnLost: the turn's time is over.
        """
        self._still_its_own()
        self._prefetched = self._stored_input = None
        with self.telemetry.operation("create_memory") as operation:
            operation.count = len(given.texts)
        self._stored(given.run, len(given.texts))
        self._only_input = True

    def _still_its_own(self) -> None:
        if self.expiry is not None:
            raise TurnLost(f"{self._error}; nothing was written: start a new turn")

    def withdraw(self, given: RunItems) -> None:
        """The SDK has not handed over that input yet, and maybe never will."""
        self._stored_input = None
        self._outbox.put(given.withdrawn())

    async def settle(self) -> None:
        """Let the session be as if the SDK had stored all it handed over so far, and no more.

        For the memory's own methods, where they look into the session or change it in the turn.
        """
        if self._stored_input is not None:
            self.withdraw(self._stored_input)  # it is stored when it is handed over, as any other
        await self.send()

    async def send(self) -> None:
        """Store what waits for the turn's end, because something follows that comes after it.

        What the memory could not store waits on, as the run that it is of did not hear of it.
        """
        self._prefetched = None  # whoever asks may be about to change what is stored
        try:
            await self._outbox.send(self._write_turn)
        except MemoryUnavailable as error:
            if not self.forgets("save_failed", error):
                raise

    async def _write_turn(self, items: list[RunItems], end: TurnEnd | None = None) -> None:
        if self.forgotten:
            items = [new for new in items if new.withdraws]
        if self.lease is None or self.options.turn_writes is None or not (items or end):
            return
        stored = sum(len(new.texts) for new in items)
        with self.telemetry.operation("create_memory" if stored else "delete_memory") as operation:
            operation.count = stored
            await self.options.turn_writes.write_turn(self.lease, items, end)
        for new in items:
            if new.texts:
                self._stored(new.run, len(new.texts))

    def _stored(self, run: int, items: int) -> None:
        self._only_input = False
        self.account.stored += items
        self.telemetry.event("items_saved", count=items, run=run)

    async def take_over(self, left: LeftRun, run: int) -> int:
        """Let a run take over what an earlier one left; returns how many items it starts with."""
        await self.send()
        self._prefetched = None
        lease = self.lease
        if lease is None:
            return 0
        with self.telemetry.operation("update_memory"):
            kept = await self.store.retry_run(lease, left.run, run)
        self.account.replaced(left.run)
        return kept

    def forgets(self, event: str, error: MemoryUnavailable) -> bool:
        """Whether the turn goes on without memory from here on; reported either way."""
        if error is not self._told:
            self._told = error
            self.telemetry.event(event, error_type=type(error.__cause__ or error).__name__)
        if self.options.on_unavailable != "forget":
            return False
        self.forgotten = True
        return True

    # --- end -------------------------------------------------------------------------------

    async def end_quietly(self) -> None:
        """End the turn where an error has nobody to hear it; telemetry does."""
        try:
            await self.end()
        except Exception as error:
            self.telemetry.event("save_failed", error_type=type(error).__name__)

    async def end(self) -> None:
        """Write the record, let the session go, report."""
        if self._alarm is not None:
            _background.loop().call_soon_threadsafe(self._alarm.cancel)
            self._alarm = None
        # Turns that each start the next one must not all be kept by the newest.
        self._outer = next(iter(self.held_with()), None)
        record = self._record()
        failure: BaseException | None = None
        try:
            if self._taken is not None:
                record = await self._write(record, self._taken.lease)
        except BaseException as error:
            failure = error
            raise
        finally:
            _line.leave(self._place, self)
            self.telemetry.end(
                record.state if failure is None else _outcome_without_record(failure),
                self._error or failure,
                new_items=self.account.stored,
                usage=record.usage,
                input_text=self.account.input_text,
                output_text=self.account.output_text,
            )

    def _record(self) -> TurnEnd:
        record = self.account.record(
            self._error,
            on_failure=self.options.on_failure,
            durable=self.idempotency_key is not None or self._only_input,
            otel_trace_id=self.telemetry.otel_trace_id,
        )
        if self.forgotten and record.error_type is None:  # it ended well, and is not all there
            record = dataclasses.replace(record, error_type=type(self._told).__name__)
        return record

    async def _write(self, record: TurnEnd, lease: Lease) -> TurnEnd:
        """Write the record, and with it the items still to be stored; returns what was written."""
        if self._stored_input is not None:
            self.withdraw(self._stored_input)
        items = await self._outbox.empty()
        if record.discard:
            items = []
        elif self.forgotten:
            items = [new for new in items if new.withdraws]
        try:
            if record.state == "completed":
                for run in self.account.superseded():
                    await self.store.retry_run(lease, run, self.next_run())
            if record.discard:
                with self.telemetry.operation("delete_memory"):
                    await self.store.end_turn(lease, record)
            elif items:
                await self._write_turn(items, record)
            else:
                await self.store.end_turn(lease, record)
        except TurnLost:
            raise
        except Exception as error:
            if items:
                return await self._end_without(items, error, lease)
            # The items are safe, or else the record is durable; only what is, is relied upon.
            needed = record.durable and self.options.on_unavailable == "raise"
            if needed or not isinstance(error, MemoryUnavailable):
                raise
            self.telemetry.event("save_failed", error_type=type(error.__cause__ or error).__name__)
        return record

    async def _end_without(self, items: list[RunItems], error: Exception, lease: Lease) -> TurnEnd:
        """End a turn whose last items could not be stored: it did not complete."""
        forgets = isinstance(error, MemoryUnavailable) and self.forgets("save_failed", error)
        if not forgets:
            self.account.failed(new.run for new in items)
            self._error = self._error or error
        record = self._record()
        with suppress(SessionMemoryError):  # then the lease ends by itself
            await self.store.end_turn(lease, record)
        if not forgets:
            raise error
        return record


def _outcome_without_record(failure: BaseException) -> TurnState:
    """What became of a turn whose end could not be written."""
    return "abandoned" if isinstance(failure, TurnLost) else "failed"


def turn_here() -> Turn | None:
    """The turn of the scope in force here; it may be over."""
    scope = current_scope()
    return scope.turn if scope is not None and isinstance(scope.turn, Turn) else None
