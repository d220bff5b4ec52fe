"""Numbers that no session needs are served like any other; what is no number is refused."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance.cases import given_turns
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import TurnTests, one_turn, refused
from session_middleware.errors import InvalidOption
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.protocol import TurnStore

HUGE = 10**30


class EdgeTests(TurnTests):
    """Limits, numbers of turns and windows beyond what a storage can hold."""

    @given_turns
    async def test_a_huge_number_is_no_limit(self, turns: TurnStore) -> None:
        """More than there is, is all that there is; a turn of that number is none."""
        for number in range(3):
            await one_turn(turns, [user(f"{number}"), assistant(f"{number}")])
        records = await turns.turns("s")
        items = await turns.load_items("s")
        assert len(records) == 3
        assert len(items) == 6
        assert await turns.turns("s", limit=HUGE) == records
        assert await turns.turns("s", before=HUGE) == records
        assert await turns.turns("s", limit=HUGE, before=HUGE) == records
        assert await turns.turns("s", before=-HUGE) == []
        assert await turns.turns("s", limit=-HUGE) == []
        assert await turns.load_items("s", limit=HUGE) == items
        assert await turns.load_items("s", limit=-HUGE) == items
        assert await turns.load_items("s", turn=HUGE) == []
        assert await turns.load_items("s", turn=-HUGE) == []

    @given_turns
    async def test_a_huge_window_keeps_everything(self, turns: TurnStore) -> None:
        """Turns and items without number, and a cut that moves in steps without number."""
        for number in range(3):
            await one_turn(turns, [user(f"{number}"), assistant(f"{number}")])
        everything = await turns.load_turns("s")
        for newest in (LastTurns(HUGE), LastItems(HUGE), LastTurns(1, HUGE), LastTurns(HUGE, HUGE)):
            assert await turns.load_turns("s", newest=newest) == everything

    @given_turns
    async def test_a_limit_is_a_whole_number(self, turns: TurnStore) -> None:
        """A text, a fraction and a truth value are refused, whatever the session holds."""
        wrong: Any
        for wrong in ("1", 1.0, True, [1]):
            await refused(InvalidOption, turns.turns("s", limit=wrong))
            await refused(InvalidOption, turns.turns("s", before=wrong))
            await refused(InvalidOption, turns.load_items("s", limit=wrong))
