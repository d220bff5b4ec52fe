"""Sessions in pages over all shards, what figures tell, and indexes that are mended."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from session_middleware.conformance.conversations import ids, parked, whole_session
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from session_middleware.stores import sweeps
from session_middleware.stores.managed_store import SessionInfo
from session_middleware.stores.redis import RedisSessionMemory, index
from session_middleware.stores.redis.keys import Keys
from tests.support.conditions import until

ORDERS = ("updated", "created", "id")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


async def make_dated(memory: Any, dates: dict[str, tuple[datetime, datetime]]) -> None:
    """Make sessions that were created and used last at these moments."""
    for session_id, (created, updated) in dates.items():
        assert await memory.put_session(SessionInfo(session_id, created, updated), [])


@pytest.mark.parametrize("few", [0, 5000])
async def test_pages_merge_the_shards(
    few: int, make_memory: Callable[..., RedisSessionMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every order, also among sessions of the same moment, with a prefix or without."""
    monkeypatch.setattr(index, "FEW", few)
    memory = make_memory()
    choose = random.Random(7)
    moments = [BEGAN + timedelta(microseconds=choose.randrange(6)) for _ in range(60)]
    names = [f"{choose.choice(['a:', 'b:', 'ä:', ''])}{number}" for number in range(60)]
    dates = {name: (choose.choice(moments), choose.choice(moments)) for name in names}
    await make_dated(memory, dates)
    for order in ORDERS:
        for prefix in (None, "a:", "ä", "c"):
            expected = [name for name in sorted(dates) if name.startswith(prefix or "")]
            if order != "id":
                at = ORDERS.index(order) ^ 1
                expected.sort(key=lambda name, at=at: (dates[name][at], name), reverse=True)
            found: list[str] = []
            page = await memory.sessions(prefix, 7, order=order)
            while page:
                assert len(page) == 7 or len(found) + len(page) == len(expected)
                found += ids(page)
                page = await memory.sessions(prefix, 7, page[-1], order)
            assert found == expected, (order, prefix)


async def test_a_page_is_one_query_a_shard_and_one_a_session(
    make_memory: Callable[..., RedisSessionMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two exchanges with the server, and no other command; newest turns in one."""
    memory = make_memory()
    for number in range(5):
        await memory.append_to_session(f"s{number}", [user("1")])
    await memory.sessions(limit=3)
    await memory.newest_turns(["s1"])
    sent: list[int] = []
    exchange = memory._connections._until_deadline

    async def counted(where: Any, make: Any, script: Any = None) -> Any:
        answers = await exchange(where, make, script)
        sent.append(len(answers))
        return answers

    monkeypatch.setattr(memory._connections, "_until_deadline", counted)
    assert len(await memory.sessions(limit=3)) == 3
    assert sent == [16, 3]
    sent.clear()
    assert len(await memory.newest_turns(["s0", "s1", "s2"])) == 3
    assert sent == [3]


async def test_figures_tell_of_turns_that_wait(
    make_memory: Callable[..., RedisSessionMemory],
) -> None:
    """How many there are, and since when the oldest does."""
    memory = make_memory()
    assert await memory.figures() == {"turn.parked": 0}
    began = datetime.now(UTC).timestamp()
    await parked(memory, "a", "p1")
    await parked(memory, "b", "p2")
    figures = await memory.figures()
    assert figures["turn.parked"] == 2
    assert abs(figures["turn.parked.age"] - began) < 60
    resumed = await acquire(memory, "a", resume="p1")
    await end(memory, resumed, settles=("p1",))
    await memory.clear_session("b")
    assert await memory.figures() == {"turn.parked": 0}


async def test_a_deleted_session_leaves_the_indexes(
    make_memory: Callable[..., RedisSessionMemory], redis_url: str
) -> None:
    """Nothing names it any more but a tombstone and the numbers of recent calls."""
    memory = make_memory()
    await whole_session(memory, "s")
    await memory.delete("s")
    with redis.Redis.from_url(redis_url) as client:
        left: Any = client.keys(f"{memory._identity[-1]}:*")
    session = Keys(memory._identity[-1]).of_session("s")
    assert {key.decode() for key in left} <= {session[5], session[6]}  # done and gone


async def test_sessions_that_expired_leave_the_indexes(
    make_memory: Callable[..., RedisSessionMemory], redis_url: str
) -> None:
    """A page passes over them at once, and a sweep removes what is left of them."""
    memory = make_memory(ttl=3600)
    for name in ("s", "t"):
        await whole_session(memory, name)
        await parked(memory, name, f"{name} waits")
    keys = Keys(memory._identity[-1])
    with redis.Redis.from_url(redis_url) as client:
        client.delete(*keys.of_session("t"))
        assert ids(await memory.sessions(limit=1)) == ["s"]
        assert await memory.find_turn("trace_t") is None
        assert ids(await memory.pending()) == ["s", "s"]
        before = sum(len(_members(client, keys, name)) for name in ("s", "t"))
        kept = len(_members(client, keys, "s"))
        await _sweep_once(memory)
        assert (len(_members(client, keys, "s")), _members(client, keys, "t")) == (kept, [])
        assert before > kept


def _members(client: Any, keys: Keys, session_id: str) -> list[bytes]:
    """All that the indexes have of a session."""
    own = session_id.encode()
    members = [
        member for name in keys.indexes_of(session_id) for member in client.zrange(name, 0, -1)
    ]
    return [each for each in members if own in each.split(b"\n")]


async def _sweep_once(memory: RedisSessionMemory) -> None:
    """Go round all indexes once."""
    async for _ in memory._sweeping._pages(memory._connections.one_server):
        pass


async def test_one_process_sweeps_at_a_time(
    make_memory: Callable[..., RedisSessionMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others leave it to that one."""
    memory, other = make_memory(ttl=3600), make_memory(ttl=3600)
    await memory.append_to_session("s", [user("1")])
    await memory._sweeping.step()
    await other._sweeping.step()
    assert memory._sweeping._round is not None
    assert other._sweeping._round is None


async def test_a_memory_that_is_used_sweeps(
    make_memory: Callable[..., RedisSessionMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, where its sessions expire; elsewhere the scripts leave nothing to mend."""
    monkeypatch.setattr(sweeps, "_PAUSES", (0.01, 0.01))
    memory, lasting = make_memory(ttl=3600), make_memory()
    for each in (lasting, memory):
        await end(each, await acquire(each))
    await until(lambda: memory._sweeping._round is not None)
    assert lasting._sweeping._round is None
