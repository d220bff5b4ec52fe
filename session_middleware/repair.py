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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeGuard

from session_middleware.pairs import (
    ANSWERED_TYPES,
    CALL_OUTPUTS,
    ID_FIELDS,
    INPUT_ROLES,
    Entry,
    Item,
    Key,
    call_key,
    calls_answered,
    is_input_message,
    program_of,
)

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

PLACEHOLDER_ID = "__fake_id__"
"""What the SDK writes as ``id`` where a provider gave none; it may stand any number of times."""

_LONGEST_ID = 64  # characters; the Responses API accepts no longer ones


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
    return mended(items)[1]


def repair(items: Iterable[object]) -> tuple[list[dict[str, Any]], Receipt]:
    """Return the history without its faults, and a receipt of what was done.

    Every message stays, and so does every type this package does not know. A history without
    faults comes back as it is: a new list of the same objects.
    """
    entries, faults = mended(items)
    return [item for _, item in entries], receipt_of(faults)


def receipt_of(faults: Sequence[Fault]) -> Receipt:
    """What a repair of these faults does."""
    if not faults:
        return Receipt({})
    return Receipt(dict(Counter(fault.kind for fault in faults)))


def mended(items: Iterable[object]) -> tuple[list[Entry], list[Fault]]:
    """The history without its faults, each item with the position that it had, and the faults."""
    given = list(items)
    if _is_plainly_good(given):
        return list(enumerate(given)), []
    faults: list[Fault] = []
    entries = _only_items(given, faults)
    entries = _under_their_programs(entries, faults)
    entries = _outputs_at_their_calls(entries, faults)
    entries = _reasoning_before_its_item(entries, faults)
    entries = _distinct_call_ids(entries, faults)
    entries = _distinct_ids(entries, faults)
    return entries, sorted(faults)


# --- what an item is -----------------------------------------------------------------------


def _is_item(entry: object) -> TypeGuard[Item]:
    if not isinstance(entry, dict):
        return False
    kind = entry.get("type")
    if not isinstance(kind, str):
        return kind is None
    return kind not in ID_FIELDS or isinstance(entry.get(ID_FIELDS[kind]), str | None)


def _is_plainly_good(items: list[Any]) -> TypeGuard[list[Item]]:
    """Whether a quick look sees that there is no fault; a no only asks for a closer look.

    It is taken before every model call, so it does little for each item, and most of it in C.
    """
    if not set(map(type, items)) <= {dict}:
        return False
    if any(program_of(item) is not None for item in items if "caller" in item):
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


def _is_in_order(items: list[Item]) -> bool:
    """Whether outputs follow their calls in the same stretch, and no reasoning dangles."""
    called: list[object] = []
    open_calls: dict[object, str] = {}  # the type of each in this stretch, by its id
    before = None
    for item in items:
        kind = item.get("type")
        if kind is None or kind == "message":
            if item.get("role") in INPUT_ROLES:
                if before == "reasoning":
                    return False
                open_calls.clear()
        elif kind in ID_FIELDS:
            call_id = item.get(ID_FIELDS[kind])
            if kind not in ANSWERED_TYPES:
                called.append(call_id)
                open_calls[call_id] = kind
            elif before == "reasoning" or open_calls.pop(call_id, None) != ANSWERED_TYPES[kind]:
                return False
        elif not isinstance(kind, str):
            return False
        before = kind
    distinct = len(set(called)) == len(called) and set(map(type, called)) <= {str}
    return distinct and before != "reasoning"


def _own_id(item: Item) -> str | None:
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


def _reference(item: Item) -> tuple[object, str] | None:
    """What an item says that stands for a stored one; of two such the SDK keeps the later."""
    kind, item_id = item.get("type"), item.get("id")
    if kind not in (None, "item_reference") or "role" in item or item_id == PLACEHOLDER_ID:
        return None
    return (kind, item_id) if isinstance(item_id, str) else None


# --- the steps -----------------------------------------------------------------------------


def _only_items(items: Iterable[object], faults: list[Fault]) -> list[Entry]:
    entries: list[Entry] = []
    for position, item in enumerate(items):
        if _is_item(item):
            entries.append((position, item))
        else:
            faults.append(Fault(position, "not_an_item"))
    return entries


def _under_their_programs(entries: list[Entry], faults: list[Fault]) -> list[Entry]:
    programs: set[object] = set()
    kept: list[Entry] = []
    for entry in entries:
        position, item = entry
        kind = item.get("type")
        program = program_of(item)
        if program is not None and program not in programs and kind not in (None, "message"):
            faults.append(Fault(position, "lost_program"))
            continue
        if kind == "program" and isinstance(item.get("call_id"), str):
            programs.add(item["call_id"])
        kept.append(entry)
    return kept


