"""The journal of a turn's tool calls: kept under the lease, returned to whoever makes it again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs
from session_middleware.conformance.samples import call, output, user
from session_middleware.conformance.steps import TurnTests, acquire, end, now, refused
from session_middleware.errors import TurnLost
from session_middleware.stores.protocol import JOURNAL
from session_middleware.stores.records import CallRecord, JournalEntry


def entry(place: int = 0, run: int = 1, **changes: Any) -> JournalEntry:
    made = CallRecord(f"c{place}", "tool", f"key{place}", "begun", now())
    return JournalEntry(run, place, replace(made, **changes), '{"item": 1}')


def done(begun: JournalEntry) -> JournalEntry:
    assert begun.call is not None
    ended = replace(begun.call, state="done", ended_at=now() + timedelta(seconds=1))
    return replace(begun, call=ended, output='{"output": "wörd"}')


class JournalTests(TurnTests):
    """The calls of a turn."""

    @given_a_memory
    @needs(JOURNAL)
    async def test_a_retry_is_given_the_journal(self, memory: Any) -> None:
        """Entries come back in order, each as it was kept last, with their texts."""
        first = await acquire(memory, idempotency_key="k")
        await memory.append_items(first.lease, 1, 0, [user("1")], input_digest="d")
        beside = JournalEntry(1, 0, None, '{"type": "reasoning"}')
        calls = [entry(1), entry(2), entry(0, run=2)]
        await memory.journal(first.lease, [beside, *calls], durable=True)
        await memory.journal(first.lease, [done(calls[1])], durable=False)
        await end(memory, first, "failed")
        again = await acquire(memory, idempotency_key="k")
        got = {(kept.run, kept.place): kept for kept in again.journal}
        assert list(got) == [(1, 0), (1, 1), (1, 2), (2, 0)]
        assert (got[1, 0], got[1, 1], got[2, 0]) == (beside, calls[0], calls[2])
        ended = got[1, 2]
        assert ended.output == '{"output": "wörd"}'
        assert ended.call is not None
        assert ended.call.state == "done"
        await end(memory, again)

    @given_a_memory
    @needs(JOURNAL)
    async def test_a_resume_is_given_the_journal(self, memory: Any) -> None:
        """Also after a resume that did not end, and under another turn nothing of it."""
        parked = await acquire(memory)
        await memory.append_items(parked.lease, 1, 0, [user("1"), call("f")])
        await end(memory, parked, "awaiting_approval", park=("p",))
        resumed = await acquire(memory, resume="p")
        assert resumed.journal == ()
        await memory.journal(resumed.lease, [entry(run=2)], durable=True)
        await end(memory, resumed, "cancelled")
        between = await acquire(memory)
        assert between.journal == ()
        await end(memory, between)
        assert [kept.place for kept in (await acquire(memory, resume="p")).journal] == [0]

    @given_a_memory
    @needs(JOURNAL)
    async def test_the_end_of_a_turn_settles_its_journal(self, memory: Any) -> None:
        """The entries of the end take the place of all others, and the record tells the calls."""
        acquired = await acquire(memory, idempotency_key="k")
        await memory.journal(acquired.lease, [entry(0), entry(1)], durable=True)
        last = replace(done(entry(1)), item=None, output=None)
        await end(memory, acquired, "failed", journal=(last,))
        (record,) = await memory.turns("s")
        assert record.calls == (last.call,)
        again = await acquire(memory, idempotency_key="k")
        assert again.journal == (last,)
        await end(memory, again)
        assert [one.calls for one in await memory.turns("s")] == [(last.call,), ()]

    @given_a_memory
    @needs(JOURNAL)
    async def test_an_end_without_calls_empties_the_journal(self, memory: Any) -> None:
        """An end that says nothing of the journal leaves it as it is."""
        parked = await acquire(memory, idempotency_key="k")
        await memory.journal(parked.lease, [entry()], durable=True)
        await end(memory, parked, "awaiting_approval", park=("p",))
        resumed = await acquire(memory, resume="p")
        assert len(resumed.journal) == 1
        await end(memory, resumed, "awaiting_approval", park=("q",), settles=("p",), journal=())
        assert (await acquire(memory, resume="q")).journal == ()

    @given_a_memory
    @needs(JOURNAL)
    async def test_a_lost_turn_keeps_no_journal(self, memory: Any) -> None:
        """The journal is fenced as every other write."""
        acquired = await acquire(memory)
        await memory.release("s")
        await refused(TurnLost, memory.journal(acquired.lease, [entry()], durable=True))
        (record,) = await memory.turns("s")
        assert record.calls == ()

    @given_a_memory
    @needs(JOURNAL)
    async def test_a_cleared_session_has_no_journal(self, memory: Any) -> None:
        """Its words are words of the conversation."""
        for forget in ("clear", "save"):
            acquired = await acquire(memory, idempotency_key="k")
            await memory.append_items(acquired.lease, 1, 0, [user("1"), call("f"), output("f")])
            await memory.journal(acquired.lease, [entry()], durable=True)
            await end(memory, acquired, "failed")
            if forget == "clear":
                await memory.clear_session("s")
            else:
                await memory.save_session("s", [user("saved")])
            anew = await acquire(memory, idempotency_key="k")
            assert anew.journal == ()
            await end(memory, anew)
            await memory.clear_session("s")
