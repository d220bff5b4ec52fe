"""What each operation costs on the wire, and what becomes of it when the wire is cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from session_middleware.conformance.samples import assistant, call, output, user
from session_middleware.conformance.steps import acquire, end, now
from session_middleware.history import last_turns
from session_middleware.stores.items import encode_items
from session_middleware.stores.records import (
    KeptState,
    PendingCall,
    ReadRequest,
    RunItems,
    TurnEnd,
)
from session_middleware.stores.redis import RedisSessionMemory
from tests.support.proxy import Fault, Proxy, proxy_to
from tests.support.valkey import own_prefix


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with proxy_to(urlsplit(redis_url).port or 6379) as proxy:
        yield proxy


def on(proxy: Proxy, **options: Any) -> RedisSessionMemory:
    """A memory behind the proxy, with one connection, which is there already where it is pinged."""
    return RedisSessionMemory(
        f"redis://127.0.0.1:{proxy.port}/0", key_prefix=own_prefix(), max_connections=1, **options
    )


def run_items(run: int, position: int, *items: dict[str, Any]) -> RunItems:
    return RunItems(run, position, encode_items(items))


async def test_each_operation_is_one_exchange(proxy: Proxy) -> None:
    """Load, append, acquire, end, and all that is read: one request and one answer each."""
    async with on(proxy) as memory:
        await memory.append_to_session("s", [user("0"), assistant("0")])
        await end(memory, await acquire(memory, read=ReadRequest()))
        acquired: Any = None

        async def acquires() -> None:
            nonlocal acquired
            acquired = await acquire(
                memory, read=ReadRequest(last_turns(5)), input=run_items(1, 0, user("1"))
            )

        # The first use of a script on a server sends its text in a second exchange.
        await memory.load_turns("s", newest=last_turns(2))
        await memory.load_items("s", limit=3)
        await memory.turns("s")
        await memory.clear_session("other")
        await memory.release("other")
        operations: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
            ("acquire", acquires),
            ("append", lambda: memory.append_items(acquired.lease, 1, 1, [call("f")])),
            (
                "end",
                lambda: memory.write_turn(
                    acquired.lease,
                    [run_items(1, 2, output("f"), assistant("1"))],
                    TurnEnd("completed", now(), runs={1: "completed"}),
                ),
            ),
            ("load_session", lambda: memory.load_session("s")),
            ("load_turns", lambda: memory.load_turns("s", newest=last_turns(2))),
            ("load_items", lambda: memory.load_items("s", limit=3)),
            ("append_to_session", lambda: memory.append_to_session("s", [user("2")])),
            ("turns", lambda: memory.turns("s", limit=2)),
            ("exists", lambda: memory.session_exists("s")),
            ("save_session", lambda: memory.save_session("s", [user("3")])),
            ("release", lambda: memory.release("s")),
            ("clear_session", lambda: memory.clear_session("s")),
        ]
        counted = {}
        for name, operation in operations:
            before = proxy.requests
            await operation()
            counted[name] = proxy.requests - before
        assert counted == dict.fromkeys(counted, 1)


async def test_a_whole_turn_is_two_exchanges(proxy: Proxy) -> None:
    """Acquire with the input and a short history, and end with the answer."""
    async with on(proxy) as memory:
        for turn in range(3):
            before = proxy.requests
            acquired = await acquire(
                memory, read=ReadRequest(), input=run_items(1, 0, user(f"{turn}"))
            )
            assert acquired.loaded is not None
            assert len(acquired.loaded.turns) == turn
            await memory.write_turn(
                acquired.lease,
                [run_items(1, 1, assistant(f"{turn}"))],
                TurnEnd("completed", now(), runs={1: "completed"}),
            )
        assert proxy.requests - before == 2
        assert len(await memory.load_session("s")) == 6


async def story(memory: RedisSessionMemory) -> None:
    """One of each write; what it leaves is in ``left``."""
    first = await acquire(memory, "s", idempotency_key="k", input=run_items(1, 0, user("1")))
    await memory.append_items(first.lease, 1, 1, [call("f")])
    await memory.append_items(first.lease, 1, 2, [output("f")])
    await end(memory, first, "failed", runs={1: "failed"})
    again = await acquire(memory, "s", idempotency_key="k")
    assert again.carried[0].item_count == 3
    assert await memory.retry_run(again.lease, 1, 2) == 3
    await memory.write_turn(
        again.lease,
        [run_items(2, 3, assistant("1"))],
        TurnEnd("awaiting_approval", now(), runs={2: "awaiting_approval"}, park=("p",)),
    )
    resumed = await acquire(memory, "s", resume="p")
    assert resumed.resumed
    await memory.append_items(resumed.lease, 3, 0, [assistant("2")])
    await end(memory, resumed, runs={3: "completed"})
    await memory.append_to_session("s", [user("x"), user("pop")])
    await memory.append_to_session("t", [user("old")])
    await memory.save_session("t", [user("saved")])
    await memory.append_to_session("t", [user("more")])
    await memory.append_to_session("u", [user("gone")])
    await memory.clear_session("u")
    assert await memory.pop_item("s") == user("pop")
    await acquire(memory, "s")
    assert await memory.release("s") is not None
    await end(memory, await acquire(memory, "s"))


async def managing_story(memory: RedisSessionMemory) -> None:
    """One of each write that manages conversations."""
    await memory.append_to_session("s", [user("1"), assistant("1")])
    await memory.set_title("s", "One")
    await memory.set_metadata("s", {"a": 1})
    parked = await acquire(memory, "s")
    await memory.append_items(parked.lease, 1, 0, [call("f")])
    kept = KeptState("p", (PendingCall("call_f", "f"),), "{}")
    await end(memory, parked, "awaiting_approval", park=("p",), states=(kept,))
    await memory.decide("s", 2, "call_f", approve=False)
    lines = [line async for line in memory.export("s")]
    assert [record.turn for record in await memory.undo("s")] == [2]
    assert await memory.import_(lines, replace=True) == 1
    (waiting,) = await memory.pending()
    assert waiting.calls[0].approved is False
    await memory.fork("s", "t", at_turn=1)
    await memory.fork("s", "gone")
    assert await memory.delete("gone") == 1


async def left(memory: RedisSessionMemory) -> dict[str, Any]:
    """All that the story leaves, but for moments and fences."""
    return {
        session_id: (
            await memory.load_session(session_id),
            [(r.turn, r.state, r.item_count, r.runs) for r in await memory.turns(session_id)],
        )
        for session_id in await memory.list_sessions()
    }


@pytest.mark.parametrize("told", [story, managing_story])
@pytest.mark.parametrize("what", ["request", "answer"])
async def test_a_cut_connection_changes_nothing(
    proxy: Proxy, what: Fault, told: Callable[[RedisSessionMemory], Awaitable[None]]
) -> None:
    """Wherever it is cut, before or after the server did its work: done once, and told as done."""
    for _ in range(2):  # the first one sends the texts of the scripts
        async with on(proxy) as memory:
            await memory.ping()
            begun = proxy.requests
            await told(memory)
            requests = proxy.requests - begun
            expected = await left(memory)
    assert requests > 20
    for number in range(1, requests + 1):
        async with on(proxy, operation_timeout=30) as memory:
            await memory.ping()
            proxy.lose(what, number)
            await told(memory)
            assert not proxy.is_armed
            assert await left(memory) == expected, f"request {number}"
