"""Turns for a memory with six methods only: what the shared suite does not say of them."""

from __future__ import annotations

import asyncio
import copy
import gc
import math
import os
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from session_middleware._current import in_force
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import acquire, end, now, one_turn, refused
from session_middleware.errors import (
    ConflictingMemory,
    MemoryUnavailable,
    SessionBusy,
    TurnLost,
    UnknownState,
    UnsupportedSchema,
)
from session_middleware.history import LastTurns
from session_middleware.stores.flat import FlatTurns
from session_middleware.stores.flat import memory as flat
from session_middleware.stores.protocol import END_RUN
from session_middleware.stores.records import Item, Lease, TurnEnd
from tests.support.six_methods import SixMethods


@dataclass
class Notebook(SixMethods):
    """A memory of somebody's own; a dataclass, so it is compared by value and has no hash."""

    histories: dict[str, list[Item]] = field(default_factory=dict)
    fault: Exception | None = None
    gate: asyncio.Event | None = None
    calls: list[str] = field(default_factory=list)

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.gate is not None and name != "load":
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def turns(notebook: Notebook) -> FlatTurns:
    return FlatTurns(notebook)


# --- one memory, one set of turns ----------------------------------------------------------


async def test_all_turns_of_one_object_are_one(notebook: Notebook, turns: FlatTurns) -> None:
    """However often it is wrapped, a memory object has one identity and one set of turns."""
    again, other = FlatTurns(notebook), FlatTurns(Notebook())
    assert turns.capabilities == {END_RUN}
    assert again.identity == turns.identity
    assert other.identity != turns.identity
    assert turns.lease_seconds == math.inf
    acquired = await acquire(turns)
    await refused(SessionBusy, acquire(again))
    await one_turn(other, [user("1")])
    await end(again, acquired)


async def test_a_memory_is_not_kept_alive(notebook: Notebook) -> None:
    """When the user lets the memory go, so do we; and it can still be copied and pickled."""
    memory = Notebook()
    await one_turn(FlatTurns(memory), [user("1")])
    assert pickle.loads(pickle.dumps(memory)) == copy.deepcopy(memory) == memory
    assert FlatTurns(copy.copy(memory)).identity != FlatTurns(memory).identity
    alive = weakref.ref(memory)
    del memory
    gc.collect()
    assert alive() is None


async def test_turns_go_on_from_the_history_that_is_there(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """What an earlier process stored is counted in turns, and the next one gets the next number."""
    notebook.histories["s"] = [user("1"), assistant("1"), user("2"), assistant("2")]
    acquired = await one_turn(turns, [user("3"), assistant("3")])
    assert acquired.lease.turn == 3
    loaded = await turns.load_turns("s", newest=LastTurns(2))
    assert [(turn.turn, turn.items) for turn in loaded.turns] == [
        (2, [user("2"), assistant("2")]),
        (3, [user("3"), assistant("3")]),
    ]
    assert loaded.complete is False


# --- runs at once --------------------------------------------------------------------------


async def test_the_first_run_is_stored_at_once(notebook: Notebook, turns: FlatTurns) -> None:
    """One run goes through; the others wait, are part of what is read, and follow whole."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2"), call("2")])
    await turns.append_items(acquired.lease, 3, 0, [user("3")])
    assert notebook.histories["s"] == [user("1")]
    assert await turns.load_items("s") == [user("1"), user("2"), call("2"), user("3")]
    await turns.append_items(acquired.lease, 1, 1, [assistant("1")])
    first = [user("1"), assistant("1")]
    assert notebook.histories["s"] == first
    await turns.end_run(acquired.lease, 1)
    assert notebook.histories["s"] == [*first, user("2"), call("2")]
    await turns.append_items(acquired.lease, 2, 2, [output("2")])
    await turns.end_run(acquired.lease, 3)
    assert user("3") not in notebook.histories["s"]
    await turns.end_run(acquired.lease, 2)
    assert notebook.histories["s"] == [*first, user("2"), call("2"), output("2"), user("3")]
    await end(turns, acquired)


async def test_a_run_that_is_over_goes_before_one_that_is_not(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """What can be stored whole is stored first, whichever of the waiting runs came first."""
    acquired = await acquire(turns)
    for run in (1, 2, 3):
        await turns.append_items(acquired.lease, run, 0, [user(f"{run}")])
    await turns.end_run(acquired.lease, 3)
    await turns.end_run(acquired.lease, 1)
    assert notebook.histories["s"] == [user("1"), user("3"), user("2")]
    await end(turns, acquired)


async def test_runs_one_after_the_other_are_stored_at_once(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """When each run is ended before the next begins, nothing ever waits."""
    acquired = await acquire(turns)
    for run in (1, 2):
        await turns.append_items(acquired.lease, run, 0, [user(f"{run}")])
        await turns.append_items(acquired.lease, run, 1, [assistant(f"{run}")])
        await turns.end_run(acquired.lease, run)
        assert len(notebook.histories["s"]) == 2 * run
    await end(turns, acquired)


async def test_release_stores_what_waits(notebook: Notebook, turns: FlatTurns) -> None:
    """What was acknowledged is not lost with the turn."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2")])
    assert await turns.release("s") is True
    assert notebook.histories["s"] == [user("1"), user("2")]
    await refused(TurnLost, turns.end_run(acquired.lease, 1))


