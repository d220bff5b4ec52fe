"""Items of runs are read in whole turns, through windows, and as raw items."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance.cases import given_turns, needs
from session_middleware.conformance.samples import (
    AWKWARD_VALUES,
    assistant,
    call,
    exactly,
    faulty_items,
    output,
    user,
)
from session_middleware.conformance.steps import (
    TurnTests,
    acquire,
    end,
    one_turn,
    refused,
)
from session_middleware.errors import InvalidItem
from session_middleware.history import LastItems, LastTurns
from session_middleware.stores.protocol import COMPACTION, READ_WITH_ACQUIRE, TurnStore
from session_middleware.stores.records import Item, ReadRequest

COMPACTED = {"type": "compaction", "id": "cmp_1", "encrypted_content": "all before"}


class LoadTests(TurnTests):
    """Items of turns and runs."""

    @given_turns
    @needs(COMPACTION)
    async def test_a_window_reads_back_to_the_newest_compaction(self, turns: TurnStore) -> None:
        """The turn of the newest compaction item is read too, however old it is, and no other."""
        await one_turn(turns, [user("0"), COMPACTED, assistant("0")])
        await one_turn(turns, [user("1"), COMPACTED, assistant("1")])
        for number in range(2, 6):
            await one_turn(turns, [user(f"{number}"), assistant(f"{number}")])
        for window in (LastTurns(1), LastTurns(2), LastItems(3), LastTurns(4)):
            loaded = await turns.load_turns("s", newest=window)
            assert loaded.turns[0].items == [user("1"), COMPACTED, assistant("1")]
            numbers = [turn.turn for turn in loaded.turns]
            assert numbers == sorted(set(numbers))
            assert len(numbers) == 1 + (1 if isinstance(window, LastItems) else window.n)
            assert not loaded.complete
        loaded = await turns.load_turns("s", newest=LastTurns(5))
        assert len(loaded.turns) == 5

    @given_turns
    @needs(COMPACTION)
    async def test_what_only_looks_like_a_compaction(self, turns: TurnStore) -> None:
        """A part of another item is none, nor what was removed; a run that is hidden has none."""
        shown = [{"type": "compaction"}, {"type": "input_text", "text": '"type": "compaction"'}]
        await one_turn(turns, [user("0"), COMPACTED])
        await one_turn(turns, [{"role": "user", "content": shown}, assistant("1")])
        await one_turn(turns, [user("2"), assistant("2")])
        loaded = await turns.load_turns("s", newest=LastTurns(1))
        assert [turn.items[0] for turn in loaded.turns] == [user("0"), user("2")]
        discarded = await acquire(turns)
        await turns.append_items(discarded.lease, 1, 0, [user("3"), COMPACTED])
        await end(turns, discarded, "failed", discard=True)
        loaded = await turns.load_turns("s", newest=LastTurns(1))
        assert [turn.items[0] for turn in loaded.turns] == [user("0"), user("2")]
        acquired = await acquire(turns)
        lease = acquired.lease
        await turns.append_items(lease, 1, 0, [user("4"), COMPACTED])
        await end(turns, acquired, runs={1: "completed"})
        await one_turn(turns, [user("5"), assistant("5")])
        loaded = await turns.load_turns("s", newest=LastTurns(1))
        assert [turn.items[0] for turn in loaded.turns] == [user("4"), user("5")]
        loaded = await turns.load_turns("s", newest=LastTurns(1), hide=(lease.turn, {1}))
        assert [turn.items[0] for turn in loaded.turns] == [user("0"), user("5")]

    @given_turns
    @needs(COMPACTION, READ_WITH_ACQUIRE)
    async def test_what_is_read_with_acquiring_reaches_back_to_the_compaction(
        self, turns: TurnStore
    ) -> None:
        """The history that comes with the session is the one that a load would give."""
        await one_turn(turns, [user("0"), COMPACTED, assistant("0")])
        for number in (1, 2):
            await one_turn(turns, [user(f"{number}"), assistant(f"{number}")])
        acquired = await acquire(turns, read=ReadRequest(LastTurns(1)))
        assert acquired.loaded is not None
        found = [turn.items[0] for turn in acquired.loaded.turns]
        assert (found, acquired.loaded.complete) == ([user("0"), user("2")], False)

    @given_turns
    async def test_runs_at_once_do_not_mix(self, turns: TurnStore) -> None:
        """Items of runs of one turn that happen at once stay together, run by run."""
        acquired = await acquire(turns)
        for position, make in enumerate((user, call, output, assistant)):
            for run in (1, 2, 3):
                await turns.append_items(acquired.lease, run, position, [make(f"{run}")])
        await end(turns, acquired, runs={1: "completed", 2: "completed", 3: "completed"})
        assert await turns.load_items("s") == [
            make(f"{run}") for run in (1, 2, 3) for make in (user, call, output, assistant)
        ]

    @given_turns
    async def test_a_turn_is_loaded_while_it_runs(self, turns: TurnStore) -> None:
        """A running turn's items are part of the history, apart from the runs to be hidden."""
        await one_turn(turns, [user("old"), assistant("old")])
        acquired = await acquire(turns)
        turn = acquired.lease.turn
        await turns.append_items(acquired.lease, 1, 0, [user("1"), assistant("1")])
        await turns.append_items(acquired.lease, 2, 0, [user("2"), call("2")])

        async def items(*hidden: int, **window: Any) -> list[list[Item]]:
            loaded = await turns.load_turns("s", hide=(turn, hidden), **window)
            return [found.items for found in loaded.turns]

        old = [user("old"), assistant("old")]
        first, second = [user("1"), assistant("1")], [user("2"), call("2")]
        assert await items() == [old, first + second]
        assert await items(2) == [old, first]
        assert await items(1) == [old, second]
        assert await items(1, 2) == [old]
        assert await items(1, 2, newest=LastTurns(1)) == [old]
        assert await items(2, newest=LastTurns(1)) == [first]
        assert await items(2, newest=LastItems(2)) == [first]
        loaded = await turns.load_turns("s", hide=(turn - 1, [1, 2]))
        assert loaded.turns[-1].items == first + second
        await end(turns, acquired)

    @given_turns
    async def test_windows_read_what_they_would_keep(self, turns: TurnStore) -> None:
        """ReadRequest the newest turns gives what the window keeps of all of them."""
        sizes = [2, 2, 3, 0, 5, 2, 0, 2, 4]
        for number, size in enumerate(sizes):
            await one_turn(
                turns, [(user if at == 0 else assistant)(f"{number}.{at}") for at in range(size)]
            )
        everything = await turns.load_turns("s")
        assert everything.complete
        assert everything.corrupt == 0
        assert [len(turn.items) for turn in everything.turns] == [s for s in sizes if s]
        windows: list[LastTurns | LastItems] = [
            LastTurns(n, step) for n in range(10) for step in (1, 2, 3, 5)
        ]
        windows += [LastItems(n) for n in range(sum(sizes) + 2)]
        for window in windows:
            loaded = await turns.load_turns("s", newest=window)
            expected = window(list(everything.turns))
            assert loaded.turns == expected, window
            assert loaded.complete == (len(expected) == len(everything.turns)), window

    @given_turns
    async def test_texts_are_read_on_demand(self, turns: TurnStore) -> None:
        """Turn.texts has a text for every item when asked for, and is None otherwise."""
        await one_turn(turns, [user("1"), assistant("2")])
        plain = (await turns.load_turns("s")).turns[0]
        assert plain.texts is None
        turn = (await turns.load_turns("s", texts=True)).turns[0]
        assert turn.texts is not None
        assert len(turn.texts) == len(turn.items) == 2
        assert all(isinstance(text, str) for text in turn.texts)

    @given_turns
    async def test_the_newest_items_are_read_raw(self, turns: TurnStore) -> None:
        """load_items gives the newest items of a session or a turn, oldest first."""
        await one_turn(turns, [user("1"), assistant("2"), user("3")])
        second = await one_turn(turns, [user("4"), assistant("5")])
        everything = [user("1"), assistant("2"), user("3"), user("4"), assistant("5")]
        for limit in range(7):
            expected = everything[max(0, 5 - limit) :]
            assert await turns.load_items("s", limit=limit) == expected
        assert await turns.load_items("s") == everything
        assert await turns.load_items("s", limit=-1) == everything
        number = second.lease.turn
        assert await turns.load_items("s", turn=number) == everything[3:]
        assert await turns.load_items("s", turn=number, limit=1) == everything[4:]
        assert await turns.load_items("s", turn=number, limit=0) == []
        assert await turns.load_items("s", turn=99) == []
        assert await turns.load_items("nobody") == []

    @given_turns
    async def test_what_is_read_is_a_copy(self, turns: TurnStore) -> None:
        """Changing what load_items returned, or what was appended, changes nothing stored."""
        acquired = await acquire(turns)
        given = [assistant("1")]
        await turns.append_items(acquired.lease, 1, 0, given)
        given[0]["content"][0]["text"] = "changed"
        returned = await turns.load_items("s", turn=acquired.lease.turn)
        returned[0]["content"][0]["text"] = "changed"
        assert await turns.load_items("s", turn=acquired.lease.turn) == [assistant("1")]
        assert await turns.load_items("s") == [assistant("1")]
        await end(turns, acquired)

    @given_turns
    async def test_a_batch_with_a_fault_is_not_stored(self, turns: TurnStore) -> None:
        """One item that is no JSON object keeps its whole batch out, and its place is named."""
        acquired = await acquire(turns)
        for fault in faulty_items():
            error = await refused(
                InvalidItem,
                turns.append_items(acquired.lease, 1, 0, [user("1"), fault, user("2")]),
            )
            assert error.position == 1
        assert await turns.load_items("s") == []
        await turns.append_items(acquired.lease, 1, 0, [user("good")])
        await end(turns, acquired)
        assert await turns.load_items("s") == [user("good")]

    @given_turns
    async def test_pop_takes_the_newest_item(self, turns: TurnStore) -> None:
        """pop_item removes and returns the newest item, across turns, until none is left."""
        await one_turn(turns, [user("1"), assistant("2")])
        await one_turn(turns, [user("3")])
        assert await turns.pop_item("s") == user("3")
        assert await turns.pop_item("s") == assistant("2")
        assert await turns.load_items("s") == [user("1")]
        assert await turns.pop_item("s") == user("1")
        assert await turns.pop_item("s") is None
        assert await turns.pop_item("nobody") is None

    @given_turns
    async def test_items_come_back_exactly(self, turns: TurnStore) -> None:
        """The next run reads the items of a run exactly as they were stored."""
        items: list[Item] = [{"role": "user", "content": value} for value in AWKWARD_VALUES]
        await one_turn(turns, items)
        loaded = await turns.load_turns("s")
        assert exactly([item for turn in loaded.turns for item in turn.items]) == exactly(items)
