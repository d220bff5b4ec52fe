"""What makes a history one that a provider accepts: its faults, and their repair.

Part of ``session_middleware.history``, which hands on what is public. Pure functions on items,
without clock and random values: the same history is always repaired the same way, so that the
prompt a provider has cached stays the same. Items are never changed in place.

A repair is a row of steps; each takes what the one before left, notes the faults it meets and
returns the entries without them. None makes a fault that an earlier one would have to mend.

A call without an output is no fault. It may wait for an approval, and the SDK leaves such calls
out of what the model sees, with the reasoning before them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

FaultKind: TypeAlias = Literal[
    "not_an_item",
    "lost_program",
    "orphan_output",
    "misplaced_output",
    "wrong_caller",
    "dangling_reasoning",
    "repeated_call_id",
    "repeated_id",
]

CALL_OUTPUTS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
}
"""Each type of call that is answered by an item of its own, and the type of that item."""

_ID_FIELDS = {
    **dict.fromkeys(CALL_OUTPUTS, "call_id"),
    **dict.fromkeys(CALL_OUTPUTS.values(), "call_id"),
    "mcp_approval_request": "id",
    "mcp_approval_response": "approval_request_id",
}
"""The field that ties the two halves of a pair, by the type of either half."""

_ANSWERED_TYPES = {output: call for call, output in CALL_OUTPUTS.items()} | {
    "mcp_approval_response": "mcp_approval_request"
}

_INPUT_ROLES = ("user", "system", "developer")

PLACEHOLDER_ID = "__fake_id__"
"""What the SDK writes as ``id`` where a provider gave none; it may stand any number of times."""

_LONGEST_ID = 64  # characters; the Responses API accepts no longer ones

_Item: TypeAlias = dict[str, Any]
_Entry: TypeAlias = tuple[int, _Item]  # the position in the history that was given, and the item
_Key: TypeAlias = tuple[str, str | None]  # the type of a call, and its id


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """Something in a history that a provider would not accept, or the SDK would tear apart.

    Attributes:
        position: the index of the entry in the history, from 0.
        kind: what is wrong with it, and so what repair does:

            - not_an_item: no JSON object, or its type or call id is no string; it is dropped.
            - lost_program: made by a program that is not before it; it is dropped.
            - orphan_output: an output (or approval response) without a call; it is dropped.
            - misplaced_output: it stands before its call, or an input message stands between
              them; it moves up to its call.
            - wrong_caller: it names another program than its call does; it gets the call's.
            - dangling_reasoning: nothing that a model made follows it; it is dropped.
            - repeated_call_id: an earlier call of this type has the same id; all calls with it,
              and their outputs, get distinct ones.
            - repeated_id: an earlier item of this type has the same ``id``; it loses it.
    """

    position: int
    kind: FaultKind


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a repair did: how many faults of each kind it mended. False where it did nothing."""

    counts: Mapping[FaultKind, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """The counts in words that carry nothing of a content: ``orphan_output: 2``."""
        return ", ".join(f"{kind}: {count}" for kind, count in sorted(self.counts.items()))


def check(items: Iterable[object]) -> list[Fault]:
    """List the faults of a history, in the order of their positions; an empty list is good."""
    return _mended(items)[1]


def repair(items: Iterable[object]) -> tuple[list[dict[str, Any]], Receipt]:
    """Return the history without its faults, and a receipt of what was done.

    Every message stays, and so does every type this package does not know. A history without
    faults comes back as it is: a new list of the same objects.
    """
    mended, faults = _mended(items)
    return mended, Receipt(dict(Counter(fault.kind for fault in faults)))


def _mended(items: Iterable[object]) -> tuple[list[_Item], list[Fault]]:
    given = list(items)
    if _is_plainly_good(given):
        return given, []
    faults: list[Fault] = []
    entries = _only_items(given, faults)
    entries = _under_their_programs(entries, faults)
    entries = _outputs_at_their_calls(entries, faults)
    entries = _reasoning_before_its_item(entries, faults)
    entries = _distinct_call_ids(entries, faults)
    entries = _distinct_ids(entries, faults)
    return [item for _, item in entries], sorted(faults)


# --- what an item is -----------------------------------------------------------------------


def _is_item(entry: object) -> TypeGuard[_Item]:
    if not isinstance(entry, dict):
        return False
    kind = entry.get("type")
    if not isinstance(kind, str):
        return kind is None
    return kind not in _ID_FIELDS or isinstance(entry.get(_ID_FIELDS[kind]), str | None)


def _is_input_message(item: _Item) -> bool:
    return item.get("role") in _INPUT_ROLES and item.get("type") in (None, "message")


def _call_key(item: _Item) -> _Key | None:
    """What a call has in common with its output; None for other items and calls without an id.

    Only the calls of a hosted tool search have no id; those are told apart by their order.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in _ID_FIELDS:
        return None
    call = _ANSWERED_TYPES.get(kind, kind)
    call_id = item.get(_ID_FIELDS[kind])
    if isinstance(call_id, str):
        return call, call_id
    return (call, None) if call == "tool_search_call" else None


def _program(item: _Item) -> str | None:
    """The call id of the program that made this item."""
    caller: object = item.get("caller")
    if not isinstance(caller, dict) or caller.get("type") != "program":
        return None
    caller_id = caller.get("caller_id")
    return caller_id if isinstance(caller_id, str) else None


def _is_plainly_good(items: list[Any]) -> TypeGuard[list[_Item]]:
    """Whether a quick look sees that there is no fault; a no only asks for a closer look.

    It is taken before every model call, so it does little for each item, and most of it in C.
    """
    if not set(map(type, items)) <= {dict}:
        return False
    if any(_program(item) is not None for item in items if "caller" in item):
        return False
    ids = [own for item in items if (own := item.get("id", PLACEHOLDER_ID)) != PLACEHOLDER_ID]
    try:
        if len(set(ids)) < len(ids):  # a message, for one, may have the id of another
            references = [known for item in items if (known := _reference(item)) is not None]
            if len(set(references)) < len(references):
                return False
            ids = [own for item in items if (own := _own_id(item)) is not None]
        return len(set(ids)) == len(ids) and _is_in_order(items)
    except TypeError:  # a list or an object stands where a type or an id belongs
        return False


def _is_in_order(items: list[_Item]) -> bool:
    """Whether outputs follow their calls in the same stretch, and no reasoning dangles."""
    called: list[object] = []
    open_calls: dict[object, str] = {}  # the type of each in this stretch, by its id
    before = None
    for item in items:
        kind = item.get("type")
        if kind is None or kind == "message":
            if item.get("role") in _INPUT_ROLES:
                if before == "reasoning":
                    return False
                open_calls.clear()
        elif kind in _ID_FIELDS:
            call_id = item.get(_ID_FIELDS[kind])
            if kind not in _ANSWERED_TYPES:
                called.append(call_id)
                open_calls[call_id] = kind
            elif before == "reasoning" or open_calls.pop(call_id, None) != _ANSWERED_TYPES[kind]:
                return False
        elif not isinstance(kind, str):
            return False
        before = kind
    distinct = len(set(called)) == len(called) and set(map(type, called)) <= {str}
    return distinct and before != "reasoning"


def _own_id(item: _Item) -> str | None:
    """The item's ``id`` where no other item of its type may have the same.

    The SDK takes two such items for one, and the Responses API refuses them. The SDK tells
    messages apart whatever their ids, and some providers give all of them the same, so of
    those only the ids of the Responses API itself count. A reference means an item by its id,
    and the id of an approval request is what ties a pair.
    """
    item_id = item.get("id")
    if not isinstance(item_id, str) or item_id == PLACEHOLDER_ID:
        return None
    kind = item.get("type")
    if kind is None or kind == "message":
        return item_id if "role" in item and item_id.startswith("msg_") else None
    return None if kind in ("item_reference", "mcp_approval_request") else item_id


def _reference(item: _Item) -> tuple[object, str] | None:
    """What an item says that stands for a stored one; of two such the SDK keeps the later."""
    kind, item_id = item.get("type"), item.get("id")
    if kind not in (None, "item_reference") or "role" in item or item_id == PLACEHOLDER_ID:
        return None
    return (kind, item_id) if isinstance(item_id, str) else None


class _Answer(NamedTuple):
    call: int
    misplaced: bool


def _answers(entries: list[_Entry]) -> dict[int, _Answer]:
    """Which call each output answers, both by their index in ``entries``; orphans are left out.

    Ids may repeat. An output answers the first open call of its id in the newest stretch
    between input messages that has one; where no call is open yet, the first one that stays
    open after it in its own stretch.
    """
    open_calls: dict[_Key, dict[int, deque[int]]] = {}
    early: list[tuple[int, _Key, int]] = []
    answers: dict[int, _Answer] = {}
    stretch = 0
    for at, (_, item) in enumerate(entries):
        if _is_input_message(item):
            stretch += 1
            continue
        key = _call_key(item)
        if key is None:
            continue
        if item["type"] not in _ANSWERED_TYPES:
            open_calls.setdefault(key, {}).setdefault(stretch, deque()).append(at)
        elif stretches := open_calls.get(key):
            newest = next(reversed(stretches))
            answers[at] = _Answer(_take(stretches, newest), misplaced=newest != stretch)
        else:
            early.append((at, key, stretch))
    for at, key, stretch in early:
        stretches = open_calls.get(key, {})
        if stretch in stretches:
            answers[at] = _Answer(_take(stretches, stretch), misplaced=True)
    return answers


def _take(stretches: dict[int, deque[int]], stretch: int) -> int:
    calls = stretches[stretch]
    call = calls.popleft()
    if not calls:
        del stretches[stretch]
    return call


# --- the steps -----------------------------------------------------------------------------


def _only_items(items: Iterable[object], faults: list[Fault]) -> list[_Entry]:
    entries: list[_Entry] = []
    for position, item in enumerate(items):
        if _is_item(item):
            entries.append((position, item))
        else:
            faults.append(Fault(position, "not_an_item"))
    return entries


def _under_their_programs(entries: list[_Entry], faults: list[Fault]) -> list[_Entry]:
    programs: set[object] = set()
    kept: list[_Entry] = []
    for entry in entries:
        position, item = entry
        kind = item.get("type")
        program = _program(item)
        if program is not None and program not in programs and kind not in (None, "message"):
            faults.append(Fault(position, "lost_program"))
            continue
        if kind == "program" and isinstance(item.get("call_id"), str):
            programs.add(item["call_id"])
        kept.append(entry)
    return kept


def _outputs_at_their_calls(entries: list[_Entry], faults: list[Fault]) -> list[_Entry]:
    answers = _answers(entries)
    staying: list[tuple[int, _Entry]] = []
    moving: dict[int, list[_Entry]] = {}  # by the index of their call
    for at, entry in enumerate(entries):
        position, item = entry
        if item.get("type") not in _ANSWERED_TYPES:
            staying.append((at, entry))
            continue
        answer = answers.get(at)
        if answer is None:
            faults.append(Fault(position, "orphan_output"))
            continue
        call = entries[answer.call][1]
        if _program(item) != _program(call):
            faults.append(Fault(position, "wrong_caller"))
            entry = position, _with_caller_of(call, item)
        if answer.misplaced:
            faults.append(Fault(position, "misplaced_output"))
            moving.setdefault(answer.call, []).append(entry)
        else:
            staying.append((at, entry))
    if not moving:
        return [entry for _, entry in staying]
    return list(_after_parallel_calls(staying, moving))


def _after_parallel_calls(
    staying: list[tuple[int, _Entry]], moving: dict[int, list[_Entry]]
) -> Iterator[_Entry]:
    """Put outputs behind the row of calls that theirs is in: calls made at once stay together."""
    due: list[_Entry] = []
    for at, entry in staying:
        if due and entry[1].get("type") not in CALL_OUTPUTS:
            yield from sorted(due, key=lambda entry: entry[0])
            due = []
        yield entry
        due += moving.get(at, [])
    yield from sorted(due, key=lambda entry: entry[0])


def _reasoning_before_its_item(entries: list[_Entry], faults: list[Fault]) -> list[_Entry]:
    kept: list[_Entry] = []
    followed = False
    references: set[object] = set()
    for entry in reversed(entries):
        position, item = entry
        kind = item.get("type")
        reference = _reference(item)
        if reference is not None and reference in references:
            pass  # the model will not see this one
        elif kind != "reasoning":
            references.add(reference)
            followed = kind not in _ANSWERED_TYPES and not _is_input_message(item)
        elif not followed:
            faults.append(Fault(position, "dangling_reasoning"))
            continue
        kept.append(entry)
    kept.reverse()
    return kept


def _distinct_call_ids(entries: list[_Entry], faults: list[Fault]) -> list[_Entry]:
    """Give every call of a repeated id one of its own, and its output with it.

    The first call of the id is not spared: the provider will use that id again in the run to
    come, and the SDK would take that call for this one.
    """
    calls = Counter[_Key]()
    for position, item in entries:
        if item.get("type") in _ANSWERED_TYPES:
            continue
        key = _call_key(item)
        if key is None or key[1] is None:
            continue
        calls[key] += 1
        if calls[key] > 1:
            faults.append(Fault(position, "repeated_call_id"))
    if all(count == 1 for count in calls.values()):
        return entries
    return _renamed(entries, {key for key, count in calls.items() if count > 1})


def _renamed(entries: list[_Entry], repeated: set[_Key]) -> list[_Entry]:
    answers = _answers(entries)
    fresh = _FreshIds(entries)
    current: dict[_Key, str] = {}  # what the newest call of a repeated id is called now
    renamed: list[_Entry] = []
    for at, (position, item) in enumerate(entries):
        kind = item.get("type")
        key = _call_key(item)
        if at in answers:
            call = renamed[answers[at].call][1]
            if key in repeated:
                item = item | {_ID_FIELDS[item["type"]]: call[_ID_FIELDS[call["type"]]]}
            if _program(item) != _program(call):
                item = _with_caller_of(call, item)
        else:
            if key is not None and key in repeated:
                current[key] = fresh.like(item[_ID_FIELDS[key[0]]])
                item = item | {_ID_FIELDS[key[0]]: current[key]}
            program = current.get(("program", _program(item)))
            if program is not None:
                item = item | {"caller": {"type": "program", "caller_id": program}}
            request = item.get("approval_request_id") if kind == "mcp_call" else None
            if isinstance(request, str) and ("mcp_approval_request", request) in current:
                item = item | {"approval_request_id": current["mcp_approval_request", request]}
        renamed.append((position, item))
    return renamed


def _with_caller_of(call: _Item, output: _Item) -> _Item:
    output = {name: value for name, value in output.items() if name != "caller"}
    return output | {"caller": call["caller"]} if "caller" in call else output


def _distinct_ids(entries: list[_Entry], faults: list[Fault]) -> list[_Entry]:
    seen: set[tuple[object, str]] = set()
    distinct: list[_Entry] = []
    for entry in entries:
        position, item = entry
        item_id = _own_id(item)
        if item_id is not None:
            own = item.get("type") or "message", item_id
            if own in seen:
                faults.append(Fault(position, "repeated_id"))
                entry = position, {name: item[name] for name in item if name != "id"}
            seen.add(own)
        distinct.append(entry)
    return distinct


class _FreshIds:
    """Call ids that a history does not have yet: an old one with a number."""

    def __init__(self, entries: list[_Entry]) -> None:
        values = (item.get(name) for _, item in entries for name in ("id", "call_id"))
        self._taken = {value for value in values if isinstance(value, str)}
        self._numbers = Counter[str]()

    def like(self, old: str) -> str:
        stem = old
        if len(old) > _LONGEST_ID - 8:
            name = hashlib.sha256(old.encode(errors="surrogatepass")).hexdigest()[:16]
            stem = f"{old[:32]}_{name}"
        while True:
            self._numbers[old] += 1
            new = f"{stem}_{self._numbers[old]}"
            if new not in self._taken:
                self._taken.add(new)
                return new