# --- a history that somebody else changed --------------------------------------------------


async def test_a_history_that_was_changed_is_read_as_it_is(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """Hidden runs stay hidden when others wrote behind them, or took some of it away."""
    acquired = await acquire(turns)
    turn = acquired.lease.turn
    await turns.append_items(acquired.lease, 1, 0, [user("1"), assistant("1")])
    notebook.histories["s"] += [user("outside"), assistant("outside")]
    hidden = await turns.load_turns("s", hide=(turn, [1]))
    assert [found.items for found in hidden.turns] == [[user("outside"), assistant("outside")]]
    del notebook.histories["s"][0]
    hidden = await turns.load_turns("s", hide=(turn, [1]))
    assert [found.items for found in hidden.turns] == [[user("outside"), assistant("outside")]]
    await turns.append_items(acquired.lease, 2, 0, [user("2")])
    shown = await turns.load_turns("s", hide=(turn, [2]))
    assert [item for found in shown.turns for item in found.items] == [
        assistant("1"),
        user("outside"),
        assistant("outside"),
    ]
    await end(turns, acquired)


async def test_retrying_removes_only_what_the_run_left(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """What others wrote meanwhile stays, equal items of older turns too."""
    notebook.histories["s"] = [user("1"), assistant("old")]
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1"), call("f")])
    notebook.histories["s"].append(user("outside"))
    assert await turns.retry_run(acquired.lease, 1, 2) == 0
    assert notebook.histories["s"] == [user("1"), assistant("old"), user("outside")]
    await end(turns, acquired)


async def test_retrying_a_run_that_waits(notebook: Notebook, turns: FlatTurns) -> None:
    """What the failed run cannot hand on is never stored."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2"), call("f"), output("f"), call("g")])
    assert await turns.retry_run(acquired.lease, 2, 3) == 3
    await turns.append_items(acquired.lease, 3, 3, [assistant("3")])
    await end(turns, acquired)
    handed_on = [user("2"), call("f"), output("f"), assistant("3")]
    assert notebook.histories["s"] == [user("1"), *handed_on]


async def test_what_is_no_item_is_counted(notebook: Notebook, turns: FlatTurns) -> None:
    """Entries of the memory that are no objects are left out, counted, and left where they are."""
    strange: Any = [user("1"), "text", None, assistant("1")]
    notebook.histories["s"] = strange
    loaded = await turns.load_turns("s", texts=True)
    assert loaded.corrupt == 2
    assert [turn.items for turn in loaded.turns] == [[user("1"), assistant("1")]]
    assert notebook.histories["s"] == strange


async def test_popping_what_waits(notebook: Notebook, turns: FlatTurns) -> None:
    """The newest item is one that waits, where one does; then those of the memory."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2"), assistant("2")])
    for expected in (assistant("2"), user("2"), user("1"), None):
        assert await turns.pop_item("s") == expected
    assert notebook.histories["s"] == []
    assert (await turns.turns("s"))[0].items == []
    await end(turns, acquired)


async def test_popping_under_a_lost_turn(turns: FlatTurns) -> None:
    """Within a turn that lost its session, nothing is popped."""

    @dataclass
    class Held:
        memory_identity: Any
        lease: Any
        ended = False

        def next_run(self) -> int:
            return 1

    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.release("s")
    with in_force(Held(turns.identity, acquired.lease)):
        await refused(TurnLost, turns.pop_item("s"))
    assert await turns.load_items("s") == [user("1")]


