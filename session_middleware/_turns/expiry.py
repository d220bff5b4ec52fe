"""The time limit of a turn (``turn_timeout``), and what its participants hear when it is over.

Only the session is taken from the turn: what still runs is not cancelled, and can write no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from session_middleware import _background
from session_middleware.errors import TurnLost


class Expiry:
    """The time limit of one turn.

    Args:
        seconds: after which it is over; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._ended: Future[None] | None = None

    @property
    def expired(self) -> bool:
        """Whether the turn's time was over before it ended."""
        return self._ended is not None

    def start(
        self,
        close: Callable[[TimeoutError, Callable[[], None]], bool],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        """The turn has its session: its time begins.

        Args:
            close: closes the turn with this error, and calls the function at that very moment;
                False if the turn is over already.
            end: ends the turn, and raises nothing.
        """
        seconds = self._seconds
        if seconds is None:
            return
        loop = _background.loop()

        async def expire() -> None:
            ended: Future[None] = Future()
            if close(TimeoutError(self._reason), lambda: setattr(self, "_ended", ended)):
                try:
                    await end()
                finally:
                    ended.set_result(None)

        def set_timer() -> None:
            if not self._stopped:
                self._timer = loop.call_later(seconds, lambda: loop.create_task(expire()))

        loop.call_soon_threadsafe(set_timer)

    def stop(self) -> None:
        """The turn ends."""
        self._stopped = True
        if self._timer is not None:
            _background.loop().call_soon_threadsafe(self._timer.cancel)
            self._timer = None

    @property
    def _reason(self) -> str:
        return f"the turn took longer than {self._seconds} s"

    # --- for those who are part of the turn --------------------------------------------------

    async def wait(self) -> None:
        """Wait until an expired turn has ended."""
        if self._ended is not None:
            await _background.finish(asyncio.wrap_future(self._ended))

    def wait_blocking(self) -> None:
        """The same, from code that has no running loop."""
        if self._ended is not None:
            self._ended.result()

    def raise_if_expired(self, consequence: str = "what it stored until then is kept") -> None:
        """Raise TurnLost, so that nobody reports success for a turn that had lost its session."""
        if self.expired:
            raise TurnLost(f"{self._reason}; {consequence}: start a new turn")

    def refuse_late_join(self) -> None:
        """Raise TurnLost for a call inside an expired turn.

        The call would begin a new turn, as if nothing had happened.
        """
        self.raise_if_expired("a call inside the turn can store nothing more")
