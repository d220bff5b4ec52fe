"""A leader under Patroni dies under load, again and again: by marker; etcd must be installed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from session_middleware import PostgresSessionMemory
from session_middleware.conformance.samples import assistant, user
from session_middleware.conformance.steps import acquire, end
from tests.support.patroni import PatroniCluster, patroni_cluster, wait_until
from tests.support.under_load import disturbed_under_load

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

KILLS = 10
SESSIONS = [f"s{number}" for number in range(8)]


@pytest.fixture
def cluster() -> Iterator[PatroniCluster]:
    with patroni_cluster() as cluster:
        yield cluster


class Turns:
    """Turns that clients make, when each was acknowledged, and how long nobody could."""

    def __init__(self, cluster: PatroniCluster) -> None:
        self._cluster = cluster
        self._acknowledged = [time.monotonic()]
        self._fences = dict.fromkeys(SESSIONS, 0)
        self.interruptions: list[float] = []

    async def write(self, memory: Any, session_id: str, text: str) -> None:
        """One turn, whose fence is above that of every turn before it."""
        acquired = await acquire(memory, session_id)
        assert acquired.lease.fence > self._fences[session_id]
        self._fences[session_id] = acquired.lease.fence
        await memory.append_items(acquired.lease, 1, 0, [user(text)])
        await memory.append_items(acquired.lease, 1, 1, [assistant(text)])
        await end(memory, acquired, runs={1: "completed"})
        self._acknowledged.append(time.monotonic())

    def kill_leader(self) -> None:
        """Kill whoever leads, wait until turns are made again, and have it follow the new one."""
        leader = self._cluster.leader()
        before = self._acknowledged[-1]
        leader.kill()
        dead = time.monotonic()
        wait_until(lambda: self._acknowledged[-1] > dead + 1)
        self._cluster.restart(leader)
        assert self._cluster.leader() is not leader
        times = [at for at in self._acknowledged if at >= before]
        self.interruptions.append(max(later - earlier for earlier, later in pairwise(times)))


async def test_a_leader_that_is_killed_ten_times(cluster: PatroniCluster) -> None:
    """Every acknowledged turn is there once, no client hears of it, and a long turn goes on."""
    turns = Turns(cluster)
    async with PostgresSessionMemory(cluster.url, operation_timeout=120, lease=5) as memory:
        held = await acquire(memory, "held")
        await disturbed_under_load(
            memory, SESSIONS, turns.kill_leader, times=KILLS, write=turns.write
        )
        for session_id in SESSIONS:
            records = await memory.turns(session_id)
            assert {record.state for record in records} == {"completed"}
        await memory.append_items(held.lease, 1, 0, [user("held")])
        await end(memory, held, runs={1: "completed"})
        assert await memory.load_session("held") == [user("held")]
    assert len(turns.interruptions) == KILLS
    told = ", ".join(f"{seconds:.1f}" for seconds in sorted(turns.interruptions))
    print(f"\n{len(turns._acknowledged)} turns; nobody could make one for {told} s")
    print(f"in the middle {median(turns.interruptions):.1f} s")
