"""Large histories: no event loop is stalled by them, and small loads pass them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from session_middleware.errors import InvalidItem
from session_middleware.stores.items import decode_items, encode_in_steps, encode_items
from session_middleware.stores.sqlite import SQLiteSessionMemory, decoding
from session_middleware.stores.sqlite.group import Steps
from tests.support.conditions import until
from tests.support.requests import user

LARGE = 50_000


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[SQLiteSessionMemory]:
    path = tmp_path / "chat.db"
    async with SQLiteSessionMemory(path, synchronous="NORMAL", operation_timeout=60) as made:
        yield made


def large(number: int = LARGE) -> list[dict[str, Any]]:
    """A history of questions and answers."""
    return [
        {"role": "user", "content": f"What is {at}?"}
        if at % 2 == 0
        else {"role": "assistant", "content": [{"type": "output_text", "text": f"It is {at}."}]}
        for at in range(number)
    ]


class Turns:
    """How much processor time of the loop's thread passed from one turn of the loop to the next.

    Processor time, as a machine that is busy with something else stalls every loop.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.total = 0.0
        self.count = 0

    @property
    def stalled(self) -> bool:
        """Whether a step took longer than 50 ms, or, on a slow machine, a tenth of the work."""
        return self.longest > max(0.05, self.total / 10)

    async def watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            self.total += now - before
            self.count += 1
            before = now


async def watched(work: Awaitable[Any]) -> tuple[Any, Turns]:
    """The result of the work, and what the loop did meanwhile."""
    turns = Turns()
    watching = asyncio.ensure_future(turns.watch())
    gc.collect()
    gc.freeze()  # the garbage collector would look at everything that the whole test run holds
    result = await work
    watching.cancel()
    return result, turns


async def test_a_large_history_is_saved_and_loaded_without_a_stall(memory, monkeypatch):
    """Other tasks of the loop get their turn all the time while 50,000 items come and go.

    Nor does another thread keep the interpreter for longer than a piece takes.
    """
    history, pieces, real = large(), [0], decoding.decode_joined

    def decode(text: bytes | None, count: int) -> Any:
        pieces.append(len(text or b""))
        return real(text, count)

    monkeypatch.setattr(decoding, "decode_joined", decode)
    _, turns = await watched(memory.save_session("a", history))
    assert not turns.stalled
    loaded, turns = await watched(memory.load_session("a"))
    assert loaded == history
    assert not turns.stalled
    by_turns, turns = await watched(memory.load_turns("a"))
    assert [item for turn in by_turns.turns for item in turn.items] == history
    assert not turns.stalled
    _, turns = await watched(memory.append_to_session("b", history))
    assert not turns.stalled
    assert len(pieces) > 20
    assert max(pieces) <= decoding.PIECE


async def test_small_loads_pass_large_ones(memory):
    """A small history that is asked for behind five large ones is there before any of them."""
    await memory.append_to_session("large", large(20_000))
    await memory.append_to_session("small", [user("1")])
    loads = [asyncio.ensure_future(memory.load_session("large")) for _ in range(5)]
    await asyncio.sleep(0)
    assert await memory.load_session("small") == [user("1")]
    assert not any(load.done() for load in loads)
    assert {len(load) for load in await asyncio.gather(*loads)} == {20_000}


async def test_a_load_that_was_cancelled_is_decoded_no_further(memory, monkeypatch):
    """Nobody pays for pieces that nobody waits for."""
    pieces = []
    cancelled = threading.Event()
    real = decoding.decode_joined

    def count(text: bytes, number: int) -> Any:
        pieces.append(number)
        cancelled.wait(30)
        return real(text, number)

    await memory.append_to_session("large", large(20_000))
    monkeypatch.setattr(decoding, "decode_joined", count)
    loading = asyncio.ensure_future(memory.load_session("large"))
    await until(lambda: bool(pieces))
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    cancelled.set()
    assert await memory.load_session("nothing") == []
    assert sum(pieces) < 20_000


def finished(steps: Steps[Any]) -> tuple[Any, int]:
    """What these steps come to, and how many there were."""
    for count in range(1_000_000):
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count + 1
    raise AssertionError("there is no end of it")


@pytest.mark.parametrize("piece", [1, 40, 1000, 10**9])
@pytest.mark.parametrize("number", [0, 1, 2, 37])
def test_pieces_are_cut_between_items(monkeypatch, piece, number):
    """Whatever their size, every item is decoded once and in order; also of many bytes a letter."""
    monkeypatch.setattr(decoding, "PIECE", piece)
    items = [{**item, "é": "日本" * (at % 5)} for at, item in enumerate(large(number))]
    texts = encode_items(items)
    data = [text.encode() for text in texts]
    lengths = str([len(text) for text in data])
    joined = b",".join(data) or None
    assert finished(decoding.decode_text(joined, number, lengths))[0] == items
    each, steps = finished(decoding.decode_each(texts))
    assert each == items
    assert steps == (1 if piece > 10**6 else max(1, steps))


def test_an_item_that_is_corrupt_is_found_in_its_piece(monkeypatch):
    """A text with a corrupt item comes to nothing, and each item for itself leaves it out."""
    monkeypatch.setattr(decoding, "PIECE", 30)
    texts = [*encode_items(large(9)), "{", *encode_items(large(3))]
    data = [text.encode() for text in texts]
    lengths = str([len(text) for text in data])
    assert finished(decoding.decode_text(b",".join(data), len(data), lengths))[0] is None
    each, _ = finished(decoding.decode_each(texts))
    assert each == decode_items(texts)[0]


async def test_items_are_encoded_alike_in_steps_and_at_once():
    """The same texts, and a fault is named by the same position."""
    items = large(3000)
    assert await encode_in_steps(items) == encode_items(items)
    for wrong in ([*items, object()], "text", [*items[:2], {"a": float("nan")}]):
        with pytest.raises(InvalidItem) as expected:
            encode_items(wrong)
        with pytest.raises(InvalidItem) as found:
            await encode_in_steps(wrong)
        assert str(found.value) == str(expected.value)
