"""A part in a turn: for whom it was made, and whoever joined, until they leave.

A participant is a context manager, ``with`` or ``async with``; leaving the block leaves the turn.
The last one to leave ends the turn: awaiting that, blocking for it, or neither, as the place
where it happens allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from session_middleware import _background, _sdk
from session_middleware._background import loop_is_running
from session_middleware._sdk import RunCall
from session_middleware._turns.approach import approach
from session_middleware._turns.new_input import input_digest
from session_middleware._turns.run_session import RunSession
from session_middleware._turns.turn import ActiveTurn, turn_here
from session_middleware.errors import InvalidOption
from session_middleware.options import Options


class Participant:
    """A part in a turn, to be left exactly once.

    Args:
        turn: the turn, which counts this part already.
        owner: the turn was made for it.

    Attributes:
        expects_run: it was made for runs, so that having none is told.
        is_generator: it may await when it is closed, unlike a coroutine.
        failure: how it ended, where no exception says so.
    """

    def __init__(self, turn: ActiveTurn, *, owner: bool) -> None:
        self.turn = turn
        self.expects_run = False
        self.is_generator = False
        self.failure: BaseException | None = None
        self._owner = owner
        self._loop = asyncio.get_running_loop() if loop_is_running() else None

    @classmethod
    def of_new(cls, turn: ActiveTurn) -> Participant:
        """The participant that a turn is made for, and that decides what comes of it."""
        _background.check_threads()
        turn.members.enter(owner=True)
        turn.telemetry.start()
        return cls(turn, owner=True)

    @classmethod
    def here(cls, session_id: str, options: Options, key: str | None) -> Participant | None:
        """A participant in the turn in force here, if it is of that session and goes on; else None.

        Raises:
            InvalidOption: the call has an idempotency key, and its turn has another.
            TurnLost: the turn's time is over, and what it was made for goes on all the same.
        """
        turn = _turn_here_of(session_id, options)
        if turn is not None:
            _check_key(turn, key)
            if turn.members.enter(owner=False):
                return cls(turn, owner=False)
            if not turn.ended:
                turn.expiry.refuse_late_join()
        return None

    @staticmethod
    async def approach(session_id: str, options: Options) -> None:
        """Wait with making a participant while many others come to the session at once."""
        if _turn_here_of(session_id, options) is None:
            await approach((options.turns.identity, session_id))

    @classmethod
    def for_call(
        cls, session_id: str, options: Options, call: RunCall, key: str | None
    ) -> Participant:
        """A participant in the turn in force, if it is of that session, else in a new one."""
        return cls.here(session_id, options, key) or cls.of_new(
            ActiveTurn(
                session_id,
                options,
                name=call.workflow_name,
                idempotency_key=key,
                input_digest=None if call.resumes else input_digest(call),
                resume=_sdk.parked_identity(call.input) if call.resumes else None,
                streaming=call.method == "run_streamed",
            )
        )

    def new_run(self, call: RunCall) -> RunSession:
        """The session of a run that is about to be made in the turn."""
        return RunSession(self.turn, call)

    async def deliver(self) -> None:
        """Store what leaving will not store as the turn goes on, while the run can fail for it."""
        if self.turn.session.buffer and self.turn.members.are_several:
            await self.turn.session.flush()

    def deliver_blocking(self) -> None:
        """The same, from code that has no running loop."""
        _background.wait(self.deliver())

    # --- leaving ---------------------------------------------------------------------------

    async def __aenter__(self) -> ActiveTurn:
        return self.turn

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        await self._leave(self._outcome(error))

    def __enter__(self) -> ActiveTurn:
        return self.turn

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        outcome = self._outcome(error)
        # With a key, the record must be durable before the call returns.
        durable = self.turn.idempotency_key is not None and outcome is None
        if durable or not loop_is_running():
            self._leave_blocking(outcome)
        else:
            self.leave_soon(outcome)

    def _outcome(self, error: BaseException | None) -> BaseException | None:
        error = error or self.failure
        if error is None and self.expects_run and self.turn.tracker.made == 0:
            self.turn.telemetry.event("no_run_intercepted")
        if isinstance(error, GeneratorExit) and self.is_generator:
            return asyncio.CancelledError()
        return error

    async def _leave(self, error: BaseException | None) -> None:
        """Leave the turn; the last one to leave ends it, and hears of what went wrong then."""
        turn = self.turn
        last = turn.members.leave(error, owner=self._owner)
        loop_is_gone = self._loop is not None and self._loop.is_closed()
        if isinstance(error, GeneratorExit) or loop_is_gone:  # closed coroutines must not await
            if last:
                _background.submit(turn.end_quietly())
            return
        if last:
            await _finish(turn.end(), error)
            return
        if turn.session.buffer:  # the turn goes on, and others may look for what this part did
            await _finish(turn.session.flush(), error)
        await turn.expiry.wait()
        if error is None:
            turn.expiry.raise_if_expired()

    def _leave_blocking(self, error: BaseException | None) -> None:
        turn = self.turn
        if turn.members.leave(error, owner=self._owner):
            with _telling(error):
                _background.wait(turn.end())
            return
        if turn.session.buffer and not loop_is_running():  # whoever stores may need this loop
            with _telling(error):
                _background.wait(turn.session.flush())
        turn.expiry.wait_blocking()
        if error is None:
            turn.expiry.raise_if_expired()

    def unless_handed_on(self) -> ExitStack:
        """A block that leaves the turn, unless its exits are taken off (``pop_all``)."""
        stack = ExitStack()
        stack.enter_context(self)
        return stack

    def leave_soon(self, error: BaseException | None = None) -> None:
        """Leave the turn, from code that can neither await nor block."""
        if self.turn.members.leave(error, owner=self._owner):
            _background.submit(self.turn.end_quietly())


def _turn_here_of(session_id: str, options: Options) -> ActiveTurn | None:
    """The turn in force here, or one around it, that is of this session."""
    turn = turn_here()
    identity = options.turns.identity
    for candidate in () if turn is None else (turn, *turn.enclosing()):
        if candidate.session_id == session_id and candidate.memory_identity == identity:
            return candidate
    return None


def _check_key(turn: ActiveTurn, key: str | None) -> None:
    if key not in (None, turn.idempotency_key) and not turn.over:
        raise InvalidOption(
            f"idempotency_key={key!r:.60} is given to a part of turn {turn.number or '(starting)'} "
            f"of session {turn.session_id!r}, and must name the whole turn: give it to the call or "
            "scope that the turn begins with"
        )


async def _finish(work: Awaitable[None], error: BaseException | None) -> None:
    """Await ``work`` whatever happens; what goes wrong is told as ``_telling`` says."""
    done, cancelled = await _background.run_shielded(work)
    if error is None and cancelled is not None:
        raise cancelled
    with _telling(error):
        done.result()


@contextmanager
def _telling(error: BaseException | None) -> Iterator[None]:
    """Raise what goes wrong in the block; an error of another kind that is there gets a note."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        if type(failure) is not type(error):
            error.add_note(f"What this turn did last could not be stored: {failure}")
