"""One Runner run inside a turn: the session that the SDK is given for it.

The SDK does the merging, the persisting of each model turn, approvals and guardrails, all
through its ``session=``. This module hands it one that belongs to exactly this run.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from session_middleware import _sdk
from session_middleware._account import LeftRun
from session_middleware._options import Options
from session_middleware._redaction import Redaction
from session_middleware._sdk import RunCall
from session_middleware._seat import Seat
from session_middleware._turn import Turn
from session_middleware.errors import ConflictingMemory, InvalidItem, MemoryUnavailable
from session_middleware.history import digest, holds_output, only_words, repair
from session_middleware.hooks import SessionRunHooks
from session_middleware.memory import Item, RunItems, RunState
from session_middleware.stores import encode_items


def input_digest(call: RunCall) -> str:
    """What two runs with the same new input have in common; worked out once for a call."""
    if call.digest is None:
        call.digest = digest(_sdk.new_items(call.input))
    return call.digest


class _SignatureAtHand:
    """A method that has its signature ready when it is bound.

    The SDK asks for that of ``get_items`` before every call of any of its session's methods, and
    working it out takes longer than most of these calls.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        of_function = inspect.signature(method)
        self._signature = of_function.replace(parameters=[*of_function.parameters.values()][1:])

    def __get__(self, run: Run, owner: type[Run]) -> Callable[..., Any]:
        bound = functools.partial(self._method, run)
        vars(bound)["__signature__"] = self._signature
        return bound


