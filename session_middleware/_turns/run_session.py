"""One Runner run inside a turn: the session that the SDK is given for it.

The SDK does the merging, the persisting of each model turn, approvals and guardrails, all
through its ``session=``. This module hands it one that belongs to exactly this run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, Self, cast

from session_middleware import _sdk
from session_middleware._sdk import RunCall
from session_middleware._turns import continuing, wrapped_session
from session_middleware._turns.new_input import NewInput
from session_middleware._turns.progress import RunProgress
from session_middleware._turns.redact import Redaction
from session_middleware._turns.reports import RunReports
from session_middleware._turns.signature import SignatureAtHand
from session_middleware._turns.tool_calls import RunCalls
from session_middleware._turns.turn import ActiveTurn
from session_middleware.errors import ConflictingMemory, MemoryUnavailable
from session_middleware.history import only_words, repair
from session_middleware.stores.items import encode_items
from session_middleware.stores.records import Item, RunState
from session_middleware.stores.reported import unreported


class RunSession:
    """The SDK's ``Session`` for one run of a turn.

    A context manager around the run: leaving the block ends it.

    Attributes:
        result: what the Runner returned.
        failure: how the run ended, where no exception says so.
    """

    def __init__(self, turn: ActiveTurn, call: RunCall) -> None:
        server_state = call.server_state
        if server_state is not None:
            raise ConflictingMemory(
                f"{server_state} leaves the history to the model's provider, a session keeps it "
                "here: use one of the two"
            )
        self.turn = turn
        self.held = turn.session
        self.session_id = turn.session_id
        self.session_settings = getattr(call.session, "session_settings", None)
        self.call = call
        self._wrapper = None
        if _sdk.underlying_session(call.session) is not None:
            mine = cast(wrapped_session.SessionOfRun, self)
            self._wrapper = wrapped_session.WrappedSession(call.session, mine)
        self._input = NewInput(call, turn.options, wrapped=self._wrapper is not None)
        turn.tracker.count(None if call.resumes else call.input)
        self._opaque = False  # the wrapper changes the items that are stored
        self.resumes = _sdk.parked_identity(call.input) if call.resumes else None
        self.result: Any = None
        self.failure: BaseException | None = None
        self._progress = RunProgress()
        self._in_trace = False  # whether the run's SDK trace was reported
        self._span: Any = None
        self._redaction = Redaction(turn.options.redact, resumed=call.resumes)
        self.calls = RunCalls(turn, readable=self._wrapper is None)
        self._behind_stored = False

    @property
    def continues(self) -> bool:
        """Whether the run goes on from tool outputs that an earlier one left."""
        return self._progress.continues

    def starts_behind(self, items: int) -> None:
        """So many items of the run are stored already."""
        self._progress.position = items

    def continues_behind_stored(self) -> None:
        """The run is made without the state that it resumes, behind the turn's own items."""
        self._behind_stored = True

    # --- the SDK's Session -----------------------------------------------------------------

    @SignatureAtHand
    async def get_items(self, limit: int | None = None) -> list[Item]:
        """The history for the model; for a resumed run the newest of its turn's own items."""
        try:
            number = await self.begin()
            if self.held.forgotten:
                return []
            if self.resumes is not None and not self._behind_stored:
                return await self.held.load_own(limit)
            return await self.held.load(number, limit, own_last=self._behind_stored)
        except MemoryUnavailable as error:
            if not self.held.forgets("load_failed", error):
                raise
            return []

    async def add_items(self, items: list[Item], before: list[Item] | None = None) -> None:
        """Store what the SDK hands over, under this run.

        Args:
            before: the items as they were before a wrapper changed them.
        """
        if before is not None and before != items:
            self._opaque = True
            wrapped_session.refuse_opaque_items(self.turn, self._wrapper)
        try:
            number = await self.begin()
            if not self._in_trace:
                self._in_trace = True
                self.held.report_trace(_sdk.trace_here())
            if self._redaction.asks_for_stored:
                self._redaction.knows_stored(await self.held.load_own(None))
            kept = self._redaction.apply(items)
            if not kept or self.held.forgotten:
                return
            # Interrupted from here on, they may be stored or not: a run that is made again asks.
            self._progress.unsure = True
            await self._store(number, kept)
        except MemoryUnavailable as error:
            if not self.held.forgets("save_failed", error):
                raise
            return
        self.calls.handed_over(before or items)
        self._progress.position += len(kept)
        self._progress.unsure = False

    async def _store(self, number: int, items: list[Item]) -> None:
        early = self.held.buffer.early(number)
        if early is not None and encode_items(items) == early.texts:
            self.held.hand_over_early(early)
            return
        position = self._progress.position
        last = position > 0 and only_words(items)
        await self.held.append(
            number, position, items, self._input.digest, last=last, instead=early is not None
        )

    async def pop_item(self) -> Item | None:
        """Remove and return the newest item of the session."""
        await self.begin()
        with self.in_force(), self.turn.telemetry.operation("delete_memory") as operation:
            item = await self.held.store.pop_item(self.session_id)
            operation.count = 0 if item is None else 1
        return item

    async def clear_session(self) -> None:
        """Forget the session's items; the turn goes on."""
        await self.begin()
        memory: Any = self.turn.options.memory
        telemetry = self.turn.telemetry
        with self.in_force(), telemetry.operation("delete_memory") as told, unreported(told):
            await memory.clear_session(self.session_id)

    # --- before the run --------------------------------------------------------------------

    async def prepare(self) -> None:
        """Acquire the session and see what this run goes on from, before the Runner is called."""
        try:
            await self.begin()
        except MemoryUnavailable as error:
            if not self.held.forgets("load_failed", error):
                raise
        if self.continues:
            self.call.continue_with(await continuing.agent_that_spoke(self))
        else:
            self._input.leave_out_repeated()

    def prepare_streamed(self) -> None:
        """The same for a streamed run, which must be called before anything can be awaited."""
        if self.turn.lease is not None and self.resumes is None:
            self._claim()
        if self.gated:
            return
        may_continue = self._progress.left is not None
        if self.turn.lease is None:
            may_continue = self.turn.idempotency_key is not None
        if may_continue or self._input.may_repeat:
            given = self._input
            _sdk.drop_new_input(self.call, lambda: None if self.continues else given.repeated)

    async def prepare_called(self) -> None:
        """The same for a streamed run that was called already, and has not begun."""
        await self.prepare()
        if self._span is None:  # one that no longer resumes its state has a trace of its own
            self._correlate()

    async def begin(self) -> int:
        """Acquire the session if that is still to be done, and get a number in the turn."""
        turn, progress, early = self.turn, self._progress, None
        if turn.lease is None:
            early = self._input.early()
            await turn.acquire(read=self.resumes is None, given=early)
        if progress.number is None:
            if self.resumes is not None:
                await turn.resume(self.resumes)
            else:
                self._claim()
            stored_early = early is not None and self.held.buffer.is_early(early)
            number = early.run if early and stored_early else turn.next_run()
            progress.number = self.calls.run = number
            turn.tracker.start(number)
            if self.resumes is not None:
                turn.tracker.resume(number, self.resumes)
                await continuing.resume(self, number)
            if progress.left is not None:
                progress.take_over(await continuing.adopt(self, progress.left, number))
            if not self.continues:
                await self._input.find_repeated(self.held)
        return progress.number

    def _claim(self) -> None:
        progress = self._progress
        if progress.left is None and progress.number is None:
            left = self.turn.tracker.claim(self._input.digest)
            progress.left = None if self._wrapper is not None else left

    def in_force(self) -> AbstractContextManager[None]:
        """Put the turn in force for this run."""
        return self.turn.in_force(self)

    @property
    def on_departure(self) -> Literal["finish", "cancel"]:
        """What becomes of a streamed run whose reader leaves before its end."""
        default: Literal["finish", "cancel"] = "cancel" if self.turn.of_generator else "finish"
        return self.turn.options.on_departure or default

    @property
    def gated(self) -> bool:
        """Whether a streamed run must have its turn before it begins, as that may change its call.

        If it resumes a run, or may go on from an earlier one that handed over to another agent.
        """
        if self.resumes is not None:
            return True
        may_continue = self._progress.left is not None or self.turn.idempotency_key is not None
        return may_continue and continuing.may_hand_over(self.call.starting_agent)

    def equip(self) -> None:
        """Put session, hooks and trace correlation into the call's arguments."""
        session = self if self._wrapper is None else self._wrapper
        self.call.equip(session, RunReports.behind(self.call.hooks))
        # A provider that repeats its call ids may use one again that the history has: only what
        # the model is about to be given shows it.
        _sdk.filter_model_input(self.call, self._model_input)
        self._correlate()

    def _correlate(self) -> None:
        telemetry = self.turn.telemetry
        self._span, mismatch = _sdk.correlate(self.call, telemetry.trace_metadata())
        if mismatch is not None:
            telemetry.event("outer_trace_group_mismatch")

    def _model_input(self, items: list[Item]) -> list[Item]:
        self.held.manifest.called(self._progress.number, len(items))
        repaired, receipt = repair(items)
        if receipt:
            self.turn.telemetry.repaired(receipt.counts)
        return repaired

    # --- the run's end ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """The run is over."""
        error = error or self.failure
        number = self._progress.number
        if self._span is not None:
            self._span.finish(reset_current=self.call.method != "run_streamed")
        if self.held.buffer.early(number) is not None:
            self.held.buffer.withdraw()
        self.calls.stop(error)
        # The SDK carries a state forward as it resumes it, and it is known by another name then.
        alias = _sdk.resumed_identity(self.call.input) if self.call.resumes else None
        self.call.forget()  # they name this run: without them it is freed at once
        if error is not None:
            state: RunState = "failed" if isinstance(error, Exception) else "cancelled"
            left = None if self._wrapper is not None else self._progress.leaves(self._input.digest)
            self.turn.tracker.stop(number, state, left=left, alias=alias)
            hidden = self.calls.failure
            if isinstance(error, Exception) and hidden not in (None, error):
                raise hidden
            return
        outcome = _sdk.outcome_of(self.result)
        self.turn.tracker.stop(
            number,
            "completed" if outcome.parked is None else "awaiting_approval",
            parked=self._redaction.kept_state(outcome.parked, keep=self.turn.options.keeps_state),
            alias=alias if outcome.parked is None else None,
            agent=outcome.agent,
            output=None if self._opaque else self._redaction.output_text(outcome.output_text),
        )

    async def end(self) -> None:
        """Say, once the run is over, that it stores nothing more."""
        if not self.turn.over:
            await self.held.end_run(self._progress.number)