# --- a memory that fails -------------------------------------------------------------------


async def test_the_memorys_error_is_the_cause(notebook: Notebook, turns: FlatTurns) -> None:
    """Whatever the memory raises is MemoryUnavailable with that as its cause; ours stay ours."""
    await one_turn(turns, [user("1")])
    notebook.fault = OSError("disk on fire, password=secret")
    error = await refused(MemoryUnavailable, turns.load_items("s"))
    assert error.__cause__ is notebook.fault
    assert "Notebook.load_session failed with OSError" in str(error)
    assert "secret" not in str(error)
    notebook.fault = UnsupportedSchema("newer")
    assert await refused(UnsupportedSchema, turns.load_turns("s")) is notebook.fault


async def test_a_memory_that_returns_no_list(notebook: Notebook, turns: FlatTurns) -> None:
    """A load_session that forgot to return says so in plain words."""
    nothing: Any = None
    notebook.histories["s"] = nothing
    error = await refused(MemoryUnavailable, turns.load_turns("s"))
    assert "returned NoneType, not a list" in str(error)


async def test_an_append_that_failed_is_not_remembered(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """After an error the items are nowhere, and the same append can be tried again."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    notebook.fault = OSError("disk full")
    await refused(MemoryUnavailable, turns.append_items(acquired.lease, 1, 1, [assistant("2")]))
    notebook.fault = None
    assert await turns.load_items("s", turn=acquired.lease.turn) == [user("1")]
    await turns.append_items(acquired.lease, 1, 1, [assistant("3")])
    assert (await turns.load_turns("s")).turns[0].items == [user("1"), assistant("3")]
    await end(turns, acquired)


async def test_a_turn_ends_though_its_last_write_fails(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """The error is raised, and the session is free."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2")])
    notebook.fault = OSError("disk full")
    await refused(MemoryUnavailable, end(turns, acquired))
    notebook.fault = None
    await end(turns, await acquire(turns))
    assert notebook.histories["s"] == [user("1")]


