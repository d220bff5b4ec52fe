"""A storage that other objects use as well: they see everything, and leases expire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from session_middleware.conformance.cases import given_a_memory, needs, skip
from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import DuplicateTurn, SessionBusy
from session_middleware.stores.protocol import MANIFEST, TURNS
from session_middleware.stores.records import CarriedRun, Item

_SHORT_LEASE = 3.0  # seconds: a renewal of it can be waited for


class PeerTests(TurnTests):
    """Tests that need ``make_peer`` or ``expire``."""

    @given_a_memory
    async def test_a_history_is_never_stale(self, memory: Any) -> None:
        """Items of another object are read at once, also by an object that has read before."""
        peer: Any = self.make_peer(memory)
        try:
            for number in range(3):
                await peer.append_to_session("s", [user(f"{number}")])
                expected = [user(f"{earlier}") for earlier in range(number + 1)]
                assert await memory.load_session("s") == expected
                assert await peer.load_session("s") == expected
            await peer.clear_session("s")
            assert await memory.load_session("s") == []
            assert await memory.session_exists("s") is False
        finally:
            await peer.cleanup()

    @given_a_memory
    async def test_a_reopened_storage_has_everything(self, memory: Any) -> None:
        """After cleanup() a new object on the same storage reads what the old one stored."""
        items = [user("1"), call("f"), output("f"), assistant("1")]
        await memory.append_to_session("s", items)
        await memory.save_session("empty", [])
        reopened: Any = self.make_peer(memory)
        await memory.cleanup()
        try:
            assert await reopened.load_session("s") == items
            assert sorted(await reopened.list_sessions()) == ["empty", "s"]
        finally:
            await reopened.cleanup()

    @given_a_memory
    @needs(TURNS)
    async def test_a_reopened_storage_has_turns_keys_and_parked_runs(self, memory: Any) -> None:
        """Records, idempotency keys and parked runs outlive the object that stored them."""
        done = await acquire(memory, idempotency_key="k")
        await memory.append_items(done.lease, 1, 0, [user("1")])
        await end(memory, done)
        parked = await acquire(memory)
        await memory.append_items(parked.lease, 1, 0, [user("2"), call("f")])
        await end(memory, parked, "awaiting_approval", park=("p",), runs={1: "awaiting_approval"})
        records = await memory.turns("s")
        reopened: Any = self.make_peer(memory)
        await memory.cleanup()
        try:
            assert await reopened.turns("s") == records
            duplicate = await refused(DuplicateTurn, acquire(reopened, idempotency_key="k"))
            assert (duplicate.turn, duplicate.items) == (done.lease.turn, [user("1")])
            resumed = await acquire(reopened, resume="p")
            assert (resumed.resumed, resumed.lease.turn) == (True, parked.lease.turn)
            await end(reopened, resumed)
        finally:
            await reopened.cleanup()

    @given_a_memory
    @needs(TURNS)
    async def test_a_lost_lease_is_not_renewed(self, memory: Any) -> None:
        """While a memory believes in a lease that it lost, the new holder keeps the session."""
        if memory.lease_seconds > _SHORT_LEASE:
            skip(f"make_memory() gives leases of more than {_SHORT_LEASE} s: too long to watch")
        await acquire(memory)
        await acquire(memory, "witness")
        peer: Any = self.make_peer(memory)
        try:
            # The peer renews its leases as well. It begins between two renewals of the memory, so
            # that neither hides what the other has done.
            await self._renewed(peer, "witness")
            await asyncio.sleep(memory.lease_seconds / 6)
            await peer.release("s")
            acquired = await acquire(peer)
            stored: list[Item] = []

            async def writes() -> None:
                item = user(f"{len(stored)}")
                await peer.append_items(acquired.lease, 1, len(stored), [item])
                stored.append(item)

            for _ in range(2):  # the first may have begun before the lease was lost
                await self._renewed(peer, "witness", meanwhile=writes)
            await refused(SessionBusy, acquire(memory))
            await end(peer, acquired)
            assert await memory.load_session("s") == stored
        finally:
            await peer.cleanup()

    async def _renewed(
        self, memory: Any, session_id: str, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Wait until the lease of a session was renewed: it ends well later than it does now.

        A store may compute that moment from two clocks, each time a little differently. Only a
        renewal moves it by a part of the lease.
        """
        renewed = timedelta(seconds=memory.lease_seconds / 6)
        before = (await refused(SessionBusy, acquire(memory, session_id))).until
        assert before is not None
        while True:
            if meanwhile is not None:
                await meanwhile()
            now = (await refused(SessionBusy, acquire(memory, session_id))).until
            if now is not None and now > before + renewed:
                return
            await asyncio.sleep(0.02)

    @given_a_memory
    @needs(TURNS)
    async def test_a_peer_sees_everything(self, memory: Any) -> None:
        """Items, turns and their records are the storage's, not the object's."""
        await one_turn(memory, [user("1"), assistant("2")])
        acquired = await acquire(memory)
        peer: Any = self.make_peer(memory)
        try:
            assert await peer.load_session("s") == [user("1"), assistant("2")]
            assert await peer.turns("s") == await memory.turns("s")
            assert (await refused(SessionBusy, acquire(peer))).turn == acquired.lease.turn
            assert await peer.release("s") is True
            await self.assert_lost(memory, acquired.lease)
            await end(peer, await acquire(peer))
        finally:
            await peer.cleanup()
        assert await memory.load_session("s") == [user("1"), assistant("2")]

    @given_a_memory
    @needs(MANIFEST)
    async def test_a_takeover_is_told(self, memory: Any) -> None:
        """A turn that takes over an expired lease is told the number of the turn that held it."""
        dead = await acquire(memory)
        await self.expire(memory, "s")
        acquired = await acquire(memory)
        assert (dead.took_over, acquired.took_over) == (None, dead.lease.turn)
        await end(memory, acquired)

    @given_a_memory
    @needs(TURNS)
    async def test_an_expired_lease_is_taken_over(self, memory: Any) -> None:
        """The turn whose lease expired is abandoned and lost; what it stored stays."""
        dead = await acquire(memory)
        await memory.append_items(dead.lease, 1, 0, [user("1")])
        await self.expire(memory, "s")
        acquired = await acquire(memory)
        assert acquired.lease.turn == dead.lease.turn + 1
        await self.assert_lost(memory, dead.lease)
        assert (await memory.turns("s"))[1].state == "abandoned"
        assert await memory.load_session("s") == [user("1")]
        await end(memory, acquired)

    @given_a_memory
    @needs(TURNS)
    async def test_a_lease_that_merely_expired_is_good(self, memory: Any) -> None:
        """As long as nobody acquired the session, its turn goes on writing."""
        acquired = await acquire(memory)
        await self.expire(memory, "s")
        await memory.append_items(acquired.lease, 1, 0, [user("1")])
        await end(memory, acquired)
        (record,) = await memory.turns("s")
        assert (record.state, record.items) == ("completed", [user("1")])

    @given_a_memory
    @needs(TURNS)
    async def test_a_key_whose_holder_died_is_retried(self, memory: Any) -> None:
        """When the lease of the turn with the key expired, its runs move to the new turn."""
        dead = await acquire(memory, idempotency_key="k")
        done = [user("1"), call("f"), output("f")]
        await memory.append_items(dead.lease, 1, 0, done, input_digest="d")
        await self.expire(memory, "s")
        again = await acquire(memory, idempotency_key="k")
        assert again.carried == (CarriedRun(1, "d", 3, has_outputs=True),)
        await self.assert_lost(memory, dead.lease)
        assert (await memory.turns("s"))[1].state == "replaced"
        await end(memory, again)
        assert await memory.load_session("s") == done

    @given_a_memory
    @needs(TURNS)
    async def test_a_resume_takes_over_an_expired_lease(self, memory: Any) -> None:
        """A parked turn goes on when the one that came in between has died."""
        parked = await acquire(memory)
        await end(memory, parked, "awaiting_approval", park=("p",))
        await acquire(memory)
        await self.expire(memory, "s")
        resumed = await acquire(memory, resume="p")
        assert (resumed.resumed, resumed.lease.turn) == (True, parked.lease.turn)
        states = {record.turn: record.state for record in await memory.turns("s")}
        assert states == {1: "running", 2: "abandoned"}
        await end(memory, resumed)
