"""Waiting for a busy session: who asked first gets it first."""

from __future__ import annotations

import asyncio
from typing import Any

from session_middleware.conformance.cases import given_turns, needs
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import TurnTests, acquire, end, refused
from session_middleware.errors import DuplicateTurn, SessionBusy
from session_middleware.stores.protocol import TICKETS

_LONG = 60.0
"""Seconds that no test waits for."""


class TicketTests(TurnTests):
    """Tickets, and waiting with one. (TICKETS)"""

    @given_turns
    @needs(TICKETS)
    async def test_a_session_goes_to_who_asked_first(self, turns: Any) -> None:
        """However often the others ask, and in whatever order."""
        holder = await acquire(turns)
        for ticket in (1, 2, 3):
            await refused(SessionBusy, acquire(turns, ticket=ticket))
        for first, others in ((1, (3, 2)), (2, (3,)), (3, ())):
            await end(turns, holder)
            for ticket in others:
                await refused(SessionBusy, acquire(turns, ticket=ticket))
            holder = await acquire(turns, ticket=first)
        await end(turns, holder)
        await end(turns, await acquire(turns, ticket=4))

    @given_turns
    @needs(TICKETS)
    async def test_who_does_not_wait_does_not_jump_the_line(self, turns: Any) -> None:
        """A request without a ticket is refused as long as others wait for the session."""
        holder = await acquire(turns)
        await refused(SessionBusy, acquire(turns, ticket=1))
        await end(turns, holder)
        await refused(SessionBusy, acquire(turns))
        await end(turns, await acquire(turns, "other"))
        await end(turns, await acquire(turns, ticket=1))
        await end(turns, await acquire(turns))

    @given_turns
    @needs(TICKETS)
    async def test_a_ticket_that_is_withdrawn_lets_others_move_up(self, turns: Any) -> None:
        """Whoever waits no longer stands in nobody's way."""
        holder = await acquire(turns)
        for ticket in (1, 2):
            await refused(SessionBusy, acquire(turns, ticket=ticket))
        await end(turns, holder)
        await turns.withdraw_ticket("s", 1)
        await turns.withdraw_ticket("s", 7)
        await end(turns, await acquire(turns, ticket=2))

    @given_turns
    @needs(TICKETS)
    async def test_waiting_ends_with_the_turn(self, turns: Any) -> None:
        """However the session becomes free, whoever is first in its line hears of it."""

        async def ends(lease: Any) -> None:
            await end(turns, lease)

        async def releases(lease: Any) -> None:
            await turns.release("s")

        async def clears(lease: Any) -> None:
            await turns.clear_session("s")

        async def saves(lease: Any) -> None:
            await turns.save_session("s", [user("1")])

        for ticket, frees in enumerate((ends, releases, clears, saves), start=1):
            holder = await acquire(turns)
            await refused(SessionBusy, acquire(turns, ticket=ticket))
            waiting = asyncio.ensure_future(turns.wait_for_session("s", ticket, _LONG))
            await asyncio.sleep(0)
            await frees(holder)
            async with asyncio.timeout(_LONG / 2):
                while True:
                    await waiting
                    try:
                        holder = await acquire(turns, ticket=ticket)
                        break
                    except SessionBusy:  # it may return early
                        waiting = asyncio.ensure_future(turns.wait_for_session("s", ticket, _LONG))
            await end(turns, holder)

    @given_turns
    @needs(TICKETS)
    async def test_what_was_done_before_is_told_in_the_line(self, turns: Any) -> None:
        """A repeated request is a duplicate at once, whoever waits and with a ticket or without."""
        done = await acquire(turns, idempotency_key="k")
        await end(turns, done)
        await acquire(turns)
        await refused(SessionBusy, acquire(turns, ticket=1))
        await refused(DuplicateTurn, acquire(turns, idempotency_key="k", ticket=2))
        await refused(DuplicateTurn, acquire(turns, idempotency_key="k"))
