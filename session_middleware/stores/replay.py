"""What a model call was given, made again from stored turns and a record's manifest. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from session_middleware.errors import InvalidOption
from session_middleware.pairs import without_open_calls
from session_middleware.repair import repair
from session_middleware.stores.items import decode_items
from session_middleware.stores.managed_store import RunCopy, TurnCopy
from session_middleware.stores.records import Item, ManifestRun, TurnRecord


def wanted_turns(
    record: TurnRecord | None, session_id: str, turn: int, run: int
) -> tuple[int, int]:
    """The first and the last turn whose items the run was given, its own included.

    Raises:
        InvalidOption: there is no such turn, or nothing is known of the run.
    """
    if record is None:
        raise InvalidOption(f"session {session_id!r} has no turn {turn}")
    ranges = _root(record, run)[1].get("turns", [])
    return min([first for first, _ in ranges], default=turn), turn


def given(copies: Sequence[TurnCopy], record: TurnRecord | None, run: int, call: int) -> list[Item]:
    """The items of that model call.

    Raises:
        InvalidOption: nothing is known of the call, or its items were removed.
    """
    assert record is not None  # noqa: S101 - wanted_turns has looked
    runs = (record.manifest or {}).get("runs", {})
    counts = runs.get(str(run), {}).get("calls", [])
    if call > len(counts):
        raise InvalidOption(
            f"run {run} of turn {record.turn} made {len(counts)} model calls, got call {call}"
        )
    root, seen = _root(record, run)
    number = record.turn
    before = [copy for copy in copies if copy.record.turn < number]
    own_runs = next((copy.runs for copy in copies if copy.record.turn == number), ())
    made = _items([each for each in own_runs if root <= each.run <= run])
    loaded = _loaded(before, seen)
    if _is_in(number, seen):
        hidden = seen.get("hidden", [])
        ended = [each for each in own_runs if each.run < root and each.run not in hidden]
        earlier = _items(ended)
        # A run that continues what an earlier attempt left has loaded its own first items.
        count = seen.get("growing", {}).get(str(number), len(earlier))
        own = max(0, count - len(earlier))
        loaded += [*earlier[:count], *made[:own]]
        made = made[own:]
    history, _ = repair(loaded)
    if len(history) != seen.get("items", len(history)):
        made = []  # what it was given is not all there
    history = without_open_calls(history)
    rest = counts[call - 1] - len(history)
    if not 0 <= rest <= len(made):
        raise InvalidOption(
            f"turn {number} has no longer all items that this call was given: some were "
            "removed, or replaced by a retry"
        )
    return repair([*history, *made[:rest]])[0]


def _root(record: TurnRecord, run: int) -> tuple[int, ManifestRun]:
    """The run itself, or the one before it that was parked and that it resumes: what it loaded."""
    runs: Mapping[str, ManifestRun] = (record.manifest or {}).get("runs", {})
    if str(run) not in runs:
        raise InvalidOption(
            f"turn {record.turn} of session {record.session_id!r} has no run {run} whose model "
            "calls are known"
        )
    for number in range(run, 0, -1):
        seen = runs.get(str(number), {})
        if "turns" in seen:
            return number, seen
    return run, runs[str(run)]


def _loaded(copies: Sequence[TurnCopy], seen: ManifestRun) -> list[Item]:
    """What the run loaded of earlier turns, as far as they had got by then."""
    items: list[Item] = []
    for copy in copies:
        number = copy.record.turn
        if _is_in(number, seen):
            found = _items(copy.runs)
            items += found[: seen.get("growing", {}).get(str(number), len(found))]
    return items


def _is_in(turn: int, seen: ManifestRun) -> bool:
    return any(first <= turn <= last for first, last in seen.get("turns", []))


def _items(runs: Sequence[RunCopy]) -> list[Item]:
    items, _ = decode_items([text for run in runs for text in run.texts])
    return [item for item in items if item is not None]
