"""session_scope: a turn as a block.

This module only enters and leaves the turn; ``_turns`` does its work.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from typing import Any, Self, Unpack

from session_middleware import _background
from session_middleware._background import loop_is_running
from session_middleware._entry.arguments import check_fingerprint, check_key
from session_middleware._entry.intercept import ensure_intercepted, no_longer_needed
from session_middleware._turns.participant import Participant
from session_middleware._turns.turn import ActiveTurn
from session_middleware.errors import InvalidOption, SessionIdRequired
from session_middleware.memory_option import MemoryOption
from session_middleware.options import TurnOptions, disabled, make_options


class session_scope:  # noqa: N801 - used like a function
    """A turn as a block: runs inside it belong to the session.

    ``async with`` acquires the session on entry; a stream that was started inside carries the
    turn on after the block. ``with`` does the same for code without an event loop. A block in
    which no run was made is told in the log, at warning: a scope that was entered in another
    thread or context than its runs, such as in a synchronous dependency of FastAPI, never
    reaches them.

    Args:
        session_id: the session's id.
        memory: as for ``with_session_memory``. Default True.
        idempotency_key: names the request, so that a retry does not do its work twice. Default
            None.
        fingerprint: what the request asks for, as JSON or a pydantic model: the same key with
            another fingerprint is IdempotencyConflict. Default None: the key alone counts.
        options: as for ``with_session_memory``, with the same defaults.

    Raises:
        SessionBusy: another turn holds the session, with ``on_busy="reject"`` or after waiting.
        TurnInProgress, DuplicateTurn, IdempotencyConflict: the request was made before.
        InvalidSessionId, InvalidOption: when it is made.

    >>> async def handler(agent, text):
    ...     async with session_scope("user-42", memory=":memory:", on_busy="reject"):
    ...         return await Runner.run(agent, text)
    """

    def __init__(
        self,
        session_id: str,
        *,
        memory: MemoryOption = True,
        idempotency_key: str | None = None,
        fingerprint: Any = None,
        **options: Unpack[TurnOptions],
    ) -> None:
        if session_id is None:
            raise SessionIdRequired(
                'session_scope() needs a session_id, such as session_scope("user-42")'
            )
        self._options = make_options(memory, dict(options)).in_force()
        self.session_id = self._options.full_id(session_id)
        self._key = check_key(idempotency_key)
        self._fingerprint = check_fingerprint(fingerprint)
        if self._fingerprint is not None and self._key is None:
            raise InvalidOption("fingerprint needs an idempotency_key: give both, or neither")
        self._turn: ActiveTurn | None = None
        self._exits: AsyncExitStack | ExitStack | None = None

    @property
    def turn(self) -> int | None:
        """The turn's number while it holds the session."""
        return None if self._turn is None else self._turn.number

    @property
    def _has_memory(self) -> bool:
        return self._options.memory is not None and not disabled()

    def _join(self) -> Participant | None:
        if not self._has_memory:
            return None
        if self._turn is not None:
            raise InvalidOption(
                "this session_scope was entered before, and is one turn: make a new one for each "
                "block"
            )
        participant = Participant.here(self.session_id, self._options, self._key)
        if participant is None:
            turn = ActiveTurn(
                self.session_id,
                self._options,
                name="session_scope",
                idempotency_key=self._key,
                input_digest=self._fingerprint,
            )
            participant = Participant.of_new(turn)
        participant.expects_run = True
        ensure_intercepted(self)
        return participant

    async def __aenter__(self) -> Self:
        if self._has_memory:
            await Participant.approach(self.session_id, self._options)
        participant = self._join()
        if participant is not None:
            async with AsyncExitStack() as exits:
                exits.callback(no_longer_needed, self)
                turn = await exits.enter_async_context(participant)
                await turn.acquire()
                exits.enter_context(turn.in_force())
                self._turn, self._exits = turn, exits.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        exits = self._left()
        if isinstance(exits, AsyncExitStack):
            await exits.__aexit__(*exc_info)

    def __enter__(self) -> Self:
        participant = self._join()
        if participant is not None:
            with ExitStack() as exits:
                exits.callback(no_longer_needed, self)
                turn = exits.enter_context(participant)
                if not loop_is_running():  # else the first access to the memory acquires it
                    _background.wait(turn.acquire())
                exits.enter_context(turn.in_force())
                self._turn, self._exits = turn, exits.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        exits = self._left()
        if isinstance(exits, ExitStack):
            exits.__exit__(*exc_info)

    def _left(self) -> AsyncExitStack | ExitStack | None:
        exits, self._turn, self._exits = self._exits, None, None
        return exits
