"""Sessions are forked, exported, imported, and seen through scopes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from session_middleware.conformance.cases import given_turns, needs
from session_middleware.conformance.conversations import (
    LABELS,
    ids,
    lines_of,
    parked,
    whole_session,
)
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import (
    ConflictingMemory,
    DuplicateTurn,
    InvalidOption,
    InvalidSessionId,
)
from session_middleware.stores.protocol import MANAGE
from session_middleware.stores.records import (
    Item,
    TurnRecord,
)


class CopyTests(TurnTests):
    """What is copied."""

    @given_turns
    @needs(MANAGE)
    async def test_a_fork_has_the_turns_up_to_one(self, turns: Any) -> None:
        """With their numbers, times, outcomes and labels; both go on by themselves."""
        await whole_session(turns)
        await turns.set_title("s", "One")
        forked = await turns.fork("s", "new", at_turn=2)
        assert (forked.session_id, forked.title, forked.turns) == ("new", "One", 2)
        assert forked.created_at == (await turns.session_info("s")).created_at
        original = {record.turn: record for record in await turns.turns("s")}
        for record in await turns.turns("new"):
            assert _of_session(record, "s") == original[record.turn]
        await turns.append_to_session("new", [user("3 anew")])
        assert await turns.load_session("new") == [
            *(user("1"), assistant("1"), user("2"), user("3 anew"))
        ]
        assert len(await turns.load_session("s")) == 7

    @given_turns
    @needs(MANAGE)
    async def test_an_approval_stays_where_it_was_asked_for(self, turns: Any) -> None:
        """A fork does not have it: its turn is cancelled there."""
        await parked(turns)
        await turns.fork("s", "new")
        assert [record.state for record in await turns.turns("new")] == ["cancelled"]
        assert ids(await turns.pending()) == ["s"]
        resumed = await acquire(turns, resume="p")
        await end(turns, resumed, settles=("p",))

    @given_turns
    @needs(MANAGE)
    async def test_a_fork_takes_no_other_sessions_place(self, turns: Any) -> None:
        """Nor is there one of a session that is not there; nothing is left behind."""
        await whole_session(turns)
        await turns.append_to_session("taken", [user("1")])
        for work in (turns.fork("s", "taken"), turns.fork("unknown", "new")):
            await refused(InvalidSessionId, work)
        await refused(InvalidSessionId, turns.fork("s", "s"))
        assert [record.turn for record in await turns.turns("taken")] == [1]
        assert sorted(await turns.list_sessions()) == ["s", "taken"]

    @given_turns
    @needs(MANAGE)
    async def test_an_export_is_the_same_when_it_was_imported(self, turns: Any) -> None:
        """Every id, time, outcome, record, label and parked state; once more, nothing changes."""
        await whole_session(turns, "a:1")
        await turns.set_title("a:1", "One")
        await turns.set_metadata("a:1", LABELS)
        awkward: list[Item] = [
            {"role": "user", "content": "\u2028 \n \ud800 \N{MAN}", "z": 1, "a": 2}
        ]
        await turns.append_to_session("a:2", awkward)
        await turns.append_to_session("b", [user("1")])
        lines = await lines_of(turns, prefix="a:")
        infos = {info.session_id: info for info in await turns.sessions(prefix="a:")}
        records = await turns.turns("a:1")
        waiting = await turns.pending()
        assert await turns.import_(lines) == 0
        assert await turns.delete_prefix("a:") == 2
        assert await turns.import_(lines) == 2
        assert await turns.import_(lines) == 0
        assert await turns.turns("a:1") == records
        assert await turns.pending() == waiting
        assert await turns.load_session("a:2") == awkward
        for info in await turns.sessions(prefix="a:"):
            assert info == infos[info.session_id]
        assert _without_fences(await lines_of(turns, prefix="a:")) == _without_fences(lines)
        assert (await turns.find_turn("trace_a:1")).turn == 1
        resumed = await acquire(turns, "a:1", resume="p")
        assert resumed.resumed is True
        await end(turns, resumed, settles=("p",))
        again = acquire(turns, "a:1", idempotency_key="key", input_digest="digest")
        await refused(DuplicateTurn, again)

    @given_turns
    @needs(MANAGE)
    async def test_a_parked_run_keeps_its_other_names(self, turns: Any) -> None:
        """It is resumed under either name, and once that completed, under none."""
        await parked(turns)
        failed = await acquire(turns, resume="p")
        await end(turns, failed, "failed", aliases=(("q", "p"),))
        lines = await lines_of(turns, "s")
        await turns.delete("s")
        await turns.import_(lines)
        resumed = await acquire(turns, resume="q")
        assert resumed.resumed is True
        await end(turns, resumed, settles=("q",))
        for identity in ("p", "q"):
            await refused(DuplicateTurn, acquire(turns, resume=identity))

    @given_turns
    @needs(MANAGE)
    async def test_another_session_of_the_same_id_is_replaced_only_if_told(
        self, turns: Any
    ) -> None:
        """Nothing of either is mixed."""
        await whole_session(turns)
        lines = await lines_of(turns, "s")
        await turns.undo("s")
        await refused(ConflictingMemory, turns.import_(lines))
        assert len(await turns.load_session("s")) == 5
        assert await turns.import_(lines, replace=True) == 1
        assert len(await turns.load_session("s")) == 7

    @given_turns
    @needs(MANAGE)
    async def test_an_export_that_is_not_whole_is_refused(self, turns: Any) -> None:
        """The line is named, and nothing of its session is stored; those before it are."""
        await turns.append_to_session("first", [user("1")])
        await whole_session(turns, "second")
        lines = await lines_of(turns, "first", "second")
        await turns.delete("first", "second")
        broken = [
            *((at, [*lines[:at], lines[at][:-9]]) for at in range(4, len(lines) - 1)),
            (len(lines) - 2, lines[:-2]),
            (5, [*lines[:5], "not JSON\n", *lines[5:]]),
            (6, [*lines[:6], *lines[7:]]),
            (5, [*lines[:5], lines[6], lines[5], *lines[7:]]),
        ]
        for at, given in broken:
            error = await refused(InvalidOption, turns.import_(given))
            named = int(str(error).split()[1])
            assert at <= named <= len(lines), error
            assert await turns.list_sessions() == ["first"]
            await turns.delete("first")

    @given_turns
    @needs(MANAGE)
    async def test_an_export_without_its_end_is_told(self, turns: Any) -> None:
        """Cut off behind a session, or with another number: the sessions that it has are stored."""
        await turns.append_to_session("first", [user("1")])
        await turns.append_to_session("second", [user("2")])
        lines = await lines_of(turns)
        await turns.delete("first", "second")
        for cut in ([], lines[:1], lines[:4], lines[:-1], [*lines[:4], lines[-1]]):
            await refused(InvalidOption, turns.import_(cut))
        assert await turns.list_sessions() == ["first", "second"]
        assert await turns.import_([*lines, *lines]) == 0

    @given_turns
    @needs(MANAGE)
    async def test_fences_go_on_above_those_that_were_imported(self, turns: Any) -> None:
        """A store outside that refuses a stale writer is right after a move as well."""
        await one_turn(turns, [user("1")])
        lines = await lines_of(turns, "s")
        (fence,) = {int(found) for found in re.findall('"fence": ([0-9]+)', "".join(lines))}
        ahead = fence + 10_000_000_000_000
        raised = [line.replace(f'"fence": {fence}', f'"fence": {ahead}') for line in lines]
        await turns.import_(raised, replace=True)
        await turns.delete("s")
        assert await turns.import_(raised) == 1
        assert (await acquire(turns, "other")).lease.fence > ahead

    @given_turns
    @needs(MANAGE)
    async def test_a_scope_sees_its_own_sessions_only(self, turns: Any) -> None:
        """In every method, with tenants whose names begin alike or look like others' ids."""
        tenants = ["a", "a:b", "a%3Ab", "ab", "%", "a:"]
        scopes = {tenant: turns.scoped(tenant) for tenant in tenants}
        assert len({scope.full_id("1") for scope in scopes.values()}) == len(tenants)
        for tenant, scope in scopes.items():
            await scope.append_to_session("1", [user(tenant)])
            await scope.set_title("1", tenant)
            await parked(turns, scope.full_id("p"), f"p-{tenant}")
        for tenant, scope in scopes.items():
            assert sorted(await scope.list_sessions()) == ["1", "p"]
            assert sorted(ids(await scope.sessions())) == ["1", "p"]
            assert ids(await scope.pending()) == ["p"]
            assert (await scope.session_info("1")).title == tenant
            assert await scope.load_session("1") == [user(tenant)]
            assert [record.session_id for record in await scope.turns("1")] == ["1"]
            lines = await lines_of(scope)
            assert await scope.delete_prefix("p") == 1
            assert await scope.import_(lines) == 1
            assert ids(await scope.pending()) == ["p"]
            await scope.fork("1", "2")
            assert await scope.delete("1", "2", "p") == 3
            assert await scope.sessions() == []
        assert await turns.sessions() == []


def _of_session(record: TurnRecord, session_id: str) -> TurnRecord:
    return replace(record, session_id=session_id)


def _without_fences(lines: Sequence[str]) -> list[str]:
    return [line.split('"fence"')[0] for line in lines]
