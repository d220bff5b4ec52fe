"""Listing and deleting sessions: what a page costs, and what goes on at the same time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from session_middleware.conformance.conversations import lines_of, parked
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from session_middleware.stores.cursors import read
from session_middleware.stores.managed_store import SessionQuery
from session_middleware.stores.postgres import managing, reads
from session_middleware.stores.postgres.names import Names
from tests.support.conditions import until

_NOT_GRANTED = "SELECT count(*) FROM pg_locks WHERE NOT granted"


# Finished turns of other sessions, as many as make a scan of a table dear.
_OTHERS = """
    INSERT INTO {session} (session_id, created_at, updated_at)
    SELECT 'other ' || n, now() - n * interval '1 s', now() - n * interval '1 s'
    FROM generate_series(1, 5000) AS n;
    INSERT INTO {turn} (session_id, turn, state, started_at, otel_trace_id)
    SELECT 'other ' || n, 1, 'completed', now(), 'other ' || n FROM generate_series(1, 5000) AS n;
    INSERT INTO {item} SELECT 'other', n, 1, 1, '{}' FROM generate_series(1, 5000) AS n;
    INSERT INTO {park} (session_id, identity, turn, open)
    SELECT 'other ' || n, 'p', 1, false FROM generate_series(1, 5000) AS n;
    ANALYZE {session}, {turn}, {item}, {park}
"""


async def plan(psql: Any, statement: str, *arguments: Any) -> list[str]:
    """How the server would find the rows among thousands of others."""
    transaction = psql.transaction()
    await transaction.start()
    try:
        await psql.execute(Names().fill(_OTHERS))
        rows = await psql.fetch("EXPLAIN " + Names().fill(statement), *arguments)
    finally:
        await transaction.rollback()
    return [row[0].strip(" ->") for row in rows]


@pytest.mark.parametrize(
    ("order", "index"),
    [("updated", "session_by_update"), ("created", "session_by_creation"), ("id", "session_pkey")],
)
async def test_a_page_is_read_in_the_order_of_an_index(
    order: Any, index: str, memory: Any, psql: Any
) -> None:
    """Nothing is sorted to find it: neither on the first page nor behind a cursor."""
    for number in range(3):
        await memory.append_to_session(f"s{number}", [user("1")])
    page = await memory.sessions(order=order, limit=1)
    for after in (None, read(page[0].cursor)):
        query = SessionQuery(limit=2, after=after, order=order)
        statement, arguments = managing.page(query)
        steps = await plan(psql, statement, *arguments)
        limited = next(at for at, step in enumerate(steps) if step.startswith("Limit"))
        assert steps[limited + 1].startswith("Index Scan")
        assert f"using session_middleware_{index} " in steps[limited + 1]
    assert len(await memory.sessions(order=order, after=page[0])) == 2


async def test_a_page_of_a_prefix_is_found_by_the_ids(memory: Any, psql: Any) -> None:
    """The sessions of one user may be few among many newer ones."""
    for name in ("a:1", "a:2", "b:1"):
        await memory.append_to_session(name, [user("1")])
    for prefix in ("a:", "other 1"):  # the server takes the latter for many, and looks by id, too
        statement, arguments = managing.page(SessionQuery(prefix, limit=1))
        steps = await plan(psql, statement, *arguments)
        assert any("session_middleware_session_pkey " in step for step in steps)
        assert not any("session_by_update" in step for step in steps)
    assert [info.session_id for info in await memory.sessions("a:")] == ["a:2", "a:1"]


async def test_traces_and_approvals_are_found_by_an_index(memory: Any, psql: Any) -> None:
    """However many turns there are."""
    await parked(memory)
    steps = await plan(psql, managing.FIND_TRACE, "trace_1")
    assert any("session_middleware_turn_by_trace" in step for step in steps)
    statement, arguments = managing.parked_runs(managing.PendingQuery())
    steps = await plan(psql, statement, *arguments)
    assert any("session_middleware_park_waiting" in step for step in steps)


async def test_older_turns_with_a_compaction_item_are_found_by_an_index(
    memory: Any, psql: Any
) -> None:
    """However many turns there are that have none."""
    await memory.ping()
    statement = reads.COMPACTED_BEFORE.replace("p_session", "$1::text").replace("v_cut", "9")
    steps = await plan(psql, statement, "s")
    assert any("session_middleware_item_compacted" in step for step in steps)


async def test_a_turn_that_was_resumed_is_found_by_each_of_its_traces(memory: Any) -> None:
    """Also by that of the part that was parked."""
    traces = [f"{number:032x}" for number in (1, 2)]
    first = await acquire(memory, otel_trace_id=traces[0])
    parts: Any = [{"trace_id": traces[0]}]
    outcome: dict[str, Any] = {"park": ("p",), "manifest": {"parts": parts}}
    await end(memory, first, "awaiting_approval", otel_trace_id=traces[0], **outcome)
    again = await acquire(memory, resume="p", otel_trace_id=traces[1])
    manifest: Any = {"parts": [*parts, {"trace_id": traces[1]}]}
    outcome = {"settles": ("p",), "manifest": manifest}
    await end(memory, again, otel_trace_id=traces[1], **outcome)
    for trace_id in traces:
        assert (await memory.find_turn(trace_id)).turn == 1


async def test_what_a_turn_writes_while_its_session_is_deleted_goes_too(
    memory: Any, psql: Any
) -> None:
    """A delete that waits for a write deletes what was written."""
    await memory.append_to_session("s", [user("1")])
    async with psql.transaction():
        await psql.execute("UPDATE session_middleware_session SET updated_at = updated_at")
        await psql.execute(
            "INSERT INTO session_middleware_item VALUES ('s', 1, 1, 1, '{\"role\": \"user\"}')"
        )
        deleting = asyncio.ensure_future(memory.delete("s"))
        await until(lambda: psql.fetchval(_NOT_GRANTED))
    assert await deleting == 1
    assert await psql.fetchval("SELECT count(*) FROM session_middleware_item") == 0


async def test_deleting_idle_sessions_waits_for_nobody(memory: Any, psql: Any) -> None:
    """A session that is written to at that moment is not idle."""
    for name in ("busy", "idle"):
        await memory.append_to_session(name, [user("1")])
    soon = datetime.now(UTC) + timedelta(minutes=1)
    async with psql.transaction():
        await psql.execute(
            "UPDATE session_middleware_session SET updated_at = updated_at "
            "WHERE session_id = 'busy'"
        )
        assert await memory.delete_sessions(["busy", "idle"], idle_since=soon) == 1
    assert await memory.list_sessions() == ["busy"]


async def test_fences_are_raised_while_leases_are_granted(memory: Any) -> None:
    """Imports of higher and higher fences at once, and no fence is granted twice."""
    await memory.append_to_session("s", [user("1")])
    lines = await lines_of(memory)
    fences: list[int] = []

    async def lease(number: int) -> None:
        acquired = await acquire(memory, f"turn {number}")
        fences.append(acquired.lease.fence)
        await end(memory, acquired)

    async def copy(number: int) -> None:
        text = "".join(lines).replace('"session": "s"', f'"session": "copy {number}"')
        raised = text.replace('"fence": ', f'"fence": {number}000')
        await memory.import_(raised.splitlines(keepends=True))

    await asyncio.gather(*(work(number) for number in range(1, 15) for work in (lease, copy)))
    assert len(set(fences)) == len(fences)
    last = await acquire(memory, "last")
    assert last.lease.fence > max(*fences, 14_000)
