"""Items and the end of their turn as one write, and a history read with the taking."""

from __future__ import annotations

import json
from typing import Any

from session_middleware.conformance._items import assistant, call, output, user
from session_middleware.conformance._turns import (
    TurnFactory,
    end,
    given_turns,
    now,
    one_turn,
    refused,
    take,
)
from session_middleware.errors import SessionBusy, TurnLost
from session_middleware.history import LastItems, LastTurns
from session_middleware.memory import (
    Item,
    Lease,
    Reading,
    RunItems,
    SupportsTurns,
    SupportsTurnWrites,
    TurnEnd,
)


def run_items(run: int, position: int, *items: Item, digest: str | None = None) -> RunItems:
    return RunItems(run, position, [json.dumps(item) for item in items], digest)


class TurnWritesConformance(TurnFactory):
    """``SupportsTurnWrites``, for a memory that has it, and ``TakeTurn.read``."""

    @given_turns
    async def test_items_and_the_end_are_one_write(self, turns: SupportsTurns) -> None:
        """The items are there, the record is written, and the session is free."""
        if not isinstance(turns, SupportsTurnWrites):
            return
        taken = await take(turns)
        await turns.write_turn(taken.lease, [run_items(1, 0, user("1"), digest="d")])
        await refused(SessionBusy, take(turns))
        completed = TurnEnd("completed", now(), runs={1: "completed", 2: "completed"})
        last = [run_items(1, 1, assistant("1")), run_items(2, 0, user("2"), assistant("2"))]
        await turns.write_turn(taken.lease, last, completed)
        (record,) = await turns.turns("s")
        assert (record.state, record.runs, record.item_count) == ("completed", 2, 4)
        assert record.items == [user("1"), assistant("1"), user("2"), assistant("2")]
        assert (await take(turns)).lease.turn == taken.lease.turn + 1

    @given_turns
    async def test_what_is_written_twice_is_there_once(self, turns: SupportsTurns) -> None:
        """The same items at the same place once more change nothing, alone or with the end."""
        if not isinstance(turns, SupportsTurnWrites):
            return
        taken = await take(turns)
        items = [run_items(1, 0, user("1"), assistant("1"))]
        for _ in range(2):
            await turns.write_turn(taken.lease, items)
        await turns.write_turn(taken.lease, items, TurnEnd("completed", now()))
        assert await turns.load_items("s") == [user("1"), assistant("1")]

    @given_turns
    async def test_a_write_that_fails_writes_nothing(self, turns: SupportsTurns) -> None:
        """Neither its other items nor the end, where one item cannot be or the lease is lost."""
        if not isinstance(turns, SupportsTurnWrites):
            return
        taken = await take(turns)
        await turns.append_items(taken.lease, 1, 0, [user("1")])
        completed = TurnEnd("completed", now(), runs={1: "completed"})
        try:
            torn = [run_items(2, 0, user("2")), run_items(1, 0, user("another"))]
            await turns.write_turn(taken.lease, torn, completed)
        except ValueError:
            pass
        else:
            raise AssertionError("another item at a place that has one was accepted")
        assert await turns.load_items("s") == [user("1")]
        assert (await turns.turns("s"))[0].state == "running"
        stale = Lease("s", taken.lease.turn, taken.lease.token ^ 1)
        for how in (None, completed):
            await refused(TurnLost, turns.write_turn(stale, [run_items(1, 1, user("x"))], how))
        assert await turns.load_items("s") == [user("1")]
        await end(turns, taken, runs={1: "completed"})

    @given_turns
    async def test_what_is_read_with_the_taking_is_what_is_loaded(
        self, turns: SupportsTurns
    ) -> None:
        """A memory may answer ``TakeTurn.read`` or not; what it answers is the history."""
        newest: Any
        for at in range(4):
            for newest in (None, LastTurns(2), LastItems(3), LastItems(0)):
                for texts in (False, True):
                    taken = await take(turns, read=Reading(newest, texts))
                    if taken.loaded is not None:
                        assert taken.loaded == await turns.load_turns(
                            "s", newest=newest, texts=texts
                        )
                    await end(turns, taken)
            await one_turn(turns, [user(f"{at}"), call(f"{at}"), output(f"{at}"), assistant("-")])
