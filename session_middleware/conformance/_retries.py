"""A run that failed is taken over, a run that was parked is resumed."""

from __future__ import annotations

from session_middleware.conformance._items import (
    assistant,
    call,
    output,
    user,
)
from session_middleware.conformance._turns import (
    TurnFactory,
    end,
    given_turns,
    one_turn,
    refused,
    take,
)
from session_middleware.errors import DuplicateTurn, SessionBusy, WrongSession
from session_middleware.memory import (
    SupportsTurns,
    Taken,
)


class RetriesConformance(TurnFactory):
    """Retrying a run within its turn, and going on with a parked turn."""

    # --- retrying a run --------------------------------------------------------------------

    @given_turns
    async def test_a_run_without_outputs_is_replaced(self, turns: SupportsTurns) -> None:
        """When the failed run had no completed tool output, its items go."""
        await one_turn(turns, [user("old"), assistant("old")])
        taken = await take(turns)
        await turns.append_items(taken.lease, 1, 0, [user("1"), call("f")], input_digest="d")
        assert await turns.retry_run(taken.lease, 1, 2) == 0
        await turns.append_items(taken.lease, 2, 0, [user("1"), assistant("2")], input_digest="d")
        await end(turns, taken, runs={2: "completed"})
        assert (await turns.load_turns("s")).turns[-1].items == [user("1"), assistant("2")]
        assert await turns.load_items("s") == [
            user("old"),
            assistant("old"),
            user("1"),
            assistant("2"),
        ]

    @given_turns
    async def test_a_run_with_outputs_is_continued(self, turns: SupportsTurns) -> None:
        """The new run keeps what the failed one had, up to its last tool output."""
        taken = await take(turns)
        done = [user("1"), call("f"), output("f")]
        await turns.append_items(taken.lease, 1, 0, done)
        await turns.append_items(taken.lease, 1, 3, [call("g")])
        assert await turns.retry_run(taken.lease, 1, 2) == 3
        assert await turns.load_items("s") == done
        await turns.append_items(taken.lease, 2, 3, [assistant("2")])
        await end(turns, taken, runs={2: "completed"})
        assert await turns.load_items("s") == [*done, assistant("2")]

    @given_turns
    async def test_a_retried_run_can_be_retried(self, turns: SupportsTurns) -> None:
        """A third run takes over from the second what the second took over from the first."""
        taken = await take(turns)
        done = [user("1"), call("f"), output("f")]
        await turns.append_items(taken.lease, 1, 0, done)
        assert await turns.retry_run(taken.lease, 1, 2) == 3
        assert await turns.retry_run(taken.lease, 2, 3) == 3
        await turns.append_items(taken.lease, 3, 3, [assistant("3")])
        await end(turns, taken, runs={3: "completed"})
        assert await turns.load_items("s") == [*done, assistant("3")]
        assert (await turns.turns("s"))[0].items == [*done, assistant("3")]

    @given_turns
    async def test_retrying_a_run_that_stored_nothing(self, turns: SupportsTurns) -> None:
        """A run that failed before it stored anything leaves nothing to take over."""
        taken = await take(turns)
        assert await turns.retry_run(taken.lease, 1, 2) == 0
        await turns.append_items(taken.lease, 2, 0, [user("1")])
        await end(turns, taken)
        assert await turns.load_items("s") == [user("1")]

    # --- parked runs -----------------------------------------------------------------------

    async def park(self, turns: SupportsTurns, session_id: str = "s", park: str = "p") -> Taken:
        taken = await take(turns, session_id)
        await turns.append_items(taken.lease, 1, 0, [user("1"), call("f")])
        await end(turns, taken, "awaiting_approval", park=(park,), runs={1: "awaiting_approval"})
        return taken

    @given_turns
    async def test_a_parked_turn_is_continued(self, turns: SupportsTurns) -> None:
        """A resume goes on in the parked turn, whatever came in between."""
        parked = await self.park(turns)
        between = await one_turn(turns, [user("between"), assistant("b")])
        assert between.lease.turn == parked.lease.turn + 1
        resumed = await take(turns, resume="p")
        assert resumed.resumed is True
        assert resumed.lease.turn == parked.lease.turn
        assert resumed.lease.token != parked.lease.token
        assert (resumed.next_run, resumed.carried) == (2, ())
        assert await turns.load_items("s", turn=resumed.lease.turn) == [user("1"), call("f")]
        records = {record.turn: record.state for record in await turns.turns("s")}
        assert records == {1: "running", 2: "completed"}
        await self.assert_lost(turns, parked.lease)
        await turns.append_items(resumed.lease, 2, 0, [output("f"), assistant("2")])
        await end(turns, resumed, runs={2: "completed"})
        record = (await turns.turns("s"))[-1]
        assert (record.turn, record.state) == (1, "completed")
        assert record.items == [user("1"), call("f"), output("f"), assistant("2")]
        assert (await one_turn(turns, [])).lease.turn == 3

    @given_turns
    async def test_a_state_is_resumed_once(self, turns: SupportsTurns) -> None:
        """A second resume of the same state is told which turn did it and what it stored."""
        parked = await self.park(turns)
        resumed = await take(turns, resume="p")
        await refused(DuplicateTurn, take(turns, resume="p"))
        await turns.append_items(resumed.lease, 2, 0, [output("f")])
        await end(turns, resumed)
        duplicate = await refused(DuplicateTurn, take(turns, resume="p"))
        assert duplicate.turn == parked.lease.turn
        assert duplicate.items == [user("1"), call("f"), output("f")]

    @given_turns
    async def test_a_state_belongs_to_its_session(self, turns: SupportsTurns) -> None:
        """A state that was parked in another session is refused, and nothing is taken."""
        await self.park(turns)
        await refused(WrongSession, take(turns, "other", resume="p"))
        assert (await take(turns, "other")).lease.turn == 1
        assert (await take(turns, resume="p")).resumed is True

    @given_turns
    async def test_two_sessions_may_park_under_one_identity(self, turns: SupportsTurns) -> None:
        """One trace around runs of two sessions gives both the same identity; both resume."""
        await self.park(turns, "a")
        await self.park(turns, "b")
        for session_id in ("a", "b"):
            resumed = await take(turns, session_id, resume="p")
            assert (resumed.resumed, resumed.lease.turn) == (True, 1)

    @given_turns
    async def test_an_unknown_state_begins_a_turn(self, turns: SupportsTurns) -> None:
        """Resuming what was never parked here is a new turn."""
        await self.park(turns)
        taken = await take(turns, resume="unknown")
        assert (taken.resumed, taken.lease.turn) == (False, 2)

    @given_turns
    async def test_a_resume_waits_for_its_session(self, turns: SupportsTurns) -> None:
        """A resume of a held session is SessionBusy, and can be tried again."""
        await self.park(turns)
        held = await take(turns)
        await refused(SessionBusy, take(turns, resume="p"))
        await end(turns, held)
        assert (await take(turns, resume="p")).resumed is True

    @given_turns
    async def test_a_turn_may_park_again(self, turns: SupportsTurns) -> None:
        """After a partial approval the turn is parked again, and resumed again."""
        await self.park(turns)
        for run in (2, 3):
            resumed = await take(turns, resume="p")
            assert (resumed.resumed, resumed.next_run) == (True, run)
            await turns.append_items(resumed.lease, run, 0, [output(f"{run}")])
            await end(turns, resumed, "awaiting_approval", park=("p",))
        last = await take(turns, resume="p")
        await end(turns, last)
        (record,) = await turns.turns("s")
        assert (record.state, record.item_count) == ("completed", 4)

    @given_turns
    async def test_several_runs_of_a_turn_may_wait(self, turns: SupportsTurns) -> None:
        """Each is resumed by itself, once, in any order; the turn waits as long as one does."""
        taken = await take(turns)
        await turns.append_items(taken.lease, 1, 0, [user("1")])
        await turns.append_items(taken.lease, 2, 0, [user("2")])
        await end(turns, taken, "awaiting_approval", park=("p", "q"))
        outcomes = (("q", "awaiting_approval", None), ("p", "completed", "p is done"))
        for identity, state, text in outcomes:
            resumed = await take(turns, resume=identity)
            assert (resumed.resumed, resumed.lease.turn) == (True, taken.lease.turn)
            await turns.append_items(resumed.lease, resumed.next_run, 0, [output(identity)])
            await end(turns, resumed, output_text=f"{identity} is done")
            (record,) = await turns.turns("s")
            assert (record.state, record.output_text) == (state, text)
        for identity in ("p", "q"):
            await refused(DuplicateTurn, take(turns, resume=identity))
        (record,) = await turns.turns("s")
        assert record.items == [user("1"), user("2"), output("q"), output("p")]

    @given_turns
    async def test_a_turns_traces_add_up(self, turns: SupportsTurns) -> None:
        """A resumed turn keeps the traces of the runs before it was parked."""
        taken = await take(turns)
        await end(turns, taken, "awaiting_approval", park=("p",), sdk_trace_ids=("t1",))
        resumed = await take(turns, resume="p")
        await end(turns, resumed, sdk_trace_ids=("t2", "t1", "t3"))
        (record,) = await turns.turns("s")
        assert record.sdk_trace_ids == ("t1", "t2", "t3")