def _outputs_at_their_calls(entries: list[Entry], faults: list[Fault]) -> list[Entry]:
    answers = calls_answered(entries)
    staying: list[tuple[int, Entry]] = []
    moving: dict[int, list[Entry]] = {}  # by the index of their call
    for at, entry in enumerate(entries):
        position, item = entry
        if item.get("type") not in ANSWERED_TYPES:
            staying.append((at, entry))
            continue
        answer = answers.get(at)
        if answer is None:
            faults.append(Fault(position, "orphan_output"))
            continue
        call = entries[answer.call][1]
        if program_of(item) != program_of(call):
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
    staying: list[tuple[int, Entry]], moving: dict[int, list[Entry]]
) -> Iterator[Entry]:
    """Put outputs behind the row of calls that theirs is in: calls made at once stay together."""
    due: list[Entry] = []
    for at, entry in staying:
        if due and entry[1].get("type") not in CALL_OUTPUTS:
            yield from sorted(due, key=lambda entry: entry[0])
            due = []
        yield entry
        due += moving.get(at, [])
    yield from sorted(due, key=lambda entry: entry[0])


def _reasoning_before_its_item(entries: list[Entry], faults: list[Fault]) -> list[Entry]:
    kept: list[Entry] = []
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
            followed = kind not in ANSWERED_TYPES and not is_input_message(item)
        elif not followed:
            faults.append(Fault(position, "dangling_reasoning"))
            continue
        kept.append(entry)
    kept.reverse()
    return kept


def _distinct_call_ids(entries: list[Entry], faults: list[Fault]) -> list[Entry]:
    """Give every call of a repeated id one of its own, and its output with it.

    The first call of the id is not spared: the provider will use that id again in the run to
    come, and the SDK would take that call for this one.
    """
    calls = Counter[Key]()
    for position, item in entries:
        if item.get("type") in ANSWERED_TYPES:
            continue
        key = call_key(item)
        if key is None or key[1] is None:
            continue
        calls[key] += 1
        if calls[key] > 1:
            faults.append(Fault(position, "repeated_call_id"))
    if all(count == 1 for count in calls.values()):
        return entries
    return _renamed(entries, {key for key, count in calls.items() if count > 1})


def _renamed(entries: list[Entry], repeated: set[Key]) -> list[Entry]:
    answers = calls_answered(entries)
    fresh = _FreshIds(entries)
    current: dict[Key, str] = {}  # what the newest call of a repeated id is called now
    renamed: list[Entry] = []
    for at, (position, item) in enumerate(entries):
        kind = item.get("type")
        key = call_key(item)
        if at in answers:
            call = renamed[answers[at].call][1]
            if key in repeated:
                item = item | {ID_FIELDS[item["type"]]: call[ID_FIELDS[call["type"]]]}
            if program_of(item) != program_of(call):
                item = _with_caller_of(call, item)
        else:
            if key is not None and key in repeated:
                current[key] = fresh.like(item[ID_FIELDS[key[0]]])
                item = item | {ID_FIELDS[key[0]]: current[key]}
            program = current.get(("program", program_of(item)))
            if program is not None:
                item = item | {"caller": {"type": "program", "caller_id": program}}
            request = item.get("approval_request_id") if kind == "mcp_call" else None
            if isinstance(request, str) and ("mcp_approval_request", request) in current:
                item = item | {"approval_request_id": current["mcp_approval_request", request]}
        renamed.append((position, item))
    return renamed


def _with_caller_of(call: Item, output: Item) -> Item:
    output = {name: value for name, value in output.items() if name != "caller"}
    return output | {"caller": call["caller"]} if "caller" in call else output


def _distinct_ids(entries: list[Entry], faults: list[Fault]) -> list[Entry]:
    seen: set[tuple[object, str]] = set()
    distinct: list[Entry] = []
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

    def __init__(self, entries: list[Entry]) -> None:
        values = (item.get(name) for _, item in entries for name in ("id", "call_id"))
        self._acquired = {value for value in values if isinstance(value, str)}
        self._numbers = Counter[str]()

    def like(self, old: str) -> str:
        stem = old
        if len(old) > _LONGEST_ID - 8:
            name = hashlib.sha256(old.encode(errors="surrogatepass")).hexdigest()[:16]
            stem = f"{old[:32]}_{name}"
        while True:
            self._numbers[old] += 1
            new = f"{stem}_{self._numbers[old]}"
            if new not in self._acquired:
                self._acquired.add(new)
                return new
