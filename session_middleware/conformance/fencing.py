"""A turn that lost its session writes nothing, by whatever method it tries."""

from __future__ import annotations

from session_middleware.conformance.cases import given_turns
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import TurnTests, acquire, end, one_turn, refused
from session_middleware.errors import SessionBusy, TurnLost
from session_middleware.stores.protocol import TurnStore
from session_middleware.stores.records import Lease


class FencingTests(TurnTests):
    """Leases that ended, were released or never were."""

    @given_turns
    async def test_a_lost_turn_writes_nothing(self, turns: TurnStore) -> None:
        """After its end or its release a turn can write no more, and the history stays."""
        ended = await one_turn(turns, [user("1"), assistant("a")])
        await self.assert_lost(turns, ended.lease)
        released = await acquire(turns)
        await turns.append_items(released.lease, 1, 0, [user("2")])
        assert await turns.release("s") is True
        assert await turns.release("s") is False
        await self.assert_lost(turns, released.lease)
        record = (await turns.turns("s"))[0]
        assert (record.turn, record.state) == (released.lease.turn, "abandoned")
        newer = await acquire(turns)
        await self.assert_lost(turns, released.lease)
        await turns.append_items(newer.lease, 1, 0, [user("3")])
        await end(turns, newer)
        assert await turns.load_items("s") == [user("1"), assistant("a"), user("2"), user("3")]

    @given_turns
    async def test_a_lost_turn_ends_no_other(self, turns: TurnStore) -> None:
        """The end of a turn that lost its session leaves the session with its new holder."""
        lost = await acquire(turns)
        await turns.release("s")
        holder = await acquire(turns)
        await refused(TurnLost, end(turns, lost))
        await refused(SessionBusy, acquire(turns))
        await turns.append_items(holder.lease, 1, 0, [user("1")])
        await end(turns, holder)
        assert await turns.load_items("s") == [user("1")]

    @given_turns
    async def test_a_token_is_not_guessed(self, turns: TurnStore) -> None:
        """A lease with another token, or for another session, is no lease."""
        acquired = await acquire(turns)
        lease = acquired.lease
        await self.assert_lost(turns, Lease(lease.session_id, lease.turn, lease.token ^ 1))
        await self.assert_lost(turns, Lease("other", lease.turn, lease.token))
        await end(turns, acquired)

    @given_turns
    async def test_release_of_a_free_session(self, turns: TurnStore) -> None:
        """Releasing a session that nobody holds says so."""
        assert await turns.release("nobody") is False
