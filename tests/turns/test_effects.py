"""What a tool did is not done twice, wherever its worker was killed."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SQLiteSessionMemory
from session_middleware.effects import UNKNOWN_TEXT
from session_middleware.history import check
from tests.support.conditions import until
from tests.support.effects import NAMES, Job, Workers, effects_in
from tests.support.programs import Programs
from tests.support.stopping import stop

KINDS = list(itertools.product((1, 2, 3), ("run", "run_streamed"), (False, True), (False, True)))
"""Tools at once, method, resumed approval, a model that repeats what is unknown."""


@pytest.fixture(scope="module")
def workers(programs: Programs) -> Iterator[Workers]:
    made = Workers(programs)
    yield made
    made.close()


def job_of(folder: Path, kind: tuple[int, str, bool, bool]) -> Job:
    tools, method, approves, repeats = kind
    return Job(str(folder), tools, method, approves, repeats)


def killed_and_served_again(workers: Workers, job: Job, **death: Any) -> tuple[int, int]:
    """One worker dies on the way; others serve the same request until it is done.

    Returns how many effects happened more than once, and how many calls were told as unknown.
    """
    folder = Path(job.folder)
    if job.approves:  # parked by a worker before
        assert workers.serve(job) == 0
    dying = Job(**{**vars(job), **death})
    assert workers.serve(dying) in (-9, 0)
    assert workers.serve(job) == 0
    if job.approves:
        assert workers.serve(job) == 0  # whatever waited anew is approved as well
    happened = Counter(effect["tool"] for effect in effects_in(folder))
    keys = {name: {e["key"] for e in effects_in(folder) if e["tool"] == name} for name in NAMES}
    history = asyncio.run(stored(folder))
    told = str(history).count(UNKNOWN_TEXT)
    for name in NAMES[: job.tools]:
        if job.repeats:  # a provider that honours the key has done it exactly once
            assert len(keys[name]) == 1, (name, death, keys)
            assert happened[name] <= 2
        else:
            assert happened[name] == 1 or (happened[name] == 0 and told), (name, death, happened)
    assert check(history) == []
    assert history[-1]["role"] == "assistant"
    return sum(count > 1 for count in happened.values()), told


def killed_without_a_memory(workers: Workers, job: Job, **death: Any) -> int:
    """The same with the SDK's own session; returns how many effects happened more than once."""
    assert workers.serve(Job(**{**vars(job), **death, "plain": True})) in (-9, 0)
    assert workers.serve(Job(**{**vars(job), "plain": True})) == 0
    happened = Counter(effect["tool"] for effect in effects_in(Path(job.folder)))
    return sum(count > 1 for count in happened.values())


async def stored(folder: Path) -> list[Any]:
    async with SQLiteSessionMemory(folder / "chat.db") as memory:
        return list(await memory.load_session("s"))


def steps_of(workers: Workers, folder: Path, kind: tuple[int, str, bool, bool]) -> int:
    """How many steps a worker takes that nobody kills."""
    folder.mkdir()
    job = job_of(folder, kind)
    for _ in range(2 if job.approves else 1):
        assert workers.serve(job) == 0
    assert len(effects_in(folder)) == job.tools
    return int((folder / "steps").read_text())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [(1, "run", False, True), (2, "run_streamed", True, False)])
def test_killed_inside_a_tool(
    workers: Workers, tmp_path: Path, kind: tuple[int, str, bool, bool], when: str
) -> None:
    """Right before and right after its effect."""
    for name in NAMES[: kind[0]]:
        folder = tmp_path / name
        folder.mkdir()
        killed_and_served_again(workers, job_of(folder, kind), dies_in=(name, when))


def test_killed_at_some_awaits(workers: Workers, tmp_path: Path) -> None:
    """Sixteen awaits of one conversation with two tools at once."""
    _kill_at_awaits(workers, tmp_path, (2, "run", False, True), 16)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_sdks_own_session_does_it_again(workers: Workers, tmp_path: Path, when: str) -> None:
    """The harness sees what the journal is for: after the effect, the same request repeats it."""
    job = Job(str(tmp_path), tools=1)
    again = killed_without_a_memory(workers, job, dies_in=("mail", when))
    assert again == (1 if when == "after" else 0)


@pytest.fixture(scope="module")
def others(programs: Programs) -> Iterator[Workers]:
    """Workers beside one that is stopped."""
    made = Workers(programs)
    yield made
    made.close()


