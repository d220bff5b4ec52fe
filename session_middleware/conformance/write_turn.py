"""Items and the end of their turn as one write, and a history read with acquiring."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from session_middleware.conformance.cases import given_turns, needs
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import (
    TurnTests,
    acquire,
    end,
    now,
    one_turn,
    refused,
)
from session_middleware.errors import SessionBusy, TurnLost
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.protocol import STORE_WITH_ACQUIRE, WRITE_TURN, TurnStore
from session_middleware.stores.records import Item, Lease, ReadRequest, RunItems, TurnEnd


def run_items(run: int, position: int, *items: Item, digest: str | None = None) -> RunItems:
    return RunItems(run, position, [json.dumps(item) for item in items], digest)


class WriteTurnTests(TurnTests):
    """``WRITE_TURN``, and what else a memory may do while it is acquired."""

    @given_turns
    @needs(WRITE_TURN)
    async def test_items_and_the_end_are_one_write(self, turns: TurnStore) -> None:
        """The items are there, the record is written, and the session is free."""
        acquired = await acquire(turns)
        await turns.write_turn(acquired.lease, [run_items(1, 0, user("1"), digest="d")])
        await refused(SessionBusy, acquire(turns))
        completed = TurnEnd("completed", now(), runs={1: "completed", 2: "completed"})
        last = [run_items(1, 1, assistant("1")), run_items(2, 0, user("2"), assistant("2"))]
        await turns.write_turn(acquired.lease, last, completed)
        (record,) = await turns.turns("s")
        assert (record.state, record.runs, record.item_count) == ("completed", 2, 4)
        assert record.items == [user("1"), assistant("1"), user("2"), assistant("2")]
        assert (await acquire(turns)).lease.turn == acquired.lease.turn + 1

    @given_turns
    @needs(WRITE_TURN)
    async def test_what_is_written_twice_is_there_once(self, turns: TurnStore) -> None:
        """The same items at the same place once more change nothing, alone or with the end."""
        acquired = await acquire(turns)
        items = [run_items(1, 0, user("1"), assistant("1"))]
        for _ in range(2):
            await turns.write_turn(acquired.lease, items)
        await turns.write_turn(acquired.lease, items, TurnEnd("completed", now()))
        assert await turns.load_items("s") == [user("1"), assistant("1")]

    @given_turns
    @needs(WRITE_TURN)
    async def test_a_write_that_fails_writes_nothing(self, turns: TurnStore) -> None:
        """Neither its other items nor the end, where one item cannot be or the lease is lost."""
        acquired = await acquire(turns)
        await turns.append_items(acquired.lease, 1, 0, [user("1")])
        completed = TurnEnd("completed", now(), runs={1: "completed"})
        try:
            torn = [run_items(2, 0, user("2")), run_items(1, 0, user("another"))]
            await turns.write_turn(acquired.lease, torn, completed)
        except ValueError:
            pass
        else:
            raise AssertionError("another item at a place that has one was accepted")
        assert await turns.load_items("s") == [user("1")]
        assert (await turns.turns("s"))[0].state == "running"
        stale = Lease("s", acquired.lease.turn, acquired.lease.token ^ 1)
        for how in (None, completed):
            await refused(TurnLost, turns.write_turn(stale, [run_items(1, 1, user("x"))], how))
        assert await turns.load_items("s") == [user("1")]
        await end(turns, acquired, runs={1: "completed"})

    @given_turns
    @needs(WRITE_TURN)
    async def test_items_may_come_in_place_of_all_that_a_run_has(self, turns: TurnStore) -> None:
        """Those of other runs stay; none in place of some is none."""
        acquired = await acquire(turns)
        await turns.write_turn(
            acquired.lease, [run_items(1, 0, user("1"), user("2")), run_items(2, 0, user("3"))]
        )
        await turns.write_turn(acquired.lease, [replace(run_items(1, 0, user("4")), instead=True)])
        assert await turns.load_items("s") == [user("4"), user("3")]
        nothing = [replace(run_items(1, 0), instead=True)]
        await turns.write_turn(
            acquired.lease, nothing, TurnEnd("failed", now(), runs={1: "failed"})
        )
        assert await turns.load_items("s") == [user("3")]
        (record,) = await turns.turns("s")
        assert (record.state, record.runs, record.item_count) == ("failed", 2, 1)

    @given_turns
    @needs(STORE_WITH_ACQUIRE)
    async def test_an_input_is_stored_with_the_acquire(self, turns: TurnStore) -> None:
        """As the first run's, in a memory that says so; what is read with it comes before it."""
        await one_turn(turns, [user("1"), assistant("1")])
        asked = run_items(1, 0, user("2"), digest="d")
        acquired = await acquire(turns, read=ReadRequest(), input=asked)
        assert (acquired.stored, acquired.next_run) == (True, 2)
        if acquired.loaded is not None:
            assert [turn.items for turn in acquired.loaded.turns] == [[user("1"), assistant("1")]]
        hidden = await turns.load_turns("s", hide=(acquired.lease.turn, {1}))
        assert [turn.items for turn in hidden.turns] == [[user("1"), assistant("1")]]
        await refused(SessionBusy, acquire(turns, input=run_items(1, 0, user("busy"))))
        await turns.append_items(acquired.lease, 1, 1, [assistant("2")])
        await end(turns, acquired, runs={1: "completed"})
        assert (await turns.turns("s"))[0].items == [user("2"), assistant("2")]
        await acquire(turns, "new", input=asked)
        assert await turns.load_items("new") == [user("2")]
        assert await turns.turns("new")

    @given_turns
    @needs(STORE_WITH_ACQUIRE)
    async def test_a_turn_that_goes_on_with_another_gets_no_input_with_the_acquire(
        self, turns: TurnStore
    ) -> None:
        """A retry has the items of the earlier attempt, a resumed turn its own."""
        asked = run_items(1, 0, user("1"), digest="d")
        first = await acquire(turns, idempotency_key="k", input_digest="d", input=asked)
        assert first.stored
        await end(turns, first, "failed", runs={1: "failed"})
        again = await acquire(turns, idempotency_key="k", input_digest="d", input=asked)
        assert (again.stored, again.next_run) == (False, 2)
        (carried,) = again.carried
        assert (carried.run, carried.input_digest, carried.item_count) == (1, "d", 1)
        await end(turns, again, "awaiting_approval", park=("p",))
        resumed = await acquire(turns, resume="p", input=asked)
        assert (resumed.resumed, resumed.stored) == (True, False)
        assert await turns.load_items("s") == [user("1")]

    @given_turns
    async def test_what_is_read_with_the_acquire_is_what_is_loaded(self, turns: TurnStore) -> None:
        """A memory may answer ``AcquireRequest.read`` or not; what it answers is the history."""
        newest: Any
        for at in range(4):
            for newest in (None, LastTurns(2), LastItems(3), LastItems(0)):
                for texts in (False, True):
                    acquired = await acquire(turns, read=ReadRequest(newest, texts))
                    if acquired.loaded is not None:
                        assert acquired.loaded == await turns.load_turns(
                            "s", newest=newest, texts=texts
                        )
                    await end(turns, acquired)
            await one_turn(turns, [user(f"{at}"), call(f"{at}"), output(f"{at}"), assistant("-")])
