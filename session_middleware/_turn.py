"""A turn: take the session, load, window, repair, run, persist, end, report.

One object per outermost decorated call, scope or intercepted run. Everything that reads or
writes a session on behalf of a run goes through it, and it alone talks to the memory and to
telemetry. How a function or a Runner method is called is no concern of it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from session_middleware import _background, _line, history
from session_middleware._options import Options
from session_middleware._scope import Scope, current_scope, in_force
from session_middleware.errors import (
    ConflictingMemory,
    IdempotencyConflict,
    MemoryUnavailable,
    SessionBusy,
    TurnLost,
)
from session_middleware.history import LastItems, LastTurns, TokenBudget
from session_middleware.memory import (
    Item,
    Lease,
    Loaded,
    RunState,
    SupportsTurns,
    Taken,
    TakeTurn,
    TurnEnd,
    TurnState,
    holding,
)
from session_middleware.telemetry import TurnTelemetry

FIRST_PAGE = 64
"""How many items a budget of tokens reads first; it doubles until the budget is used up."""


@dataclass(slots=True)
class LeftRun:
    """A run of this turn, or of an earlier attempt of it, that may be made again."""

    run: int
    input_digest: str | None
    has_outputs: bool
    carried: bool = False


class Turn:
    """One turn of a session.

    It counts who is part of it (the function or scope it was made for, and every run) and ends
    when the last of them has left. Its methods may be called from any thread and any loop.
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
        self.forgotten = False
        self.made_runs = 0
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
        self._members = 0
        self._joined = False
        self._over = False
        self._taken: Taken | None = None
        self._taking: Future[None] | None = None
        self._next_run = 1
        self._running: set[int] = set()
        self._states: dict[int, RunState] = {}
        self._left: list[LeftRun] = []
        self._claimed = False
        self._parked: dict[str, int] = {}
        self._owner_gone = False
        self._error: BaseException | None = None
        self._expired = False
        self._alarm: asyncio.TimerHandle | None = None
        self._stored = 0
        self._agent: str | None = None
        self._output: str | None = None
        self._usage: dict[int, dict[str, int]] = {}
        self._traces: dict[str, None] = {}
        self._digest: str | None = None

    # --- who is part of it -----------------------------------------------------------------

    @property
    def number(self) -> int | None:
        """The turn's number while it holds the session."""
        taken = self._taken
        return None if taken is None or self._over else taken.lease.turn

    @property
    def lease(self) -> Lease | None:
        return None if self._taken is None else self._taken.lease

    @property
    def is_over(self) -> bool:
        return self._over

    def held_with(self) -> Iterable[Turn]:
        """The turns this one was started in, which cannot end before it does."""
        outer = self._outer
        while outer is not None:
            if not outer.is_over:
                yield outer
            outer = outer._outer

    def join(self) -> bool:
        """Become part of the turn; False if it is over. ``leave`` must follow."""
        with self._lock:
            if self._over:
                return False
            first = self._members == 0 and not self._joined
            self._joined = True
            self._members += 1
        if first:
            self.telemetry.start()
        return True

    @contextmanager
    def in_force(self, run: object | None = None) -> Iterator[None]:
        """Put the turn in force for this block: as the scope, for the memory, and for tracing."""
        with in_force(Scope(self, run)), holding(self), self.telemetry.attached():
            yield

    async def leave(self, error: BaseException | None = None, *, owner: bool = True) -> None:
        """Leave the turn; the last one to leave ends it, and hears of what went wrong then."""
        if not self._leaves(error, owner):
            self._complain_of_expiry(error)
            return
        if isinstance(error, GeneratorExit):  # a coroutine that is closed must not await
            _background.submit(self._end_quietly())
            return
        ending, cancelled = await _background.settle(self._end())
        if error is None:
            if cancelled is not None:
                raise cancelled
            ending.result()

    def leave_blocking(self, error: BaseException | None = None, *, owner: bool = True) -> None:
        """Leave the turn, from code that has no running loop."""
        if not self._leaves(error, owner):
            self._complain_of_expiry(error)
            return
        if error is None:
            _background.wait(self._end())
        else:
            _background.wait(self._end_quietly())

    def leave_soon(self, error: BaseException | None = None, *, owner: bool = True) -> None:
        """Leave the turn, from code that can neither await nor block."""
        if self._leaves(error, owner):
            _background.submit(self._end_quietly())

    def _leaves(self, error: BaseException | None, owner: bool) -> bool:
        with self._lock:
            if owner:
                self._owner_gone = True
            if error is not None and self._error is None and (owner or self._owner_gone):
                self._error = error
            self._members -= 1
            if self._members > 0 or self._over:
                return False
            self._over = True
            return True

    def _complain_of_expiry(self, error: BaseException | None) -> None:
        if self._expired and error is None:
            raise TurnLost(f"{self._error}; what it stored until then is kept: start a new turn")

    # --- take ------------------------------------------------------------------------------

    async def take(self) -> None:
        """Take the session, once; calls that come meanwhile wait for the first."""
        while self._taken is None and not self.forgotten:
            with self._lock:
                others = self._taking
                if others is None:
                    mine = self._taking = Future()
            if others is not None:
                await asyncio.shield(asyncio.wrap_future(others))
                continue
            try:
                await self._take()
            finally:
                with self._lock:
                    self._taking = None
                mine.set_result(None)

    async def _take(self) -> None:
        options = self.options
        reject = options.on_busy == "reject"
        patience: float | None = options.wait_timeout or 2 * self.store.lease_seconds
        if patience == float("inf"):
            patience = None
        began = time.monotonic()
        try:
            await _line.enter(self._place, self, reject=reject, patience=patience)
        except SessionBusy as busy:
            self.telemetry.contended(busy.turn)
            raise
        try:
            self._holds(await self._lease(began, reject, patience))
        except MemoryUnavailable as error:
            if not self._may_forget("load_failed", error):
                _line.leave(self._place, self)
                raise
        except BaseException:
            _line.leave(self._place, self)
            raise
        self.telemetry.taken(self.number or 0, time.monotonic() - began)

    async def _lease(self, began: float, reject: bool, patience: float | None) -> Taken:
        """Ask the memory for the session until it is free, with growing pauses."""
        request = TakeTurn(
            self.session_id,
            self.started_at,
            idempotency_key=self.idempotency_key,
            input_digest=self._input_digest,
            resume=self._resume,
        )
        contended = False
        while True:
            try:
                return await self._take_whole(request)
            except SessionBusy as busy:
                if not contended:
                    contended = True
                    self.telemetry.contended(busy.turn)
                waited = time.monotonic() - began
                if reject or (patience is not None and waited >= patience):
                    raise
                pause = min(0.5, max(0.005, waited / 8)) * random.uniform(0.5, 1.5)  # noqa: S311
                await asyncio.sleep(pause if patience is None else min(pause, patience - waited))

    async def _take_whole(self, request: TakeTurn) -> Taken:
        """Take the session; cancelled meanwhile, give it back."""
        taking, cancelled = await _background.settle(self.store.take_turn(request))
        if cancelled is None:
            return taking.result()
        if taking.exception() is None:
            end = TurnEnd("cancelled", datetime.now(UTC))
            await _background.settle(self.store.end_turn(taking.result().lease, end))
        raise cancelled

    def _holds(self, taken: Taken) -> None:
        with self._lock:
            self._taken = taken
            self._next_run = max(self._next_run, taken.next_run)
            self._left = [
                LeftRun(left.run, left.input_digest, left.has_outputs, carried=True)
                for left in taken.carried
            ]
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
            self._over = self._expired = True
            self._error = TimeoutError(f"the turn took longer than {self.options.turn_timeout} s")
        await self._end_quietly()

    async def resume(self, identity: str) -> bool:
        """Go on with a parked turn from within this one, which ends if it had not begun.

        Returns whether the parked run was known.
        """
        if identity in self._parked:  # parked in this very turn
            del self._parked[identity]
            return True
        await self.take()
        taken = self._taken
        if taken is None or self._resume == identity:
            return taken is not None and taken.resumed
        with self._lock:
            if self._running:
                raise ConflictingMemory(
                    "a parked run is resumed while another run of this turn is going on: "
                    "resume it in a turn of its own"
                )
        state: TurnState = "completed" if self.made_runs else "replaced"
        await self.store.end_turn(taken.lease, TurnEnd(state, datetime.now(UTC)))
        self._resume = identity
        self._taken = None
        self._holds(await self._lease(time.monotonic(), False, 2 * self.store.lease_seconds))
        return self._taken is not None and self._taken.resumed

    # --- runs ------------------------------------------------------------------------------

    def next_run(self) -> int:
        """Reserve the next run number of the turn."""
        with self._lock:
            number = self._next_run
            self._next_run += 1
            return number

    def claim(self, input_digest: str) -> LeftRun | None:
        """The earlier run that a run with this new input makes again, if there is one.

        Raises:
            IdempotencyConflict: the turn retries an earlier attempt, and its first run has
                another input than any run of that attempt.
        """
        with self._lock:
            first = not self._claimed
            self._claimed = True
            for left in self._left:
                if left.input_digest == input_digest:
                    self._left.remove(left)
                    return left
            if first and any(left.carried for left in self._left):
                raise IdempotencyConflict(
                    "this idempotency key was used with another input before: "
                    "use a new key for a new input"
                )
            return None

    def starts(self, run: int) -> None:
        """A run has got its number and is going on."""
        with self._lock:
            self._running.add(run)
            self._states[run] = "running"

    def stops(
        self,
        run: int | None,
        state: RunState,
        *,
        left: LeftRun | None = None,
        parked: str | None = None,
        agent: str | None = None,
        output: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> None:
        """A run is over."""
        with self._lock:
            if run is not None:
                self._running.discard(run)
                self._states[run] = state
                if usage is not None:
                    self._usage[run] = usage
                if parked is not None:
                    self._parked[parked] = run
            if left is not None:
                self._left.append(left)
            self._agent = agent or self._agent
            if state == "completed":
                self._output = output

    async def run_is_over(self, run: int | None) -> None:
        """Tell a memory that makes runs wait for each other that this one stores no more."""
        end_run = getattr(self.store, "end_run", None)
        if end_run is not None and run is not None and self.lease is not None and not self._over:
            await end_run(self.lease, run)

    def traced(self, trace: tuple[str, str | None] | None) -> None:
        """A run belongs to that SDK trace."""
        if trace is not None and trace[0] not in self._traces:
            self._traces[trace[0]] = None
            self.telemetry.sdk_trace(*trace)

    # --- load ------------------------------------------------------------------------------

    async def load(self, run: int, limit: int | None) -> list[Item]:
        """The history as the model gets it: the window's part of it, repaired."""
        window = self.options.window
        windows = [*window] if isinstance(window, list) else [window] if window else []
        if limit is not None and limit >= 0:
            windows.append(LastItems(limit))
        with self.telemetry.operation("search_memory") as operation:
            loaded = await self._read(windows, self._hidden(run))
            operation.count = sum(len(turn.items) for turn in loaded.turns)
        kept = history.apply_windows(loaded.turns, windows)
        items = [item for turn in kept for item in turn.items]
        if operation.count > len(items):
            self.telemetry.trimmed(operation.count - len(items))
        repaired, receipt = history.repair(items)
        if receipt or loaded.corrupt:
            self.telemetry.repaired(receipt)
        self._report_history(kept, repaired)
        return repaired

    def _hidden(self, run: int) -> tuple[int, set[int]] | None:
        """The runs of this turn that are going on: no run sees another's half."""
        taken = self._taken
        with self._lock:
            others = self._running - {run}
        return (taken.lease.turn, others) if taken is not None and others else None

    async def _read(
        self, windows: Sequence[Callable[..., Any]], hide: tuple[int, set[int]] | None
    ) -> Loaded:
        """Read no more than the first window needs, where the memory can."""

        async def read(newest: LastTurns | LastItems | None) -> Loaded:
            return await self.store.load_turns(
                self.session_id, newest=newest, hide=hide, texts=self.telemetry.recording
            )

        first = windows[0] if windows else None
        if isinstance(first, (LastTurns, LastItems)):
            return await read(first)
        if not isinstance(first, TokenBudget):
            return await read(None)
        page = FIRST_PAGE
        while True:
            loaded = await read(LastItems(page))
            if loaded.complete or len(first(loaded.turns)) < len(loaded.turns):
                return loaded
            page *= 4

    def _report_history(self, kept: list[history.Turn], repaired: list[Item]) -> None:
        if not self.telemetry.recording:
            self.telemetry.history(len(repaired), None, None)
            return
        texts = {
            id(item): text
            for turn in kept
            for item, text in zip(turn.items, turn.texts or (), strict=False)
        }
        given = [texts.get(id(item)) or history.text_of(item) for item in repaired]
        self._digest = history.digest_of_texts(given)
        self.telemetry.history(len(given), sum(map(len, given)), self._digest)

    async def load_own(self, limit: int | None) -> list[Item]:
        """The newest items of this turn itself, raw: what a resumed run compares."""
        lease = self.lease
        if lease is None:
            return []
        with self.telemetry.operation("search_memory") as operation:
            items = await self.store.load_items(self.session_id, turn=lease.turn, limit=limit)
            operation.count = len(items)
        return items

    # --- persist ---------------------------------------------------------------------------

    async def append(self, run: int, position: int, items: list[Item], input_digest: str) -> None:
        """Store items of a run.

        Raises:
            TurnLost: the session is no longer this turn's; nothing was written.
        """
        lease = self.lease
        if lease is None:
            return
        if self._expired:
            raise TurnLost(f"{self._error}; nothing was written: start a new turn")
        with self.telemetry.operation("create_memory") as operation:
            operation.count = len(items)
            await self.store.append_items(lease, run, position, items, input_digest=input_digest)
        self._stored += len(items)
        self.telemetry.event("items_saved", count=len(items), run=run)

    async def take_over(self, left: LeftRun, run: int) -> int:
        """Let a run take over what an earlier one left; returns how many items it starts with."""
        lease = self.lease
        if lease is None:
            return 0
        with self.telemetry.operation("update_memory"):
            kept = await self.store.retry_run(lease, left.run, run)
        with self._lock:
            self._states[left.run] = "replaced"
        return kept

    # --- end -------------------------------------------------------------------------------

    async def _end_quietly(self) -> None:
        """End the turn where an error has nobody to hear it; telemetry does."""
        try:
            await self._end()
        except Exception as error:
            self.telemetry.event("save_failed", error_type=type(error).__name__)

    async def _end(self) -> None:
        """Write the record, let the session go, report."""
        if self._alarm is not None:
            _background.loop().call_soon_threadsafe(self._alarm.cancel)
            self._alarm = None
        end = self._record()
        failure: BaseException | None = None
        try:
            await self._write_end(end)
        except BaseException as error:
            failure = error
            raise
        finally:
            _line.leave(self._place, self)
            self.telemetry.end(
                end.state if failure is None else "failed",
                self._error or failure,
                new_items=self._stored,
                usage=end.usage,
            )

    async def _write_end(self, end: TurnEnd) -> None:
        taken = self._taken
        if taken is None:
            return
        try:
            for left in self._left:  # an earlier attempt's runs that were not made again
                if left.carried and not left.has_outputs and end.state == "completed":
                    await self.store.retry_run(taken.lease, left.run, self.next_run())
            if end.discard:
                with self.telemetry.operation("delete_memory"):
                    await self.store.end_turn(taken.lease, end)
            else:
                await self.store.end_turn(taken.lease, end)
        except MemoryUnavailable as error:
            # The items are safe; what is lost is the record, which only a key relies on.
            if self.idempotency_key is not None and self.options.on_unavailable == "raise":
                raise
            self.telemetry.event("save_failed", error_type=type(error.__cause__ or error).__name__)

    def _record(self) -> TurnEnd:
        error = self._error
        state: TurnState
        if error is None:
            state = "awaiting_approval" if self._parked else "completed"
        elif isinstance(error, Exception):
            state = "failed"
        else:
            state = "cancelled"
        usage: dict[str, int] = {}
        for reported in self._usage.values():
            for name, count in reported.items():
                usage[name] = usage.get(name, 0) + count
        return TurnEnd(
            state=state,
            ended_at=datetime.now(UTC),
            runs=dict(self._states),
            discard=self.options.on_failure == "discard" and state in ("failed", "cancelled"),
            park=next(reversed(self._parked)) if state == "awaiting_approval" else None,
            durable=self.idempotency_key is not None,
            agent=self._agent,
            error_type=None if error is None else type(error).__name__,
            sdk_trace_ids=tuple(self._traces),
            otel_trace_id=self.telemetry.otel_trace_id,
            usage=usage or None,
            output_text=self._output if state == "completed" else None,
            history_digest=self._digest,
        )

    # --- a memory that fails ---------------------------------------------------------------

    def _may_forget(self, event: str, error: MemoryUnavailable) -> bool:
        self.telemetry.event(event, error_type=type(error.__cause__ or error).__name__)
        if self.options.on_unavailable != "forget":
            return False
        self.forgotten = True
        return True

    def forgets(self, event: str, error: MemoryUnavailable) -> bool:
        """Whether the run goes on without memory from here on; reported either way."""
        return self._may_forget(event, error)


def joined_turn(session_id: str, options: Options) -> Turn | None:
    """The turn in force here if it is of that session and goes on, joined; else None."""
    turn = turn_here()
    identity = options.turns.identity
    for candidate in () if turn is None else (turn, *turn.held_with()):
        if candidate.session_id == session_id and candidate.memory_identity == identity:
            return candidate if candidate.join() else None
    return None


def turn_here() -> Turn | None:
    """The turn of the scope in force here; it may be over."""
    scope = current_scope()
    return scope.turn if scope is not None and isinstance(scope.turn, Turn) else None