@pytest.mark.parametrize("when", ["answer", "before", "after"])
@pytest.mark.parametrize("method", ["run", "run_streamed"])
def test_stopped_past_its_lease(
    workers: Workers, others: Workers, tmp_path: Path, method: str, when: str
) -> None:
    """Another worker serves the request; the stopped one writes nothing, and begins no tool."""
    job = Job(str(tmp_path), tools=1, method=method)
    workers.start(replace(job, dies_in=("mail", when), how="stop"))
    here = tmp_path / "here"
    asyncio.run(until(lambda: here.exists() and here.read_text()))
    process = int(here.read_text())
    stop(process, tmp_path / "chat.db")
    try:
        assert others.serve(job) == 0
        history = asyncio.run(stored(tmp_path))
    finally:
        (tmp_path / "woken").touch()
        os.kill(process, signal.SIGCONT)
    assert workers.status() == 0
    assert (tmp_path / "failed").read_text().startswith("TurnLost")
    assert asyncio.run(stored(tmp_path)) == history
    told = str(history).count(UNKNOWN_TEXT)
    assert told == (0 if when == "answer" else 1)
    assert len(effects_in(tmp_path)) <= 1
    if when == "answer":
        assert len(effects_in(tmp_path)) == 1
        assert not (tmp_path / f"mail began {process}").exists()
    if when == "after":
        assert len(effects_in(tmp_path)) == 1


@pytest.mark.parametrize("on_unavailable", ["raise", "forget"])
@pytest.mark.parametrize("method", ["run", "run_streamed"])
def test_no_tool_begins_whose_call_cannot_be_journalled(
    workers: Workers, tmp_path: Path, method: str, on_unavailable: Any
) -> None:
    """The disk is full when the model has answered; once there is room, it happens once."""
    job = Job(str(tmp_path), tools=2, method=method, on_unavailable=on_unavailable)
    assert workers.serve(replace(job, dies_in=("mail", "answer"), how="full")) == 0
    assert (tmp_path / "failed").read_text().startswith("MemoryUnavailable")
    assert list(tmp_path.glob("* began *")) == []
    assert workers.serve(job) == 0
    assert Counter(e["tool"] for e in effects_in(tmp_path)) == {"mail": 1, "charge": 1}
    assert UNKNOWN_TEXT not in str(asyncio.run(stored(tmp_path)))


@pytest.mark.parametrize("method", ["run", "run_streamed"])
@pytest.mark.parametrize(
    ("how", "place"),
    [("cancel", ("mail", "before")), ("cancel", ("charge", "after")), ("fail", None)],
)
def test_cancelled_or_failed(
    workers: Workers, tmp_path: Path, method: str, how: str, place: Any
) -> None:
    """The worker lives, its request does not; another one serves it to its end."""
    job = Job(str(tmp_path), tools=2, method=method)
    assert workers.serve(replace(job, dies_in=place, how=how)) == 0
    assert (tmp_path / "failed").exists()
    assert workers.serve(job) == 0
    history = asyncio.run(stored(tmp_path))
    told = str(history).count(UNKNOWN_TEXT)
    happened = Counter(effect["tool"] for effect in effects_in(tmp_path))
    assert all(happened[name] == 1 or (happened[name] == 0 and told) for name in NAMES[:2])
    assert told == 0 or how == "cancel"
    assert check(history) == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_killed_at_awaits_of_every_kind_of_conversation(
    workers: Workers, tmp_path: Path, kind: tuple[int, str, bool, bool]
) -> None:
    """Nine awaits of any of its tasks for each of 24 kinds."""
    _kill_at_awaits(workers, tmp_path, kind, 9)


def _kill_at_awaits(
    workers: Workers, tmp_path: Path, kind: tuple[int, str, bool, bool], sample: int
) -> None:
    """Prints what became of it, beside the SDK's own session where that can do the same."""
    steps = steps_of(workers, tmp_path / "undisturbed", kind)
    every = max(1, steps // sample)
    sums: Counter[str] = Counter()
    for step in range(1, steps + 1, every):
        folder = tmp_path / str(step)
        folder.mkdir()
        more, told = killed_and_served_again(workers, job_of(folder, kind), dies_at=step)
        sums.update(kills=1, again=more, unknown=told)
    tools, method, approves, repeats = kind
    if method == "run" and not approves and not repeats:
        for name in NAMES[:tools]:
            folder = tmp_path / f"plain {name}"
            folder.mkdir()
            job = job_of(folder, kind)
            sums.update(again_plain=killed_without_a_memory(workers, job, dies_in=(name, "after")))
    print(f"{kind}: {dict(sums)}")