async def test_what_waits_is_tried_again_at_the_end(notebook: Notebook, turns: FlatTurns) -> None:
    """When storing what waited fails, it waits on, whole and in order, until the turn ends."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2")])
    notebook.fault = OSError("disk full")
    await refused(MemoryUnavailable, turns.end_run(acquired.lease, 1))
    notebook.fault = None
    await turns.append_items(acquired.lease, 3, 0, [user("3")])
    await turns.append_items(acquired.lease, 2, 1, [assistant("2")])
    expected = [user("1"), user("2"), assistant("2"), user("3")]
    assert await turns.load_items("s") == expected
    await end(turns, acquired)
    assert notebook.histories["s"] == expected


async def test_what_it_cannot_do_names_the_protocol(turns: FlatTurns) -> None:
    """Keys and discarding are ConflictingMemory, and change nothing."""
    error = await refused(ConflictingMemory, acquire(turns, idempotency_key="k"))
    assert "capability 'turns'" in str(error)
    acquired = await acquire(turns)
    error = await refused(ConflictingMemory, end(turns, acquired, discard=True))
    assert "capability 'turns'" in str(error)
    await end(turns, acquired)


# --- writes in order -----------------------------------------------------------------------


@contextmanager
def closed_gate(notebook: Notebook) -> Iterator[asyncio.Event]:
    """Writes of the notebook begin and do not end; opened at the latest at the end."""
    notebook.gate = asyncio.Event()
    try:
        yield notebook.gate
    finally:
        notebook.gate.set()


async def begun(turns: FlatTurns, notebook: Notebook, lease: Lease) -> asyncio.Future[None]:
    """A write that has begun and waits at the gate."""
    write = asyncio.ensure_future(turns.append_items(lease, 1, 0, [user("1")]))
    while "append" not in notebook.calls:  # noqa: ASYNC110 - the memory tells by its calls
        await asyncio.sleep(0)
    return write


async def test_a_session_is_busy_until_its_last_write_is_over(
    notebook: Notebook, turns: FlatTurns
) -> None:
    """A turn that was released while it wrote: the next one begins after that write."""
    with closed_gate(notebook) as gate:
        write = await begun(turns, notebook, (await acquire(turns)).lease)
        assert await turns.release("s") is True
        await refused(SessionBusy, acquire(turns))
        gate.set()
        await write
    newer = await acquire(turns)
    assert (await turns.load_turns("s")).turns[0].items == [user("1")]
    await end(turns, newer)


async def test_a_cancelled_write_is_awaited(notebook: Notebook, turns: FlatTurns) -> None:
    """A write that has begun is finished before the cancellation goes on."""
    with closed_gate(notebook) as gate:
        acquired = await acquire(turns)
        write = await begun(turns, notebook, acquired.lease)
        write.cancel()
        await asyncio.sleep(0)
        assert not write.done()
        gate.set()
        await asyncio.wait((write,))
    assert write.cancelled()
    assert notebook.histories["s"] == [user("1")]
    await end(turns, acquired)


async def test_writes_of_a_session_keep_their_order(notebook: Notebook, turns: FlatTurns) -> None:
    """What is stored when a run ends follows the write of that run that is still under way."""
    acquired = await acquire(turns)
    await turns.append_items(acquired.lease, 1, 0, [user("1")])
    await turns.append_items(acquired.lease, 2, 0, [user("2")])
    notebook.calls.clear()
    with closed_gate(notebook) as gate:
        last = asyncio.ensure_future(turns.append_items(acquired.lease, 1, 1, [assistant("1")]))
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(turns.end_turn(acquired.lease, TurnEnd("completed", now())))
        while "append" not in notebook.calls:  # noqa: ASYNC110 - the memory tells by its calls
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert notebook.calls == ["append"]
        gate.set()
        await asyncio.gather(last, ending)
    assert notebook.histories["s"] == [user("1"), assistant("1"), user("2")]


def test_a_loop_that_shuts_down_blocks_nobody(notebook: Notebook, turns: FlatTurns) -> None:
    """A write that its loop dropped, begun or not, leaves the session usable from another."""

    async def leave(steps: int) -> None:
        acquired = await acquire(turns, f"s{steps}")
        write = asyncio.ensure_future(turns.append_items(acquired.lease, 1, 0, [user("1")]))
        for _ in range(steps):
            await asyncio.sleep(0)
        del write

    async def go_on(steps: int) -> None:
        await turns.release(f"s{steps}")
        await one_turn(turns, [user("2")], f"s{steps}")

    for steps in range(5):
        asyncio.run(leave(steps))
        gc.collect()
        asyncio.run(go_on(steps))
        assert notebook.histories[f"s{steps}"][-1] == user("2")


# --- bounds --------------------------------------------------------------------------------


async def test_what_is_remembered_is_bounded(
    turns: FlatTurns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest turns of the sessions used last are remembered; numbers go on nevertheless."""
    monkeypatch.setattr(flat, "KEPT_TURNS", 3)
    monkeypatch.setattr(flat, "KEPT_SESSIONS", 2)
    for number in range(5):
        await one_turn(turns, [user(f"{number}"), assistant("a")])
    assert [record.turn for record in await turns.turns("s")] == [5, 4, 3]
    for session_id in ("a", "b"):
        await one_turn(turns, [user("1")], session_id)
    assert await turns.turns("s") == []
    assert len(await turns.turns("a")) == 1
    assert (await one_turn(turns, [user("6")])).lease.turn == 6


async def test_a_forgotten_parked_turn_is_a_new_one(
    turns: FlatTurns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that is parked longer than turns are remembered is as one never parked."""
    monkeypatch.setattr(flat, "KEPT_TURNS", 2)
    await end(turns, await acquire(turns), "awaiting_approval", park=("p",))
    for _ in range(2):
        await one_turn(turns, [user("1"), assistant("a")])
    await refused(UnknownState, acquire(turns, resume="p"))
    acquired = await acquire(turns, resume="p", adopt=True)
    assert acquired.resumed is False
    await end(turns, acquired)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is what is tested
def test_a_forked_child_holds_nothing(notebook: Notebook, turns: FlatTurns) -> None:
    """A session that a thread of the parent holds is free in the child."""
    acquired = asyncio.run(acquire(turns))
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(refused(TurnLost, end(turns, acquired)))
            asyncio.run(one_turn(turns, [user("1")]))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    asyncio.run(end(turns, acquired))
