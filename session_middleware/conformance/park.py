"""A turn that waits for approval is parked without a lease, and resumed once."""

from __future__ import annotations

from session_middleware.conformance.cases import given_turns
from session_middleware.conformance.samples import (
    assistant,
    call,
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
from session_middleware.errors import (
    DuplicateTurn,
    SessionBusy,
    TurnInProgress,
    UnknownState,
    WrongSession,
)
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.records import Acquired


class ParkTests(TurnTests):
    """Parked runs and their resumes."""

    async def park(self, turns: TurnStore, session_id: str = "s", park: str = "p") -> Acquired:
        acquired = await acquire(turns, session_id)
        await turns.append_items(acquired.lease, 1, 0, [user("1"), call("f")])
        await end(turns, acquired, "awaiting_approval", park=(park,), runs={1: "awaiting_approval"})
        return acquired

    @given_turns
    async def test_a_parked_turn_is_continued(self, turns: TurnStore) -> None:
        """A resume goes on in the parked turn, whatever came in between."""
        parked = await self.park(turns)
        between = await one_turn(turns, [user("between"), assistant("b")])
        assert between.lease.turn == parked.lease.turn + 1
        resumed = await acquire(turns, resume="p")
        assert resumed.resumed is True
        assert resumed.lease.turn == parked.lease.turn
        assert resumed.lease.token != parked.lease.token
        assert (resumed.next_run, resumed.carried) == (2, ())
        assert await turns.load_items("s", turn=resumed.lease.turn) == [user("1"), call("f")]
        records = {record.turn: record.state for record in await turns.turns("s")}
        assert records == {1: "running", 2: "completed"}
        await self.assert_lost(turns, parked.lease)
        await turns.append_items(resumed.lease, 2, 0, [output("f"), assistant("2")])
        await end(turns, resumed, runs={2: "completed"}, settles=("p",))
        record = (await turns.turns("s"))[-1]
        assert (record.turn, record.state) == (1, "completed")
        assert record.items == [user("1"), call("f"), output("f"), assistant("2")]
        assert (await one_turn(turns, [])).lease.turn == 3

    @given_turns
    async def test_a_state_is_resumed_once(self, turns: TurnStore) -> None:
        """A second resume of the same state is told which turn did it and what it stored."""
        parked = await self.park(turns)
        resumed = await acquire(turns, resume="p")
        await refused(TurnInProgress, acquire(turns, resume="p"))
        await turns.append_items(resumed.lease, 2, 0, [output("f")])
        await end(turns, resumed, settles=("p",))
        duplicate = await refused(DuplicateTurn, acquire(turns, resume="p"))
        assert duplicate.turn == parked.lease.turn
        assert duplicate.items == [user("1"), call("f"), output("f")]

    @given_turns
    async def test_a_state_belongs_to_its_session(self, turns: TurnStore) -> None:
        """A state that was parked in another session is refused, and nothing is acquired."""
        await self.park(turns)
        await refused(WrongSession, acquire(turns, "other", resume="p"))
        assert (await acquire(turns, "other")).lease.turn == 1
        assert (await acquire(turns, resume="p")).resumed is True

    @given_turns
    async def test_two_sessions_may_park_under_one_identity(self, turns: TurnStore) -> None:
        """One trace around runs of two sessions gives both the same identity; both resume."""
        await self.park(turns, "a")
        await self.park(turns, "b")
        for session_id in ("a", "b"):
            resumed = await acquire(turns, session_id, resume="p")
            assert (resumed.resumed, resumed.lease.turn) == (True, 1)

    @given_turns
    async def test_a_resume_that_did_not_complete_gives_the_approval_back(
        self, turns: TurnStore
    ) -> None:
        """After a failure or a cancellation the same state continues the same turn again."""
        parked = await self.park(turns)
        for state in ("failed", "cancelled"):
            await end(turns, await acquire(turns, resume="p"), state)
            assert (await turns.turns("s"))[0].state == state
        resumed = await acquire(turns, resume="p")
        assert (resumed.resumed, resumed.lease.turn) == (True, parked.lease.turn)
        await end(turns, resumed, settles=("p",))
        await refused(DuplicateTurn, acquire(turns, resume="p"))

    @given_turns
    async def test_a_failed_resume_may_give_its_state_another_name(self, turns: TurnStore) -> None:
        """The run is resumed under either name, and once that completed, under none."""
        await self.park(turns)
        failed = await acquire(turns, resume="p")
        await end(turns, failed, "failed", aliases=(("q", "p"),))
        failed = await acquire(turns, resume="q")
        await end(turns, failed, "failed", aliases=(("r", "q"),))
        resumed = await acquire(turns, resume="r")
        assert resumed.resumed is True
        await end(turns, resumed, settles=("r",))
        for identity in ("p", "q", "r"):
            await refused(DuplicateTurn, acquire(turns, resume=identity))

    @given_turns
    async def test_an_unknown_state_is_refused(self, turns: TurnStore) -> None:
        """Unless the request adopts what was parked elsewhere: that begins a turn."""
        await self.park(turns)
        await refused(UnknownState, acquire(turns, resume="unknown"))
        acquired = await acquire(turns, resume="unknown", adopt=True)
        assert (acquired.resumed, acquired.lease.turn) == (False, 2)

    @given_turns
    async def test_a_turn_that_made_room_is_not_listed(self, turns: TurnStore) -> None:
        """It held the session for a resume, and nothing of it stays."""
        await self.park(turns)
        await end(turns, await acquire(turns), unlisted=True)
        assert [record.turn for record in await turns.turns("s")] == [1]
        assert (await acquire(turns, resume="p")).resumed is True

    @given_turns
    async def test_a_resume_waits_for_its_session(self, turns: TurnStore) -> None:
        """A resume of a held session is SessionBusy, and can be tried again."""
        await self.park(turns)
        held = await acquire(turns)
        await refused(SessionBusy, acquire(turns, resume="p"))
        await end(turns, held)
        assert (await acquire(turns, resume="p")).resumed is True

    @given_turns
    async def test_a_turn_may_park_again(self, turns: TurnStore) -> None:
        """After a partial approval the turn is parked again, and resumed again."""
        await self.park(turns)
        for run in (2, 3):
            resumed = await acquire(turns, resume="p")
            assert (resumed.resumed, resumed.next_run) == (True, run)
            await turns.append_items(resumed.lease, run, 0, [output(f"{run}")])
            await end(turns, resumed, "awaiting_approval", park=("p",), settles=("p",))
        last = await acquire(turns, resume="p")
        await end(turns, last, settles=("p",))
        (record,) = await turns.turns("s")
        assert (record.state, record.item_count) == ("completed", 4)

    @given_turns
    async def test_several_runs_of_a_turn_may_wait(self, turns: TurnStore) -> None:
        """Each is resumed by itself, once, in any order; the turn waits as long as one does."""
        acquired = await acquire(turns)
        await turns.append_items(acquired.lease, 1, 0, [user("1")])
        await turns.append_items(acquired.lease, 2, 0, [user("2")])
        await end(turns, acquired, "awaiting_approval", park=("p", "q"))
        outcomes = (("q", "awaiting_approval", None), ("p", "completed", "p is done"))
        for identity, state, text in outcomes:
            resumed = await acquire(turns, resume=identity)
            assert (resumed.resumed, resumed.lease.turn) == (True, acquired.lease.turn)
            await turns.append_items(resumed.lease, resumed.next_run, 0, [output(identity)])
            text_of = f"{identity} is done"
            await end(turns, resumed, output_text=text_of, settles=(identity,))
            (record,) = await turns.turns("s")
            assert (record.state, record.output_text) == (state, text)
        for identity in ("p", "q"):
            await refused(DuplicateTurn, acquire(turns, resume=identity))
        (record,) = await turns.turns("s")
        assert record.items == [user("1"), user("2"), output("q"), output("p")]

    @given_turns
    async def test_a_turns_traces_add_up(self, turns: TurnStore) -> None:
        """A resumed turn keeps the traces of the runs before it was parked."""
        acquired = await acquire(turns)
        await end(turns, acquired, "awaiting_approval", park=("p",), sdk_trace_ids=("t1",))
        resumed = await acquire(turns, resume="p")
        await end(turns, resumed, sdk_trace_ids=("t2", "t1", "t3"))
        (record,) = await turns.turns("s")
        assert record.sdk_trace_ids == ("t1", "t2", "t3")
