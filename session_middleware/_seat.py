"""A part in a turn: for whom it was made, and whoever joined, until they leave.

The last one to leave ends the turn: awaiting that, blocking for it, or neither, as the place
where it happens allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from session_middleware import _background
from session_middleware._options import Options
from session_middleware._turn import Turn, turn_here
from session_middleware.errors import InvalidOption


class Seat:
    """A part in a turn, to be left exactly once."""

    def __init__(self, turn: Turn, *, owner: bool) -> None:
        self.turn = turn
        self._owner = owner
        self._loop = _running_loop()

    @classmethod
    def of_new(cls, turn: Turn) -> Seat:
        """The seat of the one a turn is made for, who decides what comes of it."""
        turn.enter(owner=True)
        return cls(turn, owner=True)

    @classmethod
    def here(cls, session_id: str, options: Options, key: str | None) -> Seat | None:
        """A seat in the turn in force here, if it is of that session and goes on; else None.

        Raises:
            InvalidOption: the call has an idempotency key, and the turn it is part of another.
            TurnLost: its time is over, and what it was made for goes on all the same.
        """
        turn = turn_here()
        identity = options.turns.identity
        for candidate in () if turn is None else (turn, *turn.held_with()):
            if candidate.session_id == session_id and candidate.memory_identity == identity:
                if key not in (None, candidate.idempotency_key) and not candidate.is_over:
                    raise InvalidOption(
                        f"idempotency_key={key!r:.60} is given to a part of turn "
                        f"{candidate.number or '(starting)'} of session {session_id!r}, and is "
                        "the whole turn's: give it to the call or scope that the turn begins with"
                    )
                if candidate.enter(owner=False):
                    return cls(candidate, owner=False)
                candidate.complain_of_lateness()
                return None
        return None

    @property
    def owes(self) -> bool:
        """Whether items wait to be stored that leaving will not store: the turn goes on."""
        return self.turn.owes and self.turn.is_shared

    async def send(self) -> None:
        """Store them, as long as the run can still fail for it."""
        await self.turn.send()

    async def leave(self, error: BaseException | None = None) -> None:
        """Leave the turn; the last one to leave ends it, and hears of what went wrong then."""
        turn = self.turn
        last = turn.left(error, owner=self._owner)
        loop_is_gone = self._loop is not None and self._loop.is_closed()
        if isinstance(error, GeneratorExit) or loop_is_gone:  # closed coroutines must not await
            if last:
                _background.submit(turn.end_quietly())
            return
        if last:
            await _finish(turn.end(), error)
            return
        if turn.owes:  # the turn goes on, and others may look for what this part did
            await _finish(turn.send(), error)
        if turn.expiry is not None:
            await _background.finish(asyncio.wrap_future(turn.expiry))
        if error is None:
            turn.complain_of_expiry()

    def leave_blocking(self, error: BaseException | None = None) -> None:
        """Leave the turn, from code that has no running loop."""
        turn = self.turn
        if turn.left(error, owner=self._owner):
            _background.wait(turn.end() if error is None else turn.end_quietly())
            return
        if turn.owes and _running_loop() is None:  # one that stores may be waiting for this loop
            with suppress(*([Exception] if error is not None else [])):
                _background.wait(turn.send())
        if turn.expiry is not None:
            turn.expiry.result()
        if error is None:
            turn.complain_of_expiry()

    def leave_soon(self, error: BaseException | None = None) -> None:
        """Leave the turn, from code that can neither await nor block."""
        if self.turn.left(error, owner=self._owner):
            _background.submit(self.turn.end_quietly())


async def _finish(work: Awaitable[None], error: BaseException | None) -> None:
    """Await ``work`` whatever happens; what goes wrong is heard where there is no error yet."""
    done, cancelled = await _background.settle(work)
    if error is None:
        if cancelled is not None:
            raise cancelled
        done.result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
