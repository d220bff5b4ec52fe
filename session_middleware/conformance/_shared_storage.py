"""What a memory does whose storage is not its own: other objects see it, leases expire."""

from __future__ import annotations

from typing import Any

from session_middleware.conformance._histories import given_a_memory
from session_middleware.conformance._items import assistant, call, output, user
from session_middleware.conformance._turn_memory import TurnMemoryConformance
from session_middleware.conformance._turns import end, one_turn, refused, take
from session_middleware.errors import (
    SessionBusy,
)
from session_middleware.memory import CarriedRun, SessionMemory


class SharedStorageConformance(TurnMemoryConformance):
    """A memory whose storage other objects, or other processes, use as well."""

    def make_peer(self, memory: SessionMemory) -> SessionMemory:
        """Return another memory on the same storage, as another process would open it."""
        raise NotImplementedError(f"{type(self).__name__} says how to make a peer: make_peer")

    async def expire(self, memory: SessionMemory, session_id: str) -> None:
        """Make the lease of a session look as if its holder had died long ago."""
        raise NotImplementedError(f"{type(self).__name__} says how a lease expires: expire")

    @given_a_memory
    async def test_a_peer_sees_everything(self, memory: Any) -> None:
        """Items, turns and their records are the storage's, not the object's."""
        await one_turn(memory, [user("1"), assistant("2")])
        taken = await take(memory)
        peer: Any = self.make_peer(memory)
        try:
            assert await peer.load_session("s") == [user("1"), assistant("2")]
            assert await peer.turns("s") == await memory.turns("s")
            assert (await refused(SessionBusy, take(peer))).turn == taken.lease.turn
            assert await peer.release("s") is True
            await self.assert_lost(memory, taken.lease)
            await end(peer, await take(peer))
        finally:
            await peer.cleanup()
        assert await memory.load_session("s") == [user("1"), assistant("2")]

    @given_a_memory
    async def test_an_expired_lease_is_taken_over(self, memory: Any) -> None:
        """The turn whose lease expired is abandoned and lost; what it stored stays."""
        dead = await take(memory)
        await memory.append_items(dead.lease, 1, 0, [user("1")])
        await self.expire(memory, "s")
        taken = await take(memory)
        assert taken.lease.turn == dead.lease.turn + 1
        await self.assert_lost(memory, dead.lease)
        assert (await memory.turns("s"))[1].state == "abandoned"
        assert await memory.load_session("s") == [user("1")]
        await end(memory, taken)

    @given_a_memory
    async def test_a_lease_that_merely_expired_is_good(self, memory: Any) -> None:
        """As long as nobody took the session, its turn goes on writing."""
        taken = await take(memory)
        await self.expire(memory, "s")
        await memory.append_items(taken.lease, 1, 0, [user("1")])
        await end(memory, taken)
        (record,) = await memory.turns("s")
        assert (record.state, record.items) == ("completed", [user("1")])

    @given_a_memory
    async def test_a_key_whose_holder_died_is_retried(self, memory: Any) -> None:
        """When the lease of the turn with the key expired, its runs move to the new turn."""
        dead = await take(memory, idempotency_key="k")
        done = [user("1"), call("f"), output("f")]
        await memory.append_items(dead.lease, 1, 0, done, input_digest="d")
        await self.expire(memory, "s")
        again = await take(memory, idempotency_key="k")
        assert again.carried == (CarriedRun(1, "d", 3, has_outputs=True),)
        await self.assert_lost(memory, dead.lease)
        assert (await memory.turns("s"))[1].state == "replaced"
        await end(memory, again)
        assert await memory.load_session("s") == done

    @given_a_memory
    async def test_a_resume_takes_over_an_expired_lease(self, memory: Any) -> None:
        """A parked turn goes on when the one that came in between has died."""
        parked = await take(memory)
        await end(memory, parked, "awaiting_approval", park=("p",))
        await take(memory)
        await self.expire(memory, "s")
        resumed = await take(memory, resume="p")
        assert (resumed.resumed, resumed.lease.turn) == (True, parked.lease.turn)
        states = {record.turn: record.state for record in await memory.turns("s")}
        assert states == {1: "running", 2: "abandoned"}
        await end(memory, resumed)
