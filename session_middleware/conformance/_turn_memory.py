"""What a memory does that keeps turns itself: discarding, the six methods in and around turns."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from session_middleware.conformance._histories import MemoryConformance, given_a_memory
from session_middleware.conformance._items import (
    assistant,
    call,
    depth_of,
    faulty_items,
    nested,
    output,
    user,
)
from session_middleware.conformance._keys import KeysConformance
from session_middleware.conformance._retries import RetriesConformance
from session_middleware.conformance._taking import TakingConformance
from session_middleware.conformance._turn_items import TurnItemsConformance
from session_middleware.conformance._turn_writes import TurnWritesConformance
from session_middleware.conformance._turns import (
    end,
    one_turn,
    refused,
    take,
)
from session_middleware.errors import (
    InvalidItem,
    InvalidSessionId,
    MemoryClosed,
    TurnLost,
)
from session_middleware.memory import Lease, Taken, holding


@dataclass(slots=True)
class _Holder:
    """A turn as a context holds it."""

    memory_identity: Hashable
    lease: Lease | None
    runs: int

    def next_run(self) -> int:
        self.runs += 1
        return self.runs - 1

    async def settle(self) -> None:
        """Nothing is under way here."""


def held_by(memory: Any, taken: Taken) -> _Holder:
    return _Holder(memory.identity, taken.lease, taken.next_run)


class TurnConformance(
    TakingConformance, TurnItemsConformance, TurnWritesConformance, RetriesConformance
):
    """Turns, runs, fences, records and parked runs."""


class TurnMemoryConformance(MemoryConformance, TurnConformance, KeysConformance):
    """A ``SessionMemory`` that is a ``SupportsTurns`` too."""

    # --- validation ------------------------------------------------------------------------

    @given_a_memory
    async def test_an_id_that_names_nothing_is_refused(self, memory: Any) -> None:
        """Blank, long and unprintable ids, and what is no string, are InvalidSessionId."""
        wrong: Any
        for wrong in ("", "  ", "x" * 513, "a\u0000b", "line\nbreak", "\ud800", None, 7, b"s"):
            await refused(InvalidSessionId, memory.load_session(wrong))
            await refused(InvalidSessionId, memory.save_session(wrong, [user("1")]))
            await refused(InvalidSessionId, memory.append_to_session(wrong, [user("1")]))
            await refused(InvalidSessionId, memory.clear_session(wrong))
            await refused(InvalidSessionId, memory.session_exists(wrong))
            await refused(InvalidSessionId, take(memory, wrong))
        assert await memory.list_sessions() == []

    @given_a_memory
    async def test_a_fault_stores_nothing_of_its_batch(self, memory: Any) -> None:
        """append_to_session and save_session name the faulty item and change nothing."""
        await memory.append_to_session("s", [user("1")])
        for fault in faulty_items():
            batch = [user("a"), assistant("b"), user("c"), fault]
            error = await refused(InvalidItem, memory.append_to_session("s", batch))
            assert error.position == 3
            error = await refused(InvalidItem, memory.save_session("s", batch))
            assert error.position == 3
        for no_list in ("text", {"role": "user"}, None):
            await refused(InvalidItem, memory.append_to_session("s", no_list))
            await refused(InvalidItem, memory.save_session("s", no_list))
        assert await memory.load_session("s") == [user("1")]

    @given_a_memory
    async def test_a_closed_memory_says_so(self, memory: Any) -> None:
        """After cleanup() every method raises MemoryClosed; cleaning up again does nothing."""
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        await memory.cleanup()
        await refused(MemoryClosed, memory.load_session("s"))
        await refused(MemoryClosed, memory.save_session("s", [user("1")]))
        await refused(MemoryClosed, memory.append_to_session("s", [user("1")]))
        await refused(MemoryClosed, memory.clear_session("s"))
        await refused(MemoryClosed, memory.list_sessions())
        await refused(MemoryClosed, memory.session_exists("s"))
        await refused(MemoryClosed, take(memory))
        await refused(MemoryClosed, memory.append_items(taken.lease, 1, 1, [user("2")]))
        await refused(MemoryClosed, end(memory, taken))
        await refused(MemoryClosed, memory.load_turns("s"))
        await refused(MemoryClosed, memory.load_items("s"))
        await refused(MemoryClosed, memory.retry_run(taken.lease, 1, 2))
        await refused(MemoryClosed, memory.pop_item("s"))
        await refused(MemoryClosed, memory.release("s"))
        await refused(MemoryClosed, memory.turns("s"))
        await memory.cleanup()

    # --- awkward items -----------------------------------------------------------------------

    @given_a_memory
    async def test_deep_nesting_comes_back(self, memory: Any) -> None:
        """An item may be nested 900 deep, however deep the stack that stores and loads it."""
        for depth in (200, 201, 900):
            await one_turn(memory, [nested(depth)], f"{depth}")
            (item,) = await memory.load_items(f"{depth}")
            assert depth_of(item) == depth
            (turn,) = (await memory.load_turns(f"{depth}")).turns
            assert depth_of(turn.items[0]) == depth

    @given_a_memory
    async def test_lone_surrogates_survive_or_are_refused(self, memory: Any) -> None:
        """Text that is no Unicode comes back as it was, or is refused when it is stored."""
        for text in ("\ud800", "a\udfffb", "\ud83d\ude00", "\N{WHITE SMILING FACE}\udc00"):
            taken = await take(memory, "s")
            try:
                await memory.append_items(taken.lease, 1, 0, [user(text)])
            except InvalidItem:
                assert await memory.load_items("s") == []
            else:
                assert await memory.load_items("s") == [user(text)]
                assert await memory.pop_item("s") == user(text)
            await end(memory, taken)

    # --- flat histories and turns ----------------------------------------------------------

    @given_a_memory
    async def test_a_saved_history_is_split_into_turns(self, memory: Any) -> None:
        """Each user message that follows another kind of item begins a turn."""
        first = [user("1"), user("1b"), call("f"), output("f"), assistant("1")]
        second = [user("2"), assistant("2")]
        await memory.save_session("s", [*first, *second])
        turns = (await memory.load_turns("s")).turns
        assert [turn.items for turn in turns] == [first, second]
        assert turns[0].turn < turns[1].turn
        assert {record.state for record in await memory.turns("s")} == {"completed"}
        assert (await take(memory)).lease.turn > turns[1].turn

    @given_a_memory
    async def test_an_append_is_a_turn_of_its_own(self, memory: Any) -> None:
        """What is appended outside a turn is a completed turn, with a record."""
        await memory.append_to_session("s", [user("1"), assistant("1")])
        await memory.append_to_session("s", [assistant("2")])
        turns = (await memory.load_turns("s")).turns
        assert [turn.items for turn in turns] == [[user("1"), assistant("1")], [assistant("2")]]
        newest = (await memory.turns("s"))[0]
        assert (newest.turn, newest.state, newest.item_count) == (2, "completed", 1)
        assert newest.ended_at is not None

    @given_a_memory
    async def test_an_append_from_outside_comes_after_the_turn(self, memory: Any) -> None:
        """It does not wait for a running turn, does not disturb it, and lies behind it."""
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        await memory.append_to_session("s", [assistant("outside")])
        await memory.append_items(taken.lease, 1, 1, [assistant("1")])
        await end(memory, taken)
        expected = [user("1"), assistant("1"), assistant("outside")]
        assert await memory.load_session("s") == expected
        assert (await take(memory)).lease.turn == taken.lease.turn + 2

    @given_a_memory
    async def test_a_turn_without_items_makes_no_session(self, memory: Any) -> None:
        """A session exists from its first item, not from its first turn."""
        await one_turn(memory, [])
        assert await memory.session_exists("s") is False
        assert await memory.list_sessions() == []
        assert (await memory.load_turns("s")).turns == []
        await one_turn(memory, [user("1")])
        assert await memory.session_exists("s") is True

    # --- from outside, against a running turn ----------------------------------------------

    @given_a_memory
    async def test_clearing_ends_the_running_turn(self, memory: Any) -> None:
        """clear_session from outside: the running turn is lost, even when the session is back."""
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        await memory.clear_session("s")
        await self.assert_lost(memory, taken.lease)
        assert await memory.load_session("s") == []
        assert await memory.session_exists("s") is False
        again = await take(memory)
        assert again.lease.turn == 1
        await self.assert_lost(memory, taken.lease)
        await end(memory, again)

    @given_a_memory
    async def test_saving_ends_the_running_turn(self, memory: Any) -> None:
        """save_session from outside: the running turn is lost, the saved history stays."""
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        await memory.save_session("s", [user("saved")])
        await self.assert_lost(memory, taken.lease)
        assert await memory.load_session("s") == [user("saved")]
        await end(memory, await take(memory))

    @given_a_memory
    async def test_popping_from_outside_disturbs_nobody(self, memory: Any) -> None:
        """pop_item from outside takes the newest item; the running turn goes on."""
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1"), assistant("a")])
        assert await memory.pop_item("s") == assistant("a")
        await memory.append_items(taken.lease, 1, 2, [assistant("b")])
        await end(memory, taken)
        assert await memory.load_session("s") == [user("1"), assistant("b")]

    @given_a_memory
    async def test_clearing_forgets_what_was_parked(self, memory: Any) -> None:
        """After a clear or a save a parked state is unknown, and a key is free."""
        for forget in (memory.clear_session("s"), memory.save_session("s", [user("saved")])):
            parked = await take(memory, idempotency_key="k")
            await end(memory, parked, "awaiting_approval", park=("p",))
            await forget
            taken = await take(memory, resume="p", idempotency_key="k")
            assert (taken.resumed, taken.carried) == (False, ())
            await end(memory, taken, "failed")
            await memory.clear_session("s")

    # --- within the current turn -----------------------------------------------------------

    @given_a_memory
    async def test_appending_within_the_turn(self, memory: Any) -> None:
        """Inside its turn append_to_session stores under the turn, as a run of its own."""
        taken = await take(memory)
        with holding(held_by(memory, taken)):
            await memory.append_to_session("s", [user("1")])
            await memory.append_to_session("s", [assistant("2"), user("3")])
            await memory.append_to_session("other", [user("elsewhere")])
            assert await memory.load_session("s") == [user("1"), assistant("2"), user("3")]
        await end(memory, taken)
        (record,) = await memory.turns("s")
        assert (record.turn, record.item_count) == (taken.lease.turn, 3)

    @given_a_memory
    async def test_saving_within_the_turn(self, memory: Any) -> None:
        """Inside its turn save_session replaces the history, and the turn goes on."""
        await one_turn(memory, [user("old"), assistant("old")])
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        saved = [user("a"), assistant("b"), user("c")]
        with holding(held_by(memory, taken)):
            await memory.save_session("s", saved)
        assert await memory.load_session("s") == saved
        await memory.append_items(taken.lease, 1, 1, [assistant("1")])
        await end(memory, taken)
        assert await memory.load_session("s") == [*saved, assistant("1")]
        (turn,) = (await memory.load_turns("s")).turns
        assert turn.turn == taken.lease.turn

    @given_a_memory
    async def test_clearing_within_the_turn(self, memory: Any) -> None:
        """Inside its turn clear_session removes all that is stored, and the turn goes on."""
        await one_turn(memory, [user("old"), assistant("old")])
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        with holding(held_by(memory, taken)):
            await memory.clear_session("s")
        assert await memory.load_session("s") == []
        assert await memory.session_exists("s") is False
        await memory.append_items(taken.lease, 1, 1, [assistant("1")])
        await end(memory, taken)
        assert await memory.load_session("s") == [assistant("1")]
        assert [record.turn for record in await memory.turns("s")] == [taken.lease.turn]

    @given_a_memory
    async def test_popping_within_the_turn(self, memory: Any) -> None:
        """Inside its turn pop_item takes the newest item of the session."""
        await one_turn(memory, [user("old"), assistant("old")])
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        with holding(held_by(memory, taken)):
            assert await memory.pop_item("s") == user("1")
            assert await memory.pop_item("s") == assistant("old")
        await end(memory, taken)
        assert await memory.load_session("s") == [user("old")]

    @given_a_memory
    async def test_a_lost_turn_writes_nothing_by_the_six_methods(self, memory: Any) -> None:
        """A context whose turn was lost is refused, and what others stored stays."""
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        await memory.release("s")
        with holding(held_by(memory, taken)):
            await refused(TurnLost, memory.append_to_session("s", [user("lost")]))
            await refused(TurnLost, memory.save_session("s", [user("lost")]))
            await refused(TurnLost, memory.clear_session("s"))
            await refused(TurnLost, memory.pop_item("s"))
        assert await memory.load_session("s") == [user("1")]

    # --- discarding ------------------------------------------------------------------------

    @given_a_memory
    async def test_discard_removes_exactly_the_turn(self, memory: Any) -> None:
        """A discarded turn leaves its record and none of its items; the others stay."""
        await one_turn(memory, [user("1"), assistant("1")])
        taken = await take(memory)
        await memory.append_items(taken.lease, 1, 0, [user("2"), call("f")])
        await memory.append_items(taken.lease, 2, 0, [user("3")])
        await memory.append_to_session("s", [assistant("outside")])
        await end(memory, taken, "failed", discard=True, error_type="ValueError")
        assert await memory.load_session("s") == [user("1"), assistant("1"), assistant("outside")]
        record = (await memory.turns("s"))[1]
        assert (record.turn, record.state, record.item_count) == (taken.lease.turn, "failed", 0)
        assert (record.items, record.error_type) == ([], "ValueError")