class Run:
    """The SDK's ``Session`` for one run of a turn."""

    def __init__(self, turn: Turn, call: RunCall) -> None:
        server_state = call.server_state
        if server_state is not None:
            raise ConflictingMemory(
                f"{server_state} leaves the history to the model's provider, a session keeps it "
                "here: use one of the two"
            )
        turn.account.make(None if call.resumes else call.input)
        self.turn = turn
        self.session_id = turn.session_id
        self.session_settings = getattr(call.arguments.get("session"), "session_settings", None)
        self.call = call
        self.resumes = _sdk.parked_identity(call.input) if call.resumes else None
        self._digest = "" if call.resumes else input_digest(call)
        self._number: int | None = None
        self._merges = _sdk.merges_input(call)
        self._ahead: RunItems | None = None  # the input: stored, and not yet handed over
        self._left: LeftRun | None = None
        self._kept: int | None = None
        self._position = 0
        self._outputs = False
        self._unsure = False
        self._span: Any = None
        self._redaction = Redaction(turn.options.redact, resumed=call.resumes)

    @property
    def continues(self) -> bool:
        """Whether the run goes on from tool outputs that an earlier one left."""
        return bool(self._kept)

    # --- the SDK's Session -----------------------------------------------------------------

    @_SignatureAtHand
    async def get_items(self, limit: int | None = None) -> list[Item]:
        """The history for the model; for a resumed run the newest of its turn's own items."""
        try:
            number = await self._begin()
            if self.turn.forgotten:
                return []
            if self.resumes is not None:
                return await self.turn.load_own(limit)
            return await self.turn.load(number, limit)
        except MemoryUnavailable as error:
            if not self.turn.forgets("load_failed", error):
                raise
            return []

    async def add_items(self, items: list[Item]) -> None:
        """Store what the SDK hands over, under this run."""
        try:
            number = await self._begin()
            self.turn.traced(_sdk.trace_here())
            if self._redaction.asks_for_stored:
                self._redaction.knows_stored(await self.turn.load_own(None))
            kept = self._redaction.apply(items)
            if not kept or self.turn.forgotten:
                return
            # Interrupted from here on, they may be stored or not: a run that is made again asks.
            self._unsure = True
            instead = False
            if self._ahead is not None:
                texts, ahead, self._ahead = encode_items(kept), self._ahead, None
                if self.turn.has_stored(ahead) and texts == ahead.texts:
                    self.turn.hand_over(ahead)
                    self._position, self._unsure = len(kept), False
                    return
                instead = self.turn.has_stored(ahead)
            self._outputs = self._outputs or holds_output(kept)
            last = self._position > 0 and only_words(kept)
            await self.turn.append(
                number, self._position, kept, self._digest, last=last, instead=instead
            )
        except MemoryUnavailable as error:
            if not self.turn.forgets("save_failed", error):
                raise
            return
        self._position += len(kept)
        self._unsure = False

    async def pop_item(self) -> Item | None:
        """Remove and return the newest item of the session."""
        await self._begin()
        with self.turn.in_force(self), self.turn.telemetry.operation("delete_memory") as operation:
            item = await self.turn.store.pop_item(self.session_id)
            operation.count = 0 if item is None else 1
        return item

    async def clear_session(self) -> None:
        """Forget the session's items; the turn goes on."""
        await self._begin()
        memory = self.turn.options.memory
        assert memory is not None  # noqa: S101 - a turn has one
        with self.turn.in_force(self), self.turn.telemetry.operation("delete_memory"):
            await memory.clear_session(self.session_id)

    # --- its life --------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Take the session and see what this run goes on from, before the Runner is called."""
        try:
            await self._begin()
        except MemoryUnavailable as error:
            if not self.turn.forgets("load_failed", error):
                raise
        if self.continues:
            self.call.arguments["input"] = []

    def prepare_streamed(self) -> None:
        """The same for a streamed run, which must be called before anything can be awaited."""
        if self.resumes is not None:
            return
        may_continue = self.turn.idempotency_key is not None
        if self.turn.lease is not None:
            self._claim()
            may_continue = self._left is not None
        if may_continue:
            _sdk.drop_new_input(self.call, lambda: self.continues)

    async def _begin(self) -> int:
        """Take the session if that is still to be done, and get a number in the turn."""
        turn = self.turn
        if turn.lease is None:
            given = self._given()
            await turn.take(read=self.resumes is None, given=given)
            if given is not None and turn.has_stored(given):
                self._ahead = given
        if self._number is None:
            if self.resumes is not None:
                await turn.resume(self.resumes)
            else:
                self._claim()
            self._number = turn.next_run() if self._ahead is None else self._ahead.run
            turn.account.starts(self._number)
            if self._left is not None:
                self._kept = self._position = await self._take_over(self._left, self._number)
                self._outputs = self._position > 0
        return self._number

    def _given(self) -> RunItems | None:
        """The new input as the SDK will hand it over, where that can be told before it does."""
        changed = self.turn.options.redact is not None or self._merges
        if not self.turn.options.stores_with_taking or self.resumes is not None or changed:
            return None
        try:
            texts = encode_items(_sdk.new_items(self.call.input))
        except InvalidItem:  # refused when it is handed over, if it still is that
            return None
        return RunItems(1, 0, texts, self._digest) if texts else None

    async def _take_over(self, left: LeftRun | None, number: int) -> int:
        kept = 0
        while left is not None:
            kept += await self.turn.take_over(left, number)
            left = left.also
        return kept

    def _claim(self) -> None:
        if self._left is None and self._number is None:
            self._left = self.turn.account.claim(self._digest)

    def in_force(self) -> AbstractContextManager[None]:
        """Put the turn in force for this run."""
        return self.turn.in_force(self)

    @property
    def cancels_on_departure(self) -> bool:
        """Whether the run is cancelled when the consumer leaves its stream."""
        return self.turn.options.on_departure == "cancel"

    @property
    def gated(self) -> bool:
        """A resumed run must have its turn before its first tool is called."""
        return self.resumes is not None

    def equip(self) -> None:
        """Put session, hooks and trace correlation into the call's arguments."""
        arguments = self.call.arguments
        arguments["session"] = self
        arguments["hooks"] = SessionRunHooks.around(arguments.get("hooks"))
        # A provider that repeats its call ids may use one again that the history has: only what
        # the model is about to be given shows it.
        _sdk.filter_model_input(self.call, lambda items: repair(items)[0])
        turn = self.turn
        self._span, mismatch = _sdk.correlate(self.call, turn.telemetry.trace_metadata())
        if mismatch is not None:
            turn.telemetry.event("outer_trace_group_mismatch")

    def over(self, result: Any = None, error: BaseException | None = None, *, here: bool) -> None:
        """The run is over; ``here``: in the context it was called in."""
        if self._span is not None:
            self._span.finish(reset_current=here)
        if self._ahead is not None and self.turn.has_stored(self._ahead):
            self.turn.withdraw(self._ahead)
        self.call.arguments.clear()  # they name this run: without them it is freed at once
        state: RunState
        outcome = None
        if error is None:
            outcome = _sdk.outcome_of(result)
            state = "awaiting_approval" if outcome.parked is not None else "completed"
        else:
            state = "failed" if isinstance(error, Exception) else "cancelled"
        self.turn.account.stops(
            self._number,
            state,
            left=None if error is None else self._leaves_behind(),
            parked=outcome.parked if outcome else None,
            agent=outcome.agent if outcome else None,
            output=self._redaction.output_text(outcome.output_text) if outcome else None,
            usage=outcome.usage if outcome else None,
        )

    def _leaves_behind(self) -> LeftRun | None:
        """What there is to be made again of a run that did not complete."""
        claimed = self._left
        if self._number is None:
            return claimed
        if claimed is not None and self._kept is None:
            mine = LeftRun(self._number, self._digest, claimed.has_outputs, also=claimed.also)
            return dataclasses.replace(claimed, also=mine)
        if self._position > 0 or self._unsure:
            return LeftRun(self._number, self._digest, self._outputs)
        return None

    async def is_over(self) -> None:
        """What is to be awaited once the run is over."""
        await self.turn.run_is_over(self._number)


def seat_for(session_id: str, options: Options, call: RunCall, key: str | None) -> Seat:
    """A seat for a call in the turn in force, if it is of that session, else in a new one."""
    return Seat.here(session_id, options, key) or Seat.of_new(
        Turn(
            session_id,
            options,
            name=call.workflow_name,
            idempotency_key=key,
            input_digest=None if call.resumes else input_digest(call),
            resume=_sdk.parked_identity(call.input) if call.resumes else None,
            streaming=call.method == "run_streamed",
        )
    )
